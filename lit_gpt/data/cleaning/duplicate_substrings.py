"""`duplicate_substrings`: long passages that the corpus held before are cut out (Lee et al. 2022, arXiv:2107.06499).

Lee et al. find every repeated passage of at least 50 tokens with a suffix array. The same passages are found here
without one: a repeated passage of at least n words is a union of windows of n words, each of which occurred before; so
hash every window, and the windows whose hash is not new are the repeated ones (exact but for two different windows with
one 64-bit hash). The first occurrence stays, others are cut out. A word is a run of letters and digits or a single
other character, as it is written; white space between words may differ.

Three stages: window hashes (a task a shard), those seen before (16 tasks), and which words of which document they cover
(a task a shard). 8 bytes a word on disk; in memory 16 million windows at a time.
"""

from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from lit_gpt.atomic import whole_file
from lit_gpt.data.cleaning.base import CorpusWideStep, check_at_least
from lit_gpt.data.cleaning.clusters import Int64Array, equal_pairs
from lit_gpt.data.cleaning.document_table import map_array, write_bytes
from lit_gpt.data.cleaning.matching import n_gram_hashes, word_hashes
from lit_gpt.data.cleaning.step import Doc, Rejected, Stage
from lit_gpt.data.cleaning.words import split_words

NUM_PARTS = 16
SPAN = np.dtype([("place", "<i8"), ("start", "<i8"), ("end", "<i8")])
"""Words `start` to `end` of the shard's document at `place` are to be cut out."""


class DuplicateSubstrings(CorpusWideStep):
    """Cuts out passages that stood earlier in the corpus, word for word; documents of nothing else are dropped.

    Counts `passages_removed` and `words_removed`.

    Args:
        min_tokens: Words (punctuation marks included) that a passage must have (Lee et al.: 50 BPE tokens).
    """

    name = "duplicate_substrings"

    def __init__(self, min_tokens: int = 50) -> None:
        super().__init__()
        check_at_least("duplicate_substrings: min_tokens", min_tokens, 2)
        self.min_tokens = min_tokens

    def stages(self, folder: Path, documents: Path, num_tasks: int) -> list[Stage]:
        """Returns the three stages."""
        from lit_gpt.data.pipeline.document_shards import ReadDocuments

        return [
            Stage("windows", [ReadDocuments(documents), WriteWindows(folder, self.min_tokens)], num_tasks),
            Stage("repeated", [FindRepeated(folder, self.min_tokens)], NUM_PARTS),
            Stage("passages", [WritePassages(folder, self.min_tokens)], num_tasks),
        ]

    def begin(self, folder: Path, rank: int) -> None:
        """Opens the passages of shard `rank`; the next `apply` gets its first document."""
        self._at = self._next = 0
        self._spans = map_array(folder / "passages" / f"{rank:05d}.spans", SPAN)

    def apply(self, document: Doc) -> Doc | Rejected:
        """Returns the document without its repeated passages."""
        at, self._at = self._at, self._at + 1
        spans = []
        while self._next < len(self._spans) and self._spans[self._next]["place"] == at:
            spans.append((int(self._spans[self._next]["start"]), int(self._spans[self._next]["end"])))
            self._next += 1
        if not spans:
            return document
        text = cut_words(document.text, spans)
        removed = sum(end - start for start, end in spans)
        if not text.strip():
            return Rejected("duplicate_substrings", f"all of its {removed} words stood earlier in the corpus")
        document.text = text
        self.counts["passages_removed"] += len(spans)
        self.counts["words_removed"] += removed
        return document


def cut_words(text: str, spans: list[tuple[int, int]]) -> str:
    """Returns the text without the words in `spans`; of the white space around a cut, that before it stays.

    Args:
        text: Any text.
        spans: (first word, word after the last), ascending, without overlaps.
    """
    words = split_words(text)
    parts, at, place, position = [], 0, 0, 0  # characters before `at` are done; word `place` is at or after `position`
    for start, end in spans:
        for word in words[place:start]:
            position = text.index(word, position) + len(word)
        first = text.index(words[start], position)
        for word in words[start:end]:
            position = text.index(word, position) + len(word)
        parts.append(text[at:first])
        at, place = position, end
        if first == 0 or text[first - 1].isspace():
            while text[at : at + 1].isspace() and place < len(words):
                at += 1
        elif not text[at : at + 1].isspace() and place < len(words):
            parts.append(" ")  # "one, two" without its comma is no word "onetwo"
    return "".join(parts) + text[at:]


class WriteWindows:
    """Stage 1: one shard's documents → `windows/<rank>.hashes`, a hash a window, uint64.

    Beside it `windows/<rank>.ends`: the number of windows up to and with each document, int64.
    """

    def __init__(self, folder: Path, min_tokens: int) -> None:
        self.folder = Path(folder)
        self.min_tokens = min_tokens

    def __call__(self, data: Iterable[Any] | None, rank: int = 0, world_size: int = 1) -> None:
        """Reads the documents that reach it and writes the hashes of their windows."""
        base = self.folder / "windows" / f"{rank:05d}"
        ends = array("q")
        total = 0
        with whole_file(base.with_suffix(".hashes")) as beside, open(beside, "wb") as file:
            for document in data or ():
                hashes = n_gram_hashes(word_hashes(split_words(document.text)), self.min_tokens)
                file.write(hashes.tobytes())
                total += len(hashes)
                ends.append(total)
        write_bytes(base.with_suffix(".ends"), ends.tobytes())


class FindRepeated:
    """Stage 2: task p → `repeated/<p>.rows`, the windows (numbered over all shards) that occurred before, sorted.

    A window that overlaps its own first occurrence is not counted: of "ha ha ha ...", one passage stays whole.
    """

    def __init__(self, folder: Path, min_tokens: int) -> None:
        self.folder = Path(folder)
        self.min_tokens = min_tokens

    def __call__(self, data: Iterable[Any] | None = None, rank: int = 0, world_size: int = NUM_PARTS) -> None:
        """Looks at the windows whose hash is `rank` modulo the number of parts."""
        starts, ends = window_table(self.folder)
        shards = []
        for path, start in zip(sorted((self.folder / "windows").glob("*.hashes")), starts[:-1], strict=True):
            hashes = map_array(path, np.uint64)
            shards.append((np.arange(start, start + len(hashes)), hashes))
        rows = [np.empty(0, np.int64)]
        for first, later in equal_pairs(shards, rank, NUM_PARTS):
            near = later - first < self.min_tokens
            same = np.zeros(len(near), bool)
            same[near] = np.searchsorted(ends, first[near], side="right") == np.searchsorted(
                ends, later[near], side="right"
            )
            rows.append(later[~same])
        write_bytes(self.folder / "repeated" / f"{rank:05d}.rows", np.sort(np.concatenate(rows)).tobytes())


class WritePassages:
    """Stage 3: one shard's repeated windows → `passages/<rank>.spans`, runs of words to cut out of its documents."""

    def __init__(self, folder: Path, min_tokens: int) -> None:
        self.folder = Path(folder)
        self.min_tokens = min_tokens

    def __call__(self, data: Iterable[Any] | None = None, rank: int = 0, world_size: int = 1) -> None:
        """Joins overlapping windows of a document to passages."""
        starts, _ = window_table(self.folder)
        chosen = [np.empty(0, np.int64)]
        for path in sorted((self.folder / "repeated").glob("*.rows")):
            rows = map_array(path, np.int64)
            low, high = np.searchsorted(rows, [starts[rank], starts[rank + 1]])
            chosen.append(np.asarray(rows[low:high]))
        rows = np.sort(np.concatenate(chosen)) - starts[rank]
        ends = map_array(self.folder / "windows" / f"{rank:05d}.ends", np.int64)
        places = np.searchsorted(ends, rows, side="right")
        words = rows - np.concatenate([np.zeros(1, np.int64), ends])[places]  # the window's first word in its document
        opens = np.ones(len(rows), bool)
        opens[1:] = (places[1:] != places[:-1]) | (words[1:] - words[:-1] > self.min_tokens)
        first = np.flatnonzero(opens)
        spans = np.empty(len(first), SPAN)
        spans["place"], spans["start"] = places[first], words[first]
        last = np.append(first[1:], len(rows)) - 1 if len(first) else first
        spans["end"] = words[last] + self.min_tokens
        write_bytes(self.folder / "passages" / f"{rank:05d}.spans", spans.tobytes())


def window_table(folder: Path) -> tuple[list[int], Int64Array]:
    """Returns the number of each shard's first window (and of all windows), and where each document's windows end."""
    starts, ends = [0], [np.empty(0, np.int64)]
    for path in sorted((folder / "windows").glob("*.ends")):
        of_shard = np.asarray(map_array(path, np.int64))
        ends.append(of_shard + starts[-1])
        starts.append(int(ends[-1][-1]) if len(of_shard) else starts[-1])
    return starts, np.concatenate(ends)
