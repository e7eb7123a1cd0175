"""`near_duplicates`: keep one of the documents that share most of their n-grams (MinHash LSH).

Three passes precede the filtering:

1. **signatures**, one task per shard: each document's n-grams → minimum hashes → one 64-bit key per bucket;
2. **buckets**, one task per bucket: documents with equal keys form pairs, optionally verified by their signatures;
3. **clusters**, one task: pairs → connected components → which document is kept (`duplicates.py`).

MinHash: the probability that two texts have the same minimum hash is their Jaccard similarity s, the share of n-grams
that they have in common (Broder 1997). With b buckets of r hashes each, two texts share at least one whole bucket with
probability 1 - (1 - s^r)^b (Leskovec, Rajaraman & Ullman, "Mining of Massive Datasets", section 3.4). FineWeb's 14 x 8
(Penedo et al. 2024, arXiv:2406.17557, with 5-grams) finds 92 % of the pairs at s = 0.8 and 5 % of those at s = 0.5.

datatrove's MinHash needs spaCy's tokenizer, merges signatures through a heap of Python objects, and keeps some 290
bytes per duplicate for clustering. This implementation needs 150 bytes per document on disk (datatrove: 960), 50 in
memory to sort a bucket (at most 16 million documents at a time) and 8 to cluster, plus 150 for each duplicate. It is
over ten times as fast as datatrove's defaults, and two to three times as fast as its blocks with this project's words
(`benchmarks/near_duplicates.py`).
"""

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from lit_gpt.atomic import atomic_file
from lit_gpt.checks import check_at_least, check_between
from lit_gpt.data.cleaning.base import Pass
from lit_gpt.data.cleaning.duplicates import (
    Components,
    DocumentTable,
    DropsDuplicates,
    IdWriter,
    Int64Array,
    equal_pairs,
    map_array,
    write_findings,
)
from lit_gpt.data.cleaning.words import UInt64Array, match_words, mixed, n_gram_hashes, word_hashes

UInt32Array = np.ndarray[Any, np.dtype[np.uint32]]

_DOCUMENTS_AT_ONCE = 2048
_PAIRS_AT_ONCE = 1 << 16
_BLOCK = 512
"""Number of n-grams hashed at a time: 112 functions x 512 x 4 bytes = 230 kB."""


class MinHash:
    """A family of hash functions grouped into buckets.

    Args:
        num_buckets: Number of buckets b.
        hashes_per_bucket: Number of hash functions r per bucket.
        seed: Seed of the hash functions.
    """

    def __init__(self, num_buckets: int = 14, hashes_per_bucket: int = 8, seed: int = 1) -> None:
        self.num_buckets = num_buckets
        self.hashes_per_bucket = hashes_per_bucket
        self.num_hashes = num_buckets * hashes_per_bucket
        generator = np.random.RandomState(seed)  # its stream is frozen by numpy, so the functions never change
        draw = generator.randint(0, 1 << 32, size=(2, self.num_hashes, 1), dtype=np.uint64).astype(np.uint32)
        self._a, self._b = draw[0] | np.uint32(1), draw[1]

    def signature(self, n_grams: UInt64Array) -> UInt32Array:
        """Return the minimum hash of a text's n-grams under each function.

        Args:
            n_grams: Hashes of the n-grams, (N,), at least one.

        Returns:
            (num_buckets * hashes_per_bucket,).
        """
        values = (n_grams >> np.uint64(32)).astype(np.uint32)
        least = np.full(self.num_hashes, np.uint32(0xFFFFFFFF))
        for start in range(0, len(values), _BLOCK):
            block = self._a * values[start : start + _BLOCK]
            block += self._b
            np.minimum(least, block.min(axis=1), out=least)
        return least

    def keys(self, signatures: UInt32Array) -> UInt64Array:
        """Return one key per bucket; two texts share a bucket if their keys for it are equal.

        Args:
            signatures: (D, num_buckets * hashes_per_bucket).

        Returns:
            (D, num_buckets).
        """
        rows = signatures.reshape(len(signatures), self.num_buckets, self.hashes_per_bucket)
        total = np.zeros(rows.shape[:2], np.uint64)
        for position in range(self.hashes_per_bucket):
            total = mixed(
                total
                ^ (rows[:, :, position].astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15 * (position + 1) % 2**64))
            )
        return total


class NearDuplicates(DropsDuplicates):
    """Keeps the first document of each cluster of near-duplicates.

    Documents of fewer than `n_grams` words have no n-gram and are always kept (see `exact_duplicates`).

    Args:
        n_grams: Words per n-gram.
        num_buckets: Number of buckets; more buckets find more pairs.
        hashes_per_bucket: Hashes per bucket; more hashes require a higher similarity. Half of the pairs are found at a
            similarity of about (1 / num_buckets) ** (1 / hashes_per_bucket), 0.72.
        min_similarity: Minimum share of equal hashes among all num_buckets * hashes_per_bucket, an estimate of the
            Jaccard similarity (with a standard deviation of about 0.04), which reduces false positives. None: a shared
            bucket suffices, as for FineWeb.
        seed: Seed of the hash functions.
        ignore_numbers: Whether all numbers count as the same word, as in datatrove and FineWeb: pages that differ only
            in a date or a price are then duplicates, but so are all tables of the same shape.
    """

    name = "near_duplicates"
    reason = "near_duplicate"

    def __init__(
        self,
        n_grams: int = 5,
        num_buckets: int = 14,
        hashes_per_bucket: int = 8,
        min_similarity: float | None = None,
        seed: int = 1,
        ignore_numbers: bool = False,
    ) -> None:
        super().__init__()
        check_at_least("near_duplicates: n_grams", n_grams, 1)
        check_at_least("near_duplicates: num_buckets", num_buckets, 1)
        check_at_least("near_duplicates: hashes_per_bucket", hashes_per_bucket, 1)
        check_between("near_duplicates: min_similarity", min_similarity, 0, 1)
        check_at_least("near_duplicates: seed", seed, 0)
        self.n_grams = n_grams
        self.num_buckets = num_buckets
        self.hashes_per_bucket = hashes_per_bucket
        self.min_similarity = min_similarity
        self.seed = seed
        self.ignore_numbers = ignore_numbers

    def passes(self, folder: Path, documents: Any, num_tasks: int) -> list[Pass]:
        """Return the three passes."""
        minhash = MinHash(self.num_buckets, self.hashes_per_bucket, self.seed)
        verify = self.min_similarity is not None
        write = WriteKeys(folder, minhash, self.n_grams, verify, self.ignore_numbers)
        return [
            Pass("signatures", [documents, write], num_tasks),
            Pass("buckets", [FindPairs(folder, minhash, self.min_similarity)], self.num_buckets),
            Pass("clusters", [FindClusters(folder)], 1),
        ]


class WriteKeys:
    """Pass 1: write one shard's keys to `keys/<rank>.keys`, (documents with n-grams, buckets) uint64.

    Args:
        folder: Folder of the transform.
        minhash: The hash functions.
        n_grams: Words per n-gram.
        keep_signatures: Whether to write the signatures, too, for verifying pairs.
        ignore_numbers: Whether all numbers count as the same word.
    """

    def __init__(
        self,
        folder: Path,
        minhash: MinHash,
        n_grams: int,
        keep_signatures: bool = False,
        ignore_numbers: bool = False,
    ) -> None:
        self.folder = Path(folder)
        self.minhash = minhash
        self.n_grams = n_grams
        self.keep_signatures = keep_signatures
        self.ignore_numbers = ignore_numbers

    def __call__(self, data: Iterable[Any] | None, rank: int = 0, world_size: int = 1) -> None:
        """Read the incoming documents and write their keys."""
        ids = IdWriter(self.folder / "ids", rank)
        base = self.folder / "keys" / f"{rank:05d}"
        rows = np.empty((_DOCUMENTS_AT_ONCE, self.minhash.num_hashes), np.uint32)
        positions: list[int] = []
        with ExitStack() as stack:
            suffixes = [".places", ".keys"] + [".signatures"] * self.keep_signatures
            files = [
                stack.enter_context(open(stack.enter_context(atomic_file(base.with_suffix(suffix))), "wb"))
                for suffix in suffixes
            ]

            def flush() -> None:
                signatures = rows[: len(positions)]
                values: tuple[Any, ...] = (np.asarray(positions, np.int64), self.minhash.keys(signatures), signatures)
                for file, array in zip(files, values, strict=False):  # signatures only if a file is open for them
                    file.write(np.ascontiguousarray(array).data.cast("B") if array.size else b"")
                positions.clear()

            for position, document in enumerate(data or ()):
                ids.add(document.id)
                words = match_words(document.text, self.ignore_numbers)
                n_grams = n_gram_hashes(word_hashes(words), self.n_grams)
                if len(n_grams):
                    rows[len(positions)] = self.minhash.signature(n_grams)
                    positions.append(position)
                    if len(positions) == len(rows):
                        flush()
            flush()
            for file in files:
                file.flush()
        ids.close()


class FindPairs:
    """Pass 2: task b reads the keys of bucket b in all shards and writes `pairs/<b>.pairs`, (P, 2) int64.

    Args:
        folder: Folder of the transform.
        minhash: The hash functions.
        min_similarity: Minimum share of equal hashes; None accepts every pair.
    """

    def __init__(self, folder: Path, minhash: MinHash, min_similarity: float | None = None) -> None:
        self.folder = Path(folder)
        self.minhash = minhash
        self.min_similarity = min_similarity

    def __call__(self, data: Iterable[Any] | None = None, rank: int = 0, world_size: int = 1) -> None:
        """Write the pairs of bucket `rank`."""
        table = DocumentTable(self.folder / "ids")
        shards = []
        for path, start in zip(sorted((self.folder / "keys").glob("*.places")), table.starts[:-1], strict=True):
            keys = map_array(path.with_suffix(".keys"), np.uint64).reshape(-1, self.minhash.num_buckets)
            shards.append((map_array(path, np.int64) + start, keys[:, rank]))
        with atomic_file(self.folder / "pairs" / f"{rank:05d}.pairs") as temporary, open(temporary, "wb") as file:
            for left, right in equal_pairs(shards):
                if self.min_similarity is not None:
                    alike = self._similar(left, right, table)
                    left, right = left[alike], right[alike]
                file.write(np.ascontiguousarray(np.stack([left, right], axis=1)).tobytes())

    def _similar(
        self, left: Int64Array, right: Int64Array, table: DocumentTable
    ) -> np.ndarray[Any, np.dtype[np.bool_]]:
        alike = np.empty(len(left), bool)
        for start in range(0, len(left), _PAIRS_AT_ONCE):
            chosen = slice(start, start + _PAIRS_AT_ONCE)
            equal = self._signatures(left[chosen], table) == self._signatures(right[chosen], table)
            alike[chosen] = equal.mean(axis=1) >= self.min_similarity
        return alike

    def _signatures(self, numbers: Int64Array, table: DocumentTable) -> np.ndarray[Any, np.dtype[np.uint32]]:
        rows = np.empty((len(numbers), self.minhash.num_hashes), np.uint32)
        ranks = np.searchsorted(table.starts, numbers, side="right") - 1
        for rank in np.unique(ranks):
            base = self.folder / "keys" / f"{rank:05d}"
            here = ranks == rank
            signatures = map_array(base.with_suffix(".signatures"), np.uint32).reshape(-1, self.minhash.num_hashes)
            positions = map_array(base.with_suffix(".places"), np.int64)
            rows[here] = signatures[np.searchsorted(positions, numbers[here] - table.starts[rank])]
        return rows


class FindClusters:
    """Pass 3: combine all pairs and write `findings/<rank>.findings`.

    Args:
        folder: Folder of the transform.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def __call__(self, data: Iterable[Any] | None = None, rank: int = 0, world_size: int = 1) -> None:
        """Write each shard's findings."""
        table = DocumentTable(self.folder / "ids")
        components = Components(table.num_documents)
        for path in sorted((self.folder / "pairs").glob("*.pairs")):
            pairs = map_array(path, np.int64).reshape(-1, 2)
            for start in range(0, len(pairs), _PAIRS_AT_ONCE):
                block = np.asarray(pairs[start : start + _PAIRS_AT_ONCE])
                components.connect(block[:, 0], block[:, 1])
        write_findings(self.folder / "findings", table, components)
