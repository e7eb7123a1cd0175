"""`decontaminate`: drop documents that overlap with a benchmark, and list the matches.

As for GPT-3 (Brown et al. 2020, arXiv:2005.14165, appendix C), texts become lower-case words without punctuation; a
document is contaminated if it shares an n-gram of 13 words with a benchmark text. A text of 8 to 12 words matches if
the document contains all of it (GPT-3 chose n between 8 and 13 by the lengths of a benchmark's texts); shorter texts
are ignored. N-grams that occur in many records of one benchmark are part of its instructions rather than its questions,
and are excluded.

The index stores one sorted array of 64-bit hashes per n-gram length, at 16 bytes per benchmark n-gram (hash, file and
record).
"""

from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from lit_gpt.checks import check_at_least, check_list
from lit_gpt.data.cleaning.base import Doc, Rejected, Transform
from lit_gpt.data.cleaning.words import UInt64Array, match_words, n_gram_hashes, word_hashes
from lit_gpt.data.records.benchmarks import read_benchmark
from lit_gpt.errors import UserError
from lit_gpt.hashing import sha256_file

Int32Array = np.ndarray[Any, np.dtype[np.int32]]

_MAX_LISTED = 20


@dataclass(frozen=True)
class Match:
    """An overlap of a document with a benchmark record.

    Attributes:
        benchmark: Name of the benchmark file.
        record: Record in that file, counted from 1.
        words: The matching words.
        num_runs: Number of this record's n-grams that the document contains.
    """

    benchmark: str
    record: int
    words: str
    num_runs: int


@dataclass
class _NGrams:
    """The benchmarks' n-grams of one length: sorted hashes, and the origin of the first occurrence of each."""

    hashes: UInt64Array
    files: Int32Array
    records: Int32Array


@dataclass
class BenchmarkIndex:
    """Index of benchmark n-grams used to look up contaminated documents.

    Attributes:
        names: Names of the benchmarks.
        runs: N-grams by length in words.
        num_texts: Number of texts that are long enough to be indexed.
        num_short: Number of texts that are too short.
    """

    names: list[str]
    runs: dict[int, _NGrams] = field(default_factory=dict)
    num_texts: int = 0
    num_short: int = 0

    def matches(self, text: str) -> list[Match]:
        """Return the overlaps of a text with the benchmarks, one per record, in the order of the text."""
        words = match_words(text)
        hashes = word_hashes(words)
        found: dict[tuple[int, int], tuple[int, int]] = {}  # (file, record) → (position, length) of its first n-gram
        numbers: Counter[tuple[int, int]] = Counter()
        for length, runs in self.runs.items():
            own = n_gram_hashes(hashes, length)
            positions = np.searchsorted(runs.hashes, own)
            positions[positions == len(runs.hashes)] = 0
            for at in np.flatnonzero(runs.hashes[positions] == own):
                key = int(runs.files[positions[at]]), int(runs.records[positions[at]])
                numbers[key] += 1
                found[key] = min(found.get(key, (int(at), length)), (int(at), length))
        return [
            Match(self.names[key[0]], key[1], " ".join(words[at : at + length]), numbers[key])
            for key, (at, length) in sorted(found.items(), key=lambda item: item[1])
        ]


def build_index(
    files: list[Path], n_gram: int = 13, min_words: int = 8, max_records: int = 50, fields: list[str] | None = None
) -> BenchmarkIndex:
    """Read benchmarks into an index.

    Args:
        files: The benchmark files.
        n_gram: Words per n-gram.
        min_words: Texts with fewer words are ignored; a text of min_words to n_gram - 1 words must match as a whole.
        max_records: N-grams that occur in more records of one benchmark are excluded.
        fields: Fields to read; None reads all that contain text.

    Raises:
        UserError: if a benchmark cannot be read, or contains no text that is long enough.
    """
    index = BenchmarkIndex(_names(files))
    collected: dict[int, list[tuple[UInt64Array, Int32Array, Int32Array]]] = {}
    for number, path in enumerate(files):
        of_file: dict[int, list[tuple[UInt64Array, Int32Array]]] = {}
        before = index.num_texts
        for record, text in read_benchmark(path, fields):
            hashes = word_hashes(match_words(text))
            if len(hashes) < min(min_words, n_gram):
                index.num_short += 1
                continue
            index.num_texts += 1
            length = min(n_gram, len(hashes))
            runs = np.unique(n_gram_hashes(hashes, length))
            of_file.setdefault(length, []).append((runs, np.full(len(runs), record, np.int32)))
        if index.num_texts == before:
            raise UserError(
                f"benchmark {path} has no text of {min(min_words, n_gram)} words or more, so no overlap with it can be "
                "found; lower min_words, or remove it"
            )
        for length, parts in of_file.items():
            hashes, records = _without_templates(
                np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts]), max_records
            )
            collected.setdefault(length, []).append((hashes, np.full(len(hashes), number, np.int32), records))
    for length, triples in sorted(collected.items()):
        hashes, numbers, records = map(np.concatenate, zip(*triples, strict=True))
        hashes, first = np.unique(hashes, return_index=True)  # the first occurrence of each
        index.runs[length] = _NGrams(hashes, numbers[first], records[first])
    index.runs = {length: runs for length, runs in index.runs.items() if len(runs.hashes)}
    return index


def _without_templates(hashes: UInt64Array, records: Int32Array, max_records: int) -> tuple[UInt64Array, Int32Array]:
    """Exclude the n-grams that occur in more than `max_records` records."""
    order = np.lexsort((records, hashes))
    hashes, records = hashes[order], records[order]
    new = np.ones(len(hashes), bool)
    new[1:] = (hashes[1:] != hashes[:-1]) | (records[1:] != records[:-1])
    hashes, records = hashes[new], records[new]  # each n-gram once per record
    values, first, counts = np.unique(hashes, return_index=True, return_counts=True)
    chosen = counts <= max_records
    return values[chosen], records[first[chosen]]


def _names(files: list[Path]) -> list[str]:
    """Return a short name for each file: the file name, with its folder's name if two are equal."""
    counts = Counter(path.name for path in files)
    return [path.name if counts[path.name] == 1 else f"{path.parent.name}/{path.name}" for path in files]


@lru_cache(maxsize=4)
def _cached_index(
    files: tuple[tuple[str, int, int], ...],
    n_gram: int,
    min_words: int,
    max_records: int,
    fields: tuple[str, ...] | None,
) -> BenchmarkIndex:
    """Build an index once per process; `files` includes sizes and dates, so that a changed file is read again."""
    paths = [Path(name) for name, _, _ in files]
    return build_index(paths, n_gram, min_words, max_records, None if fields is None else list(fields))


class Decontaminate(Transform):
    """Drops documents that share an n-gram with a benchmark, and lists the matches.

    Args:
        benchmarks: Benchmark files: JSON, JSON lines, CSV, TSV, Parquet, Arrow, or plain text (each paragraph is a
            text); optionally compressed. All texts of a record are used: questions, choices, answers, passages.
        n_gram: Number of consecutive words that count as a match (GPT-3: 13).
        min_words: A benchmark text of min_words to n_gram - 1 words matches if a document contains all of it (GPT-3:
            8); shorter texts are ignored.
        max_records: N-grams that occur in more records of one benchmark are considered instructions and excluded.
        fields: Fields or columns of the benchmarks to use; None uses all that contain text.

    Raises:
        UserError: There are no benchmarks, or a file of them does not exist.
    """

    name = "decontaminate"

    def __init__(
        self,
        benchmarks: list[str],
        n_gram: int = 13,
        min_words: int = 8,
        max_records: int = 50,
        fields: list[str] | None = None,
    ) -> None:
        super().__init__()
        check_list("decontaminate: benchmarks", benchmarks)
        check_at_least("decontaminate: n_gram", n_gram, 1)
        check_at_least("decontaminate: min_words", min_words, 1)
        check_at_least("decontaminate: max_records", max_records, 1)
        if fields is not None:
            check_list("decontaminate: fields", fields)
        if not benchmarks:
            raise UserError("decontaminate: benchmarks is empty; name the files, or remove decontaminate")
        self.benchmarks = [str(path) for path in benchmarks]
        for path in self.benchmarks:
            if not Path(path).is_file():
                raise UserError(
                    f"decontaminate: there is no benchmark file {path}; is the path right (seen from {Path.cwd()})?"
                )
        self.n_gram = n_gram
        self.min_words = min_words
        self.max_records = max_records
        self.fields = fields
        self._index: BenchmarkIndex | None = None

    def input_fingerprints(self) -> list[str]:
        """Return the SHA-256 of each benchmark file.

        Raises:
            UserError: if one cannot be read.
        """
        try:
            return [sha256_file(Path(path)) for path in self.benchmarks]
        except OSError as error:
            raise UserError(f"benchmark {error.filename} cannot be read ({error.strerror or error})") from error

    def index(self) -> BenchmarkIndex:
        """Return the benchmark index, which is built once per process.

        Raises:
            UserError: if a benchmark cannot be read.
        """
        if self._index is None:
            stats = [(path, Path(path).stat()) for path in self.benchmarks]
            self._index = _cached_index(
                tuple((path, stat.st_size, stat.st_mtime_ns) for path, stat in stats),
                self.n_gram,
                self.min_words,
                self.max_records,
                None if self.fields is None else tuple(self.fields),
            )
        return self._index

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_index": None}

    def apply(self, document: Doc) -> Doc | Rejected:
        """Return the document unchanged, or a `Rejected` listing the benchmark records it overlaps with."""
        matches = self.index().matches(document.text)
        if not matches:
            return document
        listed = [f"{m.benchmark}:{m.record} ({m.num_runs}x): {m.words}" for m in matches[:_MAX_LISTED]]
        if len(matches) > _MAX_LISTED:
            listed.append(f"and {len(matches) - _MAX_LISTED} more records")
        return Rejected("contaminated", "; ".join(listed))
