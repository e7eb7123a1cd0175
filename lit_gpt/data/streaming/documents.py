"""Where a stream's documents come from, with a place for each at which reading can begin again."""

import dataclasses
import glob
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lit_gpt.data.documents import BadInput, Document
from lit_gpt.data.hub import HubDataset, HubSource
from lit_gpt.data.readers import read_file
from lit_gpt.data.sampler import hash_integers, permute
from lit_gpt.data.streaming.remote import RemoteFile, fetched, list_remote
from lit_gpt.errors import UserError
from lit_gpt.hashing import sha256_json


class DocumentStream(Protocol):
    """Documents in an order that is the same each time, pass after pass."""

    name: str
    """What messages and lineage call it."""

    def fingerprint(self) -> str:
        """Returns a hash of what is read and in which order."""
        ...

    def documents(self, epoch: int, place: Any, bad_input: BadInput) -> Iterator[tuple[Document, Any]]:
        """Yields the documents of one pass.

        Args:
            epoch: Number of the pass.
            place: Where to begin, as this function gave it with a document (a JSON value); None begins the pass.
            bad_input: Takes what cannot be read.

        Yields:
            A document, and the place that begins with it.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Returns what lineage keeps about it (JSON values)."""
        ...


class RemoteFiles:
    """Shards anywhere that fsspec reaches: `s3://`, `gs://`, `hf://`, `https://`, `memory://`, plain paths.

    A remote shard is fetched whole into the cache before it is read, and deleted when all streams that read it there
    have done so. Formats are those of local files: txt, jsonl, csv, parquet, also `.gz` and `.zst`.

    A shard is known by its name, its size and its version: the date of a local file (copy with `cp -p` or `rsync -a`
    to keep it), and what the server says of a remote one (a checksum, an ETag or a date).

    Args:
        urls: Files, folders or glob patterns.
        cache_dir: Where a shard is kept while it is read.
        text_field: Field or column that holds the text in jsonl, csv and parquet.
        document_separator: String at which plain text files are cut into documents.
        shuffle_shards: Read the shards of each pass in another order, which `seed` chooses.
        seed: Of that order.
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        cache_dir: Path,
        text_field: str = "text",
        document_separator: str | None = None,
        shuffle_shards: bool = True,
        seed: int = 0,
    ) -> None:
        self.urls = [urls] if isinstance(urls, str) else list(urls)
        self.name = ", ".join(self.urls)
        self.cache_dir = cache_dir
        self.text_field = text_field
        self.document_separator = document_separator
        self.shuffle_shards = shuffle_shards
        self.seed = seed
        self._files: list[RemoteFile] | None = None

    @property
    def files(self) -> list[RemoteFile]:
        """The shards, sorted by name; listed on first use."""
        if self._files is None:
            self._files = [file for url in self.urls for file in list_remote(url)]
        return self._files

    def fingerprint(self) -> str:
        """Returns a hash of the shards' names, sizes and versions and of how they are read."""
        listed = [[file.url, file.size, file.version] for file in self.files]
        order = [self.shuffle_shards, self.seed if self.shuffle_shards else None]
        return sha256_json(["remote", listed, self.text_field, self.document_separator, order])

    def documents(self, epoch: int, place: Any, bad_input: BadInput) -> Iterator[tuple[Document, Any]]:
        """Yields the documents of one pass; a place is [shard in the pass's order, documents before it in there]."""
        first_shard, first_document = place or (0, 0)
        order = np.arange(len(self.files))
        if self.shuffle_shards:
            order = permute(order, len(self.files), hash_integers(self.seed, epoch, 4))
        for shard in range(first_shard, len(self.files)):
            file = self.files[order[shard]]
            begin = first_document if shard == first_shard else 0
            with fetched(file, self.cache_dir) as path:
                found = read_file(path, file.url, bad_input, self.text_field, self.document_separator)
                for number, document in enumerate(islice(found, begin, None), start=begin):
                    yield document, [shard, number]

    def describe(self) -> dict[str, Any]:
        """Returns the patterns, and number and size of the shards."""
        size = sum(file.size for file in self.files)
        return {"kind": "remote", "name": self.name, "num_files": len(self.files), "file_bytes": size}


class HubStream:
    """A Hugging Face data set, streamed.

    Args:
        spec: Which data set; it is streamed whatever its `streaming` says. Pin `revision`: a data set of the hub is
            known by its description alone. Local files are known by size and date too.
        text_field: Column of the text where `spec` names none.
    """

    def __init__(self, spec: HubDataset, text_field: str = "text") -> None:
        self.spec = dataclasses.replace(spec, streaming=True)
        self.text_field = spec.text_field or text_field
        self.name = HubSource(self.spec).name

    def fingerprint(self) -> str:
        """Returns a hash of the description, and of names, sizes and dates of the local files that it names."""
        given = [self.spec.data_files] if isinstance(self.spec.data_files, str) else self.spec.data_files or []
        # Within a local folder every file counts; a builder's patterns may also be URLs or parts of a repository.
        patterns = [self.spec.path] if Path(self.spec.path).is_dir() else [url for url in given if "://" not in url]
        paths = sorted({path for pattern in patterns for path in [pattern, *glob.glob(pattern, recursive=True)]})
        files = [file for path in paths if os.path.exists(path) for file in list_remote(path)]
        versions = [[file.url, file.size, file.version] for file in files]
        return sha256_json(["hub stream", dataclasses.asdict(self.spec), self.text_field, versions])

    def documents(self, epoch: int, place: Any, bad_input: BadInput) -> Iterator[tuple[Document, Any]]:
        """Yields the documents of one pass, each in the data set's own order (`epoch` changes nothing).

        A place is what `IterableDataset.state_dict` gives, exact as long as nothing is shuffled, and the row's number.
        """
        dataset = HubSource(self.spec, self.text_field).load()  # a new one: the object carries a position
        columns = dataset.column_names
        if columns is not None:
            if self.text_field not in columns:
                names = ", ".join(map(repr, columns))
                raise UserError(f"{self.name}: no column {self.text_field!r}; its columns are {names} (set text_field)")
            dataset = dataset.select_columns([self.text_field])
        record = 0
        if place is not None:
            dataset.load_state_dict(place["state"])
            record = place["record"]
        rows = iter(dataset)
        while self.spec.max_documents is None or record < self.spec.max_documents:
            here = {"state": dataset.state_dict(), "record": record}
            row = next(rows, None)
            if row is None:
                return
            record += 1
            text = row.get(self.text_field)
            if isinstance(text, str):
                yield Document(text, self.name, record), here
            else:
                problem = f"the column {self.text_field!r} holds {type(text).__name__}, not text"
                bad_input.reject(f"{self.name}:{record}", problem)

    def describe(self) -> dict[str, Any]:
        """Returns the data set's description."""
        return {"kind": "hub stream", "name": self.name, **dataclasses.asdict(self.spec)}
