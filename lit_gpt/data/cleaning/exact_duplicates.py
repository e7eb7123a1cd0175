"""`exact_duplicates`: of documents with the same text, the first stays.

Two stages: each document's 128-bit BLAKE2b digest (a task a shard), then equal digests → which document stays (one
task). 16 bytes a document on disk; memory as in `clusters.py`.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from lit_gpt.data.cleaning.clusters import Components, DropsDuplicates, equal_pairs, write_findings
from lit_gpt.data.cleaning.document_table import DocumentTable, IdWriter, map_array, write_bytes
from lit_gpt.data.cleaning.step import Stage


def digest(text: str, ignore_whitespace: bool = False, ignore_case: bool = False) -> bytes:
    """Returns 16 bytes that tell a text from any other.

    Args:
        text: Any text.
        ignore_whitespace: Whether runs of white space count as one space, and none at the ends.
        ignore_case: Whether capitals count as small letters.
    """
    if ignore_whitespace:
        text = " ".join(text.split())
    if ignore_case:
        text = text.casefold()
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


class ExactDuplicates(DropsDuplicates):
    """Keeps the first of the documents that have the same text.

    Args:
        ignore_whitespace: Whether runs of white space count as one space, and none at the ends.
        ignore_case: Whether capitals count as small letters.
    """

    name = "exact_duplicates"
    reason = "exact_duplicate"

    def __init__(self, ignore_whitespace: bool = False, ignore_case: bool = False) -> None:
        super().__init__()
        self.ignore_whitespace = ignore_whitespace
        self.ignore_case = ignore_case

    def stages(self, folder: Path, documents: Path, num_tasks: int) -> list[Stage]:
        """Returns the two stages."""
        from lit_gpt.data.pipeline.document_shards import ReadDocuments

        write = WriteDigests(folder, self.ignore_whitespace, self.ignore_case)
        return [
            Stage("digests", [ReadDocuments(documents), write], num_tasks),
            Stage("clusters", [FindEqual(folder)], 1),
        ]


class WriteDigests:
    """Stage 1: one shard's documents → `digests/<rank>.digests`, (documents, 2) uint64."""

    def __init__(self, folder: Path, ignore_whitespace: bool, ignore_case: bool) -> None:
        self.folder = Path(folder)
        self.ignore_whitespace = ignore_whitespace
        self.ignore_case = ignore_case

    def __call__(self, data: Iterable[Any] | None, rank: int = 0, world_size: int = 1) -> None:
        """Reads the documents that reach it and writes their digests."""
        ids = IdWriter(self.folder / "ids", rank)
        digests = bytearray()
        for document in data or ():
            ids.add(document.id)
            digests += digest(document.text, self.ignore_whitespace, self.ignore_case)
        write_bytes(self.folder / "digests" / f"{rank:05d}.digests", digests)
        ids.close()


class FindEqual:
    """Stage 2: all digests → `findings/<rank>.findings`."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def __call__(self, data: Iterable[Any] | None = None, rank: int = 0, world_size: int = 1) -> None:
        """Writes each shard's findings."""
        table = DocumentTable(self.folder / "ids")
        paths = sorted((self.folder / "digests").glob("*.digests"))
        digests = [map_array(path, np.uint64).reshape(-1, 2) for path in paths]
        shards = [
            (np.arange(start, start + len(rows)), rows[:, 0])
            for start, rows in zip(table.starts[:-1], digests, strict=True)
        ]
        components = Components(table.num_documents)
        for left, right in equal_pairs(shards):
            equal = _second_halves(digests, table, left) == _second_halves(digests, table, right)
            components.connect(left[equal], right[equal])
        write_findings(self.folder / "findings", table, components)


def _second_halves(digests: list[Any], table: DocumentTable, numbers: Any) -> Any:
    halves = np.empty(len(numbers), np.uint64)
    ranks = np.searchsorted(table.starts, numbers, side="right") - 1
    for rank in np.unique(ranks):
        here = ranks == rank
        halves[here] = digests[rank][numbers[here] - table.starts[rank], 1]
    return halves
