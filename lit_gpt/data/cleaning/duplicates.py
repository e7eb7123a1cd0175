"""Duplicate clusters, shared by all duplicate searches, and `exact_duplicates`, the simplest of these searches.

Documents are numbered by their position in the corpus, shard after shard. The search uses only these numbers; the ids,
which are stored on disk (`DocumentTable`), are needed only when a dropped document names the one that is kept instead.

A cluster is a connected component of the graph of duplicate pairs. Its first document in corpus order is kept,
regardless of the number of shards or workers. Memory: 8 bytes per document of the corpus, and 150 per document in a
cluster.
"""

import hashlib
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lit_gpt.atomic import atomic_file
from lit_gpt.data.cleaning.base import CorpusTransform, Doc, Pass, Rejected

Int64Array = np.ndarray[Any, np.dtype[np.int64]]

MAX_KEYS_AT_ONCE = 1 << 24
"""Number of keys that are sorted in memory at a time; more keys are sorted in several passes over them."""

FINDING = np.dtype([("place", "<i8"), ("kept", "<i8"), ("size", "<i8")])
"""A document of a shard that is in a cluster: its position in the shard, the number of the kept document (possibly
itself), and the cluster's size."""


# Ids of the documents, on disk


class IdWriter:
    """Collects the ids of one shard; `close` writes them.

    Args:
        folder: Folder of the table.
        rank: Index of the shard.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self._folder = folder
        self._rank = rank
        self._ids = bytearray()
        self._ends = array("Q")

    def add(self, document_id: str) -> None:
        """Append the next document's id."""
        self._ids += document_id.encode("utf-8", "surrogatepass")
        self._ends.append(len(self._ids))

    def close(self) -> None:
        """Write the shard's ids, each file atomically."""
        write_bytes(self._folder / f"{self._rank:05d}.ids", bytes(self._ids))
        write_bytes(self._folder / f"{self._rank:05d}.ends", np.asarray(self._ends, np.uint64).tobytes())


class DocumentTable:
    """The ids of the documents of all shards.

    Args:
        folder: Folder of the table.
    """

    def __init__(self, folder: Path) -> None:
        self._paths = sorted(folder.glob("*.ends"))
        counts = [path.stat().st_size // 8 for path in self._paths]
        self.starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
        """Number of each shard's first document, followed by the total number of documents: (shards + 1,)."""

    @property
    def num_documents(self) -> int:
        """Number of documents in all shards."""
        return int(self.starts[-1])

    def id_of(self, number: int) -> str:
        """Return the id of a document."""
        rank = int(np.searchsorted(self.starts, number, side="right")) - 1
        position = number - int(self.starts[rank])
        ends = map_array(self._paths[rank], np.uint64)
        start = int(ends[position - 1]) if position else 0
        with open(self._paths[rank].with_suffix(".ids"), "rb") as file:
            file.seek(start)
            return file.read(int(ends[position]) - start).decode("utf-8", "surrogatepass")


def map_array(path: Path, dtype: Any) -> Any:
    """Return a memory-mapped view of a file's numbers."""
    if path.stat().st_size == 0:
        return np.empty(0, dtype)
    return np.memmap(path, dtype, mode="r")


def write_bytes(path: Path, data: bytes | bytearray | memoryview) -> None:
    """Write a file atomically."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)


# Clusters


class Components:
    """Connected components of documents, each identified by its smallest document number.

    Args:
        num_documents: Number of documents; each is a separate component at first.
    """

    def __init__(self, num_documents: int) -> None:
        self.parents: Int64Array = np.arange(num_documents)

    def connect(self, left: Int64Array, right: Int64Array) -> None:
        """Join the components of each pair, (P,) and (P,).

        All pairs are processed at once: each larger root is linked to the smallest root that it is paired with, and
        pairs that are not yet in one component are processed again (Shiloach & Vishkin 1982).
        """
        while len(left):
            a, b = self.roots(left), self.roots(right)
            differ = a != b
            left, right, a, b = left[differ], right[differ], a[differ], b[differ]
            np.minimum.at(self.parents, np.maximum(a, b), np.minimum(a, b))

    def roots(self, documents: Int64Array) -> Int64Array:
        """Return the smallest number in each document's component."""
        found = self.parents[documents]
        while True:
            further = self.parents[found]
            if np.array_equal(further, found):
                self.parents[documents] = found  # path compression
                return found
            found = further


def equal_pairs(
    keys: list[tuple[Any, Any]], part: int = 0, num_parts: int = 1
) -> Iterator[tuple[Int64Array, Int64Array]]:
    """Yield pairs of documents with equal keys: each document with the first one that has its key.

    Args:
        keys: For each shard the ascending document numbers and their keys (uint64), which may be memory-mapped.
        part: Process only keys that equal `part` modulo `num_parts`, so that tasks share the work.
        num_parts: Number of such tasks.
    """
    total = sum(len(numbers) for numbers, _ in keys)
    passes = max(1, -(-total // (MAX_KEYS_AT_ONCE * num_parts)))
    modulus = np.uint64(passes * num_parts)
    for remainder in range(part, passes * num_parts, num_parts):
        chosen_numbers, chosen_keys = [], []
        for numbers, values in keys:
            values = np.asarray(values)
            mask = slice(None) if modulus == 1 else values % modulus == np.uint64(remainder)
            chosen_numbers.append(np.asarray(numbers)[mask])
            chosen_keys.append(values[mask])
        if not chosen_keys:
            return
        documents, values = np.concatenate(chosen_numbers), np.concatenate(chosen_keys)
        del chosen_numbers, chosen_keys
        order = np.argsort(values, kind="stable")  # equal keys stay in corpus order
        values = values[order]
        same = np.flatnonzero(values[1:] == values[:-1]) + 1  # positions whose predecessor has the same key
        if len(same):
            opens = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
            firsts = opens[np.searchsorted(opens, same, side="right") - 1]
            yield documents[order[firsts]].astype(np.int64), documents[order[same]].astype(np.int64)


def write_findings(folder: Path, table: DocumentTable, components: Components) -> None:
    """Write, for each shard, which of its documents are in a cluster and which document is kept for them."""
    parents = components.parents
    dropped = np.flatnonzero(parents != np.arange(len(parents)))
    kept, index, counts = np.unique(components.roots(dropped), return_inverse=True, return_counts=True)
    members = np.concatenate([dropped, kept])
    findings = np.empty(len(members), FINDING)
    findings["place"] = members
    findings["kept"] = np.concatenate([kept[index], kept])
    findings["size"] = np.concatenate([counts[index], counts]) + 1
    findings.sort(order="place")
    bounds = np.searchsorted(findings["place"], table.starts)
    for rank, start in enumerate(table.starts[:-1]):
        shard = findings[bounds[rank] : bounds[rank + 1]].copy()
        shard["place"] -= start
        write_bytes(folder / f"{rank:05d}.findings", shard.tobytes())


class DropsDuplicates(CorpusTransform):
    """Base class of transforms that keep one document per cluster; subclasses write findings and a table."""

    reason = "duplicate"

    def begin(self, folder: Path, rank: int) -> None:
        """Load the findings for shard `rank`; the next call of `apply` gets its first document."""
        self._rank = rank
        self._at = self._next = 0
        self._findings = map_array(folder / "findings" / f"{rank:05d}.findings", FINDING)
        self._table = DocumentTable(folder / "ids")

    def apply(self, document: Doc) -> Doc | Rejected:
        """Return the document if it is the first of its cluster or not in a cluster."""
        at, self._at = self._at, self._at + 1
        if self._next >= len(self._findings) or self._findings[self._next]["place"] != at:
            return document
        finding = self._findings[self._next]
        self._next += 1
        kept, size = int(finding["kept"]), int(finding["size"])
        if kept == int(self._table.starts[self._rank]) + at:
            document.cluster, document.cluster_size = document.id, size
            return document
        kept_id = self._table.id_of(kept)
        return Rejected(
            self.reason, f"one of {size}; {kept_id} is kept", cluster=kept_id, kept=kept_id, cluster_size=size
        )


# Documents with the same text


def digest(text: str, ignore_whitespace: bool = False, ignore_case: bool = False) -> bytes:
    """Return a 16-byte digest of a text.

    Args:
        text: Any text.
        ignore_whitespace: Whether a run of white space equals one space, and leading and trailing white space is
            ignored.
        ignore_case: Whether to ignore case.
    """
    if ignore_whitespace:
        text = " ".join(text.split())
    if ignore_case:
        text = text.casefold()
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


class ExactDuplicates(DropsDuplicates):
    """Keeps the first of all documents with the same text.

    Args:
        ignore_whitespace: Whether a run of white space equals one space, and leading and trailing white space is
            ignored.
        ignore_case: Whether to ignore case.
    """

    name = "exact_duplicates"
    reason = "exact_duplicate"

    def __init__(self, ignore_whitespace: bool = False, ignore_case: bool = False) -> None:
        super().__init__()
        self.ignore_whitespace = ignore_whitespace
        self.ignore_case = ignore_case

    def passes(self, folder: Path, documents: Any, num_tasks: int) -> list[Pass]:
        """Return the two passes."""
        write = WriteDigests(folder, self.ignore_whitespace, self.ignore_case)
        return [
            Pass("digests", [documents, write], num_tasks),
            Pass("clusters", [FindEqual(folder)], 1),
        ]


class WriteDigests:
    """Pass 1: write the digests of one shard's documents to `digests/<rank>.digests`, (documents, 2) uint64."""

    def __init__(self, folder: Path, ignore_whitespace: bool, ignore_case: bool) -> None:
        self.folder = Path(folder)
        self.ignore_whitespace = ignore_whitespace
        self.ignore_case = ignore_case

    def __call__(self, data: Iterable[Any] | None, rank: int = 0, world_size: int = 1) -> None:
        """Read the incoming documents and write their digests."""
        ids = IdWriter(self.folder / "ids", rank)
        digests = bytearray()
        for document in data or ():
            ids.add(document.id)
            digests += digest(document.text, self.ignore_whitespace, self.ignore_case)
        write_bytes(self.folder / "digests" / f"{rank:05d}.digests", digests)
        ids.close()


class FindEqual:
    """Pass 2: compare all digests and write `findings/<rank>.findings`."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def __call__(self, data: Iterable[Any] | None = None, rank: int = 0, world_size: int = 1) -> None:
        """Write each shard's findings."""
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
