"""From pairs of duplicates to clusters, and from clusters to what each shard drops.

A cluster is a connected component of the graph of pairs. Its first document in the order of the corpus stays, whatever
the number of shards or workers. Memory: 8 bytes for each document of the corpus, and 150 for each in a cluster.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lit_gpt.data.cleaning.base import CorpusWideStep
from lit_gpt.data.cleaning.document_table import DocumentTable, map_array, write_bytes
from lit_gpt.data.cleaning.step import Doc, Rejected

Int64Array = np.ndarray[Any, np.dtype[np.int64]]

MAX_KEYS_AT_ONCE = 1 << 24
"""Keys that are sorted in memory at a time; more are sorted in several passes over them."""

FINDING = np.dtype([("place", "<i8"), ("kept", "<i8"), ("size", "<i8")])
"""A document of a shard that is in a cluster: its place in the shard, the number of the document that stays (its own if
it is that one), and the cluster's size."""


class Components:
    """Connected components of documents, each named by its least number.

    Args:
        num_documents: Documents 0 to num_documents - 1, each alone at first.
    """

    def __init__(self, num_documents: int) -> None:
        self.parents: Int64Array = np.arange(num_documents)

    def connect(self, left: Int64Array, right: Int64Array) -> None:
        """Joins the components of each pair, (P,) and (P,).

        All pairs at once: each greater root hooks to the least root that it is paired with, and pairs that are not yet
        in one component go round again (Shiloach & Vishkin 1982).
        """
        while len(left):
            a, b = self.roots(left), self.roots(right)
            apart = a != b
            left, right, a, b = left[apart], right[apart], a[apart], b[apart]
            np.minimum.at(self.parents, np.maximum(a, b), np.minimum(a, b))

    def roots(self, documents: Int64Array) -> Int64Array:
        """Returns the least number of each document's component."""
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
    """Yields pairs of documents with equal keys: each document with the first that has its key.

    Args:
        keys: For each shard the documents' numbers, ascending, and their keys (uint64), which may lie on disk.
        part: Looks only at keys that are `part` modulo `num_parts`, so that tasks share the work.
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
        order = np.argsort(values, kind="stable")  # equal keys keep the order of the corpus
        values = values[order]
        same = np.flatnonzero(values[1:] == values[:-1]) + 1  # places whose predecessor has the same key
        if len(same):
            opens = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
            firsts = opens[np.searchsorted(opens, same, side="right") - 1]
            yield documents[order[firsts]].astype(np.int64), documents[order[same]].astype(np.int64)


def write_findings(folder: Path, table: DocumentTable, components: Components) -> None:
    """Writes, for each shard, which of its documents are in a cluster, and which one stays for them."""
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


class DropsDuplicates(CorpusWideStep):
    """Base of the steps that keep one document of each cluster. A subclass's stages leave findings and a table."""

    reason = "duplicate"

    def begin(self, folder: Path, rank: int) -> None:
        """Opens the findings for shard `rank`; the next `apply` gets its first document."""
        self._rank = rank
        self._at = self._next = 0
        self._findings = map_array(folder / "findings" / f"{rank:05d}.findings", FINDING)
        self._table = DocumentTable(folder / "ids")

    def apply(self, document: Doc) -> Doc | Rejected:
        """Returns the document if it is the first of its cluster, or in none."""
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
            self.reason, f"one of {size}; {kept_id} stays", cluster=kept_id, kept=kept_id, cluster_size=size
        )
