"""Remove passages that are repeated in the corpus: `duplicate_lines` and `duplicate_substrings`.

**duplicate_lines** removes lines that occur in many documents, which are boilerplate (menus, licenses, banners). Llama
3 removed the lines that "appeared more than 6 times in each bucket of 30M documents" (Grattafiori et al. 2024,
arXiv:2407.21783, section 3.1.1); here a line counts once per document, over the whole corpus, and short lines are kept,
because closing brackets and `return None` are not boilerplate. It takes two passes: hash the lines to 64 bits (one task
per shard), then find the frequent hashes (16 tasks, each for a sixteenth of the hashes). It needs 8 bytes per line on
disk, and a sixteenth of that in memory.

**duplicate_substrings** cuts out long passages that occurred earlier in the corpus (Lee et al. 2022, arXiv:2107.06499).
Lee et al. find every repeated passage of at least 50 tokens with a suffix array. The same passages are found here
without one: a repeated passage of at least n words is a union of windows of n words, each of which occurred before; so
hash every window, and the windows whose hash is not new are the repeated ones (exact, except for hash collisions). The
first occurrence is kept, later ones are cut out. A word is a run of letters and digits or a single other character,
compared verbatim; white space between words may differ. There are three passes: window hashes (one task per shard),
those seen before (16 tasks), and the words that they cover in each document (one task per shard). It needs 8 bytes per
word on disk, and 16 million windows at a time in memory.
"""

from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from lit_gpt.atomic import atomic_file
from lit_gpt.checks import check_at_least
from lit_gpt.data.cleaning.base import CorpusTransform, Doc, Pass, Rejected
from lit_gpt.data.cleaning.duplicates import Int64Array, equal_pairs, map_array, write_bytes
from lit_gpt.data.cleaning.words import UInt64Array, n_gram_hashes, split_words, word_hashes
from lit_gpt.extras import need

NUM_PARTS = 16
_DOCUMENTS_AT_ONCE = 1024
SPAN = np.dtype([("place", "<i8"), ("start", "<i8"), ("end", "<i8")])
"""Words `start` to `end` of document `place` of the shard are to be cut out."""


def line_hashes(lines: list[str], min_chars: int) -> UInt64Array:
    """Return one hash per line, 0 for lines that are too short to count.

    Args:
        lines: Lines; leading and trailing white space is ignored.
        min_chars: Minimum length of a line that counts.
    """
    xxh3 = need("xxhash", "data", "duplicate_lines").xxh3_64_intdigest
    visible = (line.strip() for line in lines)
    return np.fromiter(
        (xxh3(line.encode("utf-8", "surrogatepass")) or 1 if len(line) >= min_chars else 0 for line in visible),
        np.uint64,
        len(lines),
    )


class DuplicateLines(CorpusTransform):
    """Removes lines that occur in more than `max_documents` documents; drops documents without other lines.

    Counts `lines_removed`.

    Args:
        max_documents: Maximum number of documents in which a line may occur (Llama 3: 6).
        min_chars: Lines with fewer characters are always kept; white space around a line does not count.
    """

    name = "duplicate_lines"

    def __init__(self, max_documents: int = 6, min_chars: int = 30) -> None:
        super().__init__()
        check_at_least("duplicate_lines: max_documents", max_documents, 1)
        check_at_least("duplicate_lines: min_chars", min_chars, 1)
        self.max_documents = max_documents
        self.min_chars = min_chars

    def passes(self, folder: Path, documents: Any, num_tasks: int) -> list[Pass]:
        """Return the two passes."""
        return [
            Pass("hashes", [documents, WriteLines(folder, self.min_chars)], num_tasks),
            Pass("frequent", [FindFrequent(folder, self.max_documents)], NUM_PARTS),
        ]

    def begin(self, folder: Path, rank: int) -> None:
        """Load the hashes of the frequent lines."""
        parts = [map_array(path, np.uint64) for path in sorted((folder / "frequent").glob("*.hashes"))]
        self._frequent: UInt64Array = np.concatenate(parts)  # sorted: each part holds one range

    def apply(self, document: Doc) -> Doc | Rejected:
        """Return the document without its frequent lines."""
        if not len(self._frequent):
            return document
        lines = document.text.split("\n")
        hashes = line_hashes(lines, self.min_chars)
        positions = np.minimum(np.searchsorted(self._frequent, hashes), len(self._frequent) - 1)
        frequent = self._frequent[positions] == hashes
        number = int(frequent.sum())
        if not number:
            return document
        text = "\n".join(line for line, is_frequent in zip(lines, frequent, strict=True) if not is_frequent)
        if not text.strip():
            return Rejected("duplicate_lines_only", f"all {number} lines occur in over {self.max_documents} documents")
        document.text = text
        self.counts["lines_removed"] += number
        return document


class WriteLines:
    """Pass 1: write the uint64 line hashes of one shard to `lines/<rank>.hashes`, each line once per document."""

    def __init__(self, folder: Path, min_chars: int) -> None:
        self.folder = Path(folder)
        self.min_chars = min_chars

    def __call__(self, data: Iterable[Any] | None, rank: int = 0, world_size: int = 1) -> None:
        """Read the incoming documents and write the hashes of their lines."""
        with atomic_file(self.folder / "lines" / f"{rank:05d}.hashes") as temporary, open(temporary, "wb") as file:
            waiting: list[UInt64Array] = []
            for document in data or ():
                hashes = np.unique(line_hashes(document.text.split("\n"), self.min_chars))
                waiting.append(hashes[hashes != 0])
                if len(waiting) == _DOCUMENTS_AT_ONCE:
                    file.write(np.concatenate(waiting).tobytes())
                    waiting.clear()
            if waiting:
                file.write(np.concatenate(waiting).tobytes())


class FindFrequent:
    """Pass 2: task p writes the sorted frequent hashes in the p-th sixteenth of the range."""

    def __init__(self, folder: Path, max_documents: int) -> None:
        self.folder = Path(folder)
        self.max_documents = max_documents

    def __call__(self, data: Iterable[Any] | None = None, rank: int = 0, world_size: int = NUM_PARTS) -> None:
        """Count this part's hashes over all shards."""
        chosen = [np.empty(0, np.uint64)]
        for path in sorted((self.folder / "lines").glob("*.hashes")):
            hashes = map_array(path, np.uint64)
            chosen.append(hashes[hashes >> np.uint64(60) == rank])
        values, counts = np.unique(np.concatenate(chosen), return_counts=True)
        frequent = values[counts > self.max_documents]
        write_bytes(self.folder / "frequent" / f"{rank:05d}.hashes", frequent.tobytes())


class DuplicateSubstrings(CorpusTransform):
    """Cuts out passages that occurred verbatim earlier in the corpus; drops documents without other text.

    Counts `passages_removed` and `words_removed`.

    Args:
        min_tokens: Minimum passage length in words, including punctuation marks (Lee et al.: 50 BPE tokens).
    """

    name = "duplicate_substrings"
    findings_per_byte = 3.0  # 8 bytes per word, twice

    def __init__(self, min_tokens: int = 50) -> None:
        super().__init__()
        check_at_least("duplicate_substrings: min_tokens", min_tokens, 2)
        self.min_tokens = min_tokens

    def passes(self, folder: Path, documents: Any, num_tasks: int) -> list[Pass]:
        """Return the three passes."""
        return [
            Pass("windows", [documents, WriteWindows(folder, self.min_tokens)], num_tasks),
            Pass("repeated", [FindRepeated(folder, self.min_tokens)], NUM_PARTS),
            Pass("passages", [WritePassages(folder, self.min_tokens)], num_tasks),
        ]

    def begin(self, folder: Path, rank: int) -> None:
        """Load the passages of shard `rank`; the next call of `apply` gets its first document."""
        self._at = self._next = 0
        self._spans = map_array(folder / "passages" / f"{rank:05d}.spans", SPAN)

    def apply(self, document: Doc) -> Doc | Rejected:
        """Return the document without its repeated passages."""
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
            return Rejected("duplicate_substrings", f"all of its {removed} words occurred earlier in the corpus")
        document.text = text
        self.counts["passages_removed"] += len(spans)
        self.counts["words_removed"] += removed
        return document


def cut_words(text: str, spans: list[tuple[int, int]]) -> str:
    """Return the text without the words in `spans`, keeping the white space before each cut.

    Args:
        text: Any text.
        spans: (first word, word after the last), ascending, without overlaps.
    """
    words = split_words(text)
    parts: list[str] = []
    at = index = position = 0  # characters before `at` are processed; word `index` is at or after `position`
    for start, end in spans:
        for word in words[index:start]:
            position = text.index(word, position) + len(word)
        first = text.index(words[start], position)
        for word in words[start:end]:
            position = text.index(word, position) + len(word)
        parts.append(text[at:first])
        at, index = position, end
        if first == 0 or text[first - 1].isspace():
            while text[at : at + 1].isspace() and index < len(words):
                at += 1
        elif not text[at : at + 1].isspace() and index < len(words):
            parts.append(" ")  # "one,two" without its comma must not become "onetwo"
    return "".join(parts) + text[at:]


class WriteWindows:
    """Pass 1: write one uint64 hash per window of one shard to `windows/<rank>.hashes`.

    It also writes `windows/<rank>.ends`: the number of windows up to and including each document, int64.
    """

    def __init__(self, folder: Path, min_tokens: int) -> None:
        self.folder = Path(folder)
        self.min_tokens = min_tokens

    def __call__(self, data: Iterable[Any] | None, rank: int = 0, world_size: int = 1) -> None:
        """Read the incoming documents and write the hashes of their windows."""
        base = self.folder / "windows" / f"{rank:05d}"
        ends = array("q")
        total = 0
        with atomic_file(base.with_suffix(".hashes")) as temporary, open(temporary, "wb") as file:
            for document in data or ():
                hashes = n_gram_hashes(word_hashes(split_words(document.text)), self.min_tokens)
                file.write(hashes.tobytes())
                total += len(hashes)
                ends.append(total)
        write_bytes(base.with_suffix(".ends"), ends.tobytes())


class FindRepeated:
    """Pass 2: task p writes the sorted windows (numbered over all shards) that occurred before to `repeated/<p>.rows`.

    A window that overlaps its first occurrence is not counted, so that one passage of "ha ha ha ..." remains complete.
    """

    def __init__(self, folder: Path, min_tokens: int) -> None:
        self.folder = Path(folder)
        self.min_tokens = min_tokens

    def __call__(self, data: Iterable[Any] | None = None, rank: int = 0, world_size: int = NUM_PARTS) -> None:
        """Process the windows whose hash is `rank` modulo the number of parts."""
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
    """Pass 3: write the spans of words to cut out of one shard's documents to `passages/<rank>.spans`."""

    def __init__(self, folder: Path, min_tokens: int) -> None:
        self.folder = Path(folder)
        self.min_tokens = min_tokens

    def __call__(self, data: Iterable[Any] | None = None, rank: int = 0, world_size: int = 1) -> None:
        """Join overlapping windows of a document into passages."""
        starts, _ = window_table(self.folder)
        chosen = [np.empty(0, np.int64)]
        for path in sorted((self.folder / "repeated").glob("*.rows")):
            rows = map_array(path, np.int64)
            low, high = np.searchsorted(rows, [starts[rank], starts[rank + 1]])
            chosen.append(np.asarray(rows[low:high]))
        rows = np.sort(np.concatenate(chosen)) - starts[rank]
        ends = map_array(self.folder / "windows" / f"{rank:05d}.ends", np.int64)
        positions = np.searchsorted(ends, rows, side="right")
        words = (
            rows - np.concatenate([np.zeros(1, np.int64), ends])[positions]
        )  # the window's first word in its document
        opens = np.ones(len(rows), bool)
        opens[1:] = (positions[1:] != positions[:-1]) | (words[1:] - words[:-1] > self.min_tokens)
        first = np.flatnonzero(opens)
        spans = np.empty(len(first), SPAN)
        spans["place"], spans["start"] = positions[first], words[first]
        last = np.append(first[1:], len(rows)) - 1 if len(first) else first
        spans["end"] = words[last] + self.min_tokens
        write_bytes(self.folder / "passages" / f"{rank:05d}.spans", spans.tobytes())


def window_table(folder: Path) -> tuple[list[int], Int64Array]:
    """Return the index of each shard's first window (and the total), and the end of each document's windows."""
    starts, ends = [0], [np.empty(0, np.int64)]
    for path in sorted((folder / "windows").glob("*.ends")):
        of_shard = np.asarray(map_array(path, np.int64))
        ends.append(of_shard + starts[-1])
        starts.append(int(ends[-1][-1]) if len(of_shard) else starts[-1])
    return starts, np.concatenate(ends)
