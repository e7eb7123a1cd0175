"""Documents of an endless stream, each with a position at which reading can restart."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from lit_gpt.data.records import BadInput, Document, RecordSource
from lit_gpt.data.sampler import hash_integers, permute
from lit_gpt.hashing import FileHashes, sha256_json


class DocumentStream:
    """Documents of a source in a reproducible order, pass after pass.

    Args:
        source: Source of the documents.
        shuffle_parts: Whether to shuffle the parts (files, shards) in each pass, depending on `seed`.
        seed: Seed of that order.
    """

    def __init__(self, source: RecordSource, shuffle_parts: bool = False, seed: int = 0) -> None:
        self.source = source
        self.name = source.name
        self.shuffle_parts = shuffle_parts
        self.seed = seed

    def fingerprint(self) -> str:
        """Return a hash of what is read and in which order."""
        order = [self.shuffle_parts, self.seed if self.shuffle_parts else None]
        return sha256_json(["stream", self.source.fingerprint(FileHashes()), order])

    def documents(self, epoch: int, place: Any, bad_input: BadInput) -> Iterator[tuple[Document, Any]]:
        """Yield the documents of one pass, each with the position of its start.

        Args:
            epoch: Index of the pass.
            place: Start position, as yielded by this function (a JSON value): [part in the pass's order, position in
                that part]. None starts at the beginning of the pass.
            bad_input: Collects input that cannot be read.
        """
        first_part, first_place = place or (0, None)
        parts = list(self.source.parts())
        order = np.arange(len(parts))
        if self.shuffle_parts:
            order = permute(order, len(parts), hash_integers(self.seed, epoch, 4))
        text = self.source.text
        for number in range(first_part, len(parts)):
            begin = first_place if number == first_part else None
            records = self.source.read_from(parts[order[number]].spec, begin, bad_input, text.columns)
            for record, here in records:
                document = text.document(record, bad_input)
                if document is not None:
                    yield document, [number, here]

    def describe(self) -> dict[str, Any]:
        """Return what lineage records about it (JSON values)."""
        return self.source.describe()
