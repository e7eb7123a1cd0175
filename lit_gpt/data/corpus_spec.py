"""Specification of a corpus (sources and split), and the single pass over its documents."""

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from lit_gpt.data.records import SPLITS, BadInput, Document, OnBadInput, RecordSource, SplitName, skipped_line
from lit_gpt.errors import UserError

SMALL_CORPUS = 1000
SMALL_CORPUS_BYTES = 64 << 20
"""Documents and bytes that are held to see whether a corpus ends before each of its splits has a document."""


def document_hash(text: str) -> bytes:
    """Return the SHA-256 (32 bytes) of the text's UTF-8 bytes.

    Raises:
        UnicodeEncodeError: if the text contains a lone surrogate, which is not valid Unicode.
    """
    return hashlib.sha256(text.encode()).digest()


def uniform(digest: bytes) -> float:
    """Return the digest mapped to [0, 1), from its first 53 bits."""
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def choose_split(digest: bytes, val_fraction: float, test_fraction: float) -> SplitName:
    """Return the split of the document with this hash."""
    position = uniform(digest)
    if position < val_fraction:
        return "val"
    return "test" if position >= 1.0 - test_fraction else "train"


def check_fractions(val_fraction: float, test_fraction: float) -> None:
    """Raise a `UserError` unless both fractions are at least 0 and leave something to train on."""
    for name, fraction in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
        if not (math.isfinite(fraction) and 0.0 <= fraction < 1.0):
            raise UserError(f"{name} is {fraction}; it must be at least 0 and below 1")
    if val_fraction + test_fraction >= 1.0:
        raise UserError(
            f"val_fraction {val_fraction} and test_fraction {test_fraction} leave nothing to train on; "
            "their sum must be below 1"
        )


@dataclass(frozen=True)
class CorpusSpec:
    """Sources of a corpus and the fractions by which their documents are split.

    Attributes:
        sources: Sources of the documents, in order.
        val_fraction: Fraction of the documents held out for validation, by hash.
        test_fraction: Fraction held out for testing.
        on_bad_input: `error` stops at a file or row that cannot be read, `skip` leaves it out and counts it.
    """

    sources: Sequence[RecordSource]
    val_fraction: float = 0.0
    test_fraction: float = 0.0
    on_bad_input: OnBadInput = "error"

    def __post_init__(self) -> None:
        check_fractions(self.val_fraction, self.test_fraction)
        BadInput(self.on_bad_input)
        if not self.sources:
            raise UserError("the corpus has no sources; name files or datasets")

    @property
    def names(self) -> str:
        """Names of the sources, for messages."""
        names = [source.name for source in self.sources]
        return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

    def nothing_found(self, bad_input: BadInput) -> str:
        """Return the error message for a corpus without text, with the input that could not be read."""
        share = " for the train split" if self.val_fraction or self.test_fraction else ""
        skipped = f" ({skipped_line(bad_input.num_skipped, bad_input.named)})" if bad_input.num_skipped else ""
        return (
            f"the corpus is empty: {self.names} contain no text{share}{skipped}; name files that contain text, or "
            "lower val_fraction and test_fraction"
        )


@dataclass(frozen=True, slots=True)
class Admitted:
    """A document that is included in the corpus.

    Attributes:
        number: Index among all included documents.
        document: The document.
        digest: SHA-256 of its text (32 bytes).
        num_bytes: UTF-8 bytes of its text.
        split: Split that it belongs to.
    """

    number: int
    document: Document
    digest: bytes
    num_bytes: int
    split: SplitName


class Reading:
    """One pass over a corpus's documents, with its counts.

    Each document belongs to one split, by its hash or as its source assigns it. Splits that would be
    empty in a small corpus get the end of its longest document.

    Attributes:
        num_empty: Number of documents without any character; they are left out and do not count as bad input.
        bad_input: Input that could not be read.
    """

    def __init__(self, spec: CorpusSpec) -> None:
        self.spec = spec
        self.num_empty = 0
        self.bad_input = BadInput(spec.on_bad_input)

    def __iter__(self) -> Iterator[Admitted]:
        documents = self._documents()
        beginning = self._beginning(documents)
        for number, (found, split) in enumerate(chain(beginning, ((one, self._split(one)) for one in documents))):
            yield Admitted(number, found.document, found.digest, found.num_bytes, split)

    def _split(self, found: "_Found") -> SplitName:
        return found.split or choose_split(found.digest, self.spec.val_fraction, self.spec.test_fraction)

    def _beginning(self, documents: Iterator["_Found"]) -> "list[tuple[_Found, SplitName]]":
        """Read documents until each split has one; where the corpus ends first, cut the longest document."""
        fractions: dict[SplitName, float] = {"val": self.spec.val_fraction, "test": self.spec.test_fraction}
        empty = [split for split, fraction in fractions.items() if fraction > 0]
        beginning: list[tuple[_Found, SplitName]] = []
        num_bytes = 0
        for found in documents:
            beginning.append((found, self._split(found)))
            num_bytes += found.num_bytes
            empty = [split for split in empty if split != beginning[-1][1]]
            enough = not empty or len(beginning) == SMALL_CORPUS or num_bytes > SMALL_CORPUS_BYTES
            if enough and len(beginning) > 1:
                return beginning
        if len(beginning) == 1:  # its hash does not count
            empty = [split for split, fraction in fractions.items() if fraction > 0]
        copies = Counter(found.digest for found, _ in beginning)
        # A document that exists twice would be in two splits.
        choices = [
            index
            for index, (found, split) in enumerate(beginning)
            if found.split is None and copies[found.digest] == 1 and (split == "train" or len(beginning) == 1)
        ]
        if empty and choices:
            longest = max(choices, key=lambda index: beginning[index][0].num_bytes)
            held_out = {split: round(fractions[split] * num_bytes) for split in empty}
            beginning[longest : longest + 1] = _by_position(beginning[longest][0], held_out)
        return beginning

    def _documents(self) -> Iterator["_Found"]:
        """Yield the documents to include, with the split if their source assigns one."""
        for source in self.spec.sources:
            for document in source.documents(self.bad_input):
                if not document.text:
                    self.num_empty += 1
                    continue
                try:
                    digest = document_hash(document.text)
                except UnicodeEncodeError:
                    self.bad_input.reject(document.where, "the text contains a lone surrogate (not valid Unicode)")
                    continue
                num_bytes = len(document.text) if document.text.isascii() else len(document.text.encode())
                yield _Found(document, digest, num_bytes, source.split)


@dataclass(frozen=True, slots=True)
class _Found:
    document: Document
    digest: bytes
    num_bytes: int
    split: SplitName | None


def _by_position(found: _Found, held_out: dict[SplitName, int]) -> list[tuple[_Found, SplitName]]:
    """Return the parts of a document: its beginning for training, then about these bytes for each of the others."""
    text = found.document.text
    characters = len(text) / max(found.num_bytes, sum(held_out.values()))  # per byte; together at most the document
    parts: list[tuple[_Found, SplitName]] = []
    begin, end = 0, len(text) - sum(held_out.values()) * characters
    for split in SPLITS:
        end += held_out.get(split, 0) * characters
        stop = len(text) if end > len(text) - 0.5 else _cut(text, begin, round(end))
        part, begin = text[begin:stop], max(begin, stop)
        if part:
            document = replace(found.document, text=part)
            parts.append((_Found(document, document_hash(part), len(part.encode()), None), split))
    return parts


def _cut(text: str, begin: int, end: int) -> int:
    """Return the index after the last line break, or else the last space, in the 200 characters before `end`.

    It searches backwards, so that the small parts, which come after `end`, never become empty.
    """
    for mark in "\n ":
        found = text.rfind(mark, max(begin, end - 200), end)
        if found > begin:
            return found + 1
    return end


def training_texts(spec: CorpusSpec, sample_bytes: int, corpus_bytes: int | None) -> Iterator[str]:
    """Yield texts of the train split for training a tokenizer: all of them, or an even sample chosen by hash.

    Args:
        spec: The corpus.
        sample_bytes: Stop after about this many bytes.
        corpus_bytes: Size of the whole corpus in bytes; None (unknown) takes its beginning.

    Raises:
        UserError: if there are none.
    """
    share = 1.0 if corpus_bytes is None else min(1.0, sample_bytes / max(corpus_bytes, 1))
    taken = 0
    reading = Reading(spec)
    for admitted in reading:
        # The split uses the first eight bytes of the hash, the sample the next ones.
        if admitted.split == "train" and uniform(admitted.digest[8:16]) < share:
            yield admitted.document.text
            taken += admitted.num_bytes
            if taken >= sample_bytes:
                return
    if not taken:
        raise UserError(spec.nothing_found(reading.bad_input))
