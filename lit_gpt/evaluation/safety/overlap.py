"""Runs of words that benchmark records have in common with a stream of texts: which, and how much of each record.

The other direction of `lit_gpt.data.cleaning.decontaminate`, which asks of each document whether it holds any record.
Here every occurrence of a run in the benchmarks is kept, so that all records that share it are marked, and the words
that it covers. Memory is that of the benchmarks, whatever the texts: 24 bytes a run.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lit_gpt.data.cleaning.benchmark_files import read_benchmark
from lit_gpt.data.cleaning.matching import UInt64Array, match_words, n_gram_hashes, word_hashes
from lit_gpt.errors import UserError

_SHOWN_CHARACTERS = 600

IntArray = np.ndarray[Any, np.dtype[np.int64]]


@dataclass
class Record:
    """One record of a benchmark, and what of it was found.

    Attributes:
        number: Its place in the file, from 1.
        text: Its texts, for a person.
        parts: The words of each text that is long enough to be looked for.
        num_words: Words in them; 0: the record is too short to say anything.
        num_covered: Words that stand in a run that was found.
        words: The first such words.
        where: Where the first of them was found.
    """

    number: int
    text: str = ""
    parts: list[list[str]] = field(default_factory=list)
    num_words: int = 0
    num_covered: int = 0
    words: str = ""
    where: str = ""


def read_records(path: Path, fields: list[str] | None, n_gram: int = 13, min_words: int = 8) -> list[Record]:
    """Reads the records of a benchmark.

    Args:
        path: The file.
        fields: Fields to read; None: all that hold text.
        n_gram: Words in a run.
        min_words: Texts of fewer words are not looked for; one of min_words to n_gram - 1 counts as a whole.

    Raises:
        UserError: It is missing, damaged, or holds no text that is long enough.
    """
    if not path.is_file():
        raise UserError(f"there is no benchmark file {path}; is the path right (seen from {Path.cwd()})?")
    records: dict[int, Record] = {}
    for number, text in read_benchmark(path, fields):
        record = records.setdefault(number, Record(number))
        record.text = f"{record.text}\n{text}".strip()[:_SHOWN_CHARACTERS]
        words = match_words(text)
        if len(words) >= min(min_words, n_gram):
            record.parts.append(words)
            record.num_words += len(words)
    if not any(record.num_words for record in records.values()):
        raise UserError(
            f"benchmark {path} has no text of {min(min_words, n_gram)} words or more, so nothing of it could be found; "
            "lower min_words, or leave it out"
        )
    return list(records.values())


@dataclass
class _Runs:
    """All runs of one length: their different hashes, sorted, and each run's place among them."""

    hashes: UInt64Array
    which: IntArray  # of each run: its hash's index
    slots: IntArray  # of each run: where its first word stands among all words of all benchmarks
    seen: np.ndarray[Any, np.dtype[np.bool_]]  # of each hash
    first: dict[int, str]  # hash's index → where it was found first


class Overlap:
    """Looks texts up in benchmarks.

    Args:
        benchmarks: The records of each; what was found is written into them by `found`.
        n_gram: Words in a run.
        max_records: A run in more records of one benchmark is left out.
    """

    def __init__(self, benchmarks: list[list[Record]], n_gram: int = 13, max_records: int = 50) -> None:
        self.benchmarks = benchmarks
        self._num_words = 0
        self._starts: list[list[list[int]]] = []  # of each benchmark, record, part: the slot of its first word
        parts: dict[int, list[tuple[UInt64Array, IntArray]]] = {}
        for records in benchmarks:
            own: dict[int, list[tuple[UInt64Array, IntArray, IntArray]]] = {}
            self._starts.append([])
            for place, record in enumerate(records):
                self._starts[-1].append([])
                for words in record.parts:
                    length = min(n_gram, len(words))
                    hashes = n_gram_hashes(word_hashes(words), length)
                    slots = np.arange(self._num_words, self._num_words + len(hashes), dtype=np.int64)
                    own.setdefault(length, []).append((hashes, slots, np.full(len(hashes), place, np.int64)))
                    self._starts[-1][-1].append(self._num_words)
                    self._num_words += len(words)
            for length, triples in own.items():
                hashes, slots, places = map(np.concatenate, zip(*triples, strict=True))
                kept = _in_few_records(hashes, places, max_records)
                parts.setdefault(length, []).append((hashes[kept], slots[kept]))
        self._runs: dict[int, _Runs] = {}
        for length, pairs in parts.items():
            hashes, slots = map(np.concatenate, zip(*pairs, strict=True))
            unique, which = np.unique(hashes, return_inverse=True)
            if len(unique):
                self._runs[length] = _Runs(unique, which, slots, np.zeros(len(unique), dtype=bool), {})

    def look(self, text: str, where: str) -> None:
        """Marks the runs that a text has.

        Args:
            text: The text.
            where: What to call it.
        """
        words = word_hashes(match_words(text))
        for length, runs in self._runs.items():
            own = n_gram_hashes(words, length)
            if not len(own):
                continue
            places = np.searchsorted(runs.hashes, own)
            places[places == len(runs.hashes)] = 0
            hits = np.unique(places[runs.hashes[places] == own])
            for hit in hits[~runs.seen[hits]].tolist():
                runs.first[hit] = where
            runs.seen[hits] = True

    def found(self, benchmark: int) -> list[Record]:
        """Returns the records of a benchmark, with what was found of them so far."""
        covered = np.zeros(self._num_words + 1, dtype=np.int64)
        origin: dict[int, str] = {}
        for length, runs in self._runs.items():
            hit = runs.seen[runs.which]
            slots = runs.slots[hit]
            np.add.at(covered, slots, 1)
            np.add.at(covered, slots + length, -1)
            origin |= {
                slot: runs.first[index] for slot, index in zip(slots.tolist(), runs.which[hit].tolist(), strict=True)
            }
        inside = np.cumsum(covered) > 0
        records = self.benchmarks[benchmark]
        for record, starts in zip(records, self._starts[benchmark], strict=True):
            record.num_covered, record.words, record.where = 0, "", ""
            for words, start in zip(record.parts, starts, strict=True):
                mask = inside[start : start + len(words)]
                record.num_covered += int(mask.sum())
                if mask.any() and not record.words:
                    begin = int(mask.argmax())
                    end = begin + int(np.append(mask[begin:], False).argmin())
                    record.words, record.where = " ".join(words[begin:end]), origin[start + begin]
        return records


def _in_few_records(hashes: UInt64Array, records: IntArray, most: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which runs stand in at most so many different records."""
    _, which = np.unique(hashes, return_inverse=True)
    pairs = np.unique(np.stack([which, records]), axis=1)
    return np.bincount(pairs[0])[which] <= most
