"""The kinds of source in one place: files (`files.py`), Hugging Face data sets (`hub.py`), and any Python iterable."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from lit_gpt.data.documents import BadInput, Document, Source, SplitName
from lit_gpt.data.files import FileSource, expand_files
from lit_gpt.data.hub import HubDataset, HubSource
from lit_gpt.errors import UserError
from lit_gpt.hashing import FileHashes, sha256_json

__all__ = [
    "FileSource",
    "HubDataset",
    "HubSource",
    "IterableSource",
    "Source",
    "corpus_fingerprint",
    "expand_files",
    "total_bytes",
]


class IterableSource:
    """Documents from a Python function.

    Args:
        make_documents: Called for each pass; returns the texts (or `Document`s), each time the same ones.
        name: What messages and lineage call it.
        version: Changes when the documents do. Without it a pass over all of them finds their hash.
        split: Split that all documents go to; None decides each by its hash.

    Example:
        >>> source = IterableSource(lambda: ["one text", "another"], name="two texts")
        >>> [document.text for document in source.documents(BadInput())]
        ['one text', 'another']
    """

    def __init__(
        self,
        make_documents: Callable[[], Iterable[str | Document]],
        name: str,
        version: str | None = None,
        split: SplitName | None = None,
    ) -> None:
        self._make_documents = make_documents
        self._fingerprint: str | None = None
        self.name = name
        self.version = version
        self.split: SplitName | None = split

    def fingerprint(self, hashes: FileHashes) -> str:
        """Returns the hash of `version`, or else of every text."""
        if self._fingerprint is None:
            content = self.version
            if content is None:
                digest = hashlib.sha256()
                for document in self.documents(BadInput()):
                    for part in (document.source, document.text):
                        raw = part.encode("utf-8", "surrogatepass")
                        digest.update(len(raw).to_bytes(8, "little") + raw)
                content = digest.hexdigest()
            self._fingerprint = sha256_json(["iterable", self.name, content, self.split])
        return self._fingerprint

    def num_bytes(self) -> int | None:
        """Returns None: nobody knows before reading."""
        return None

    def documents(self, bad_input: BadInput) -> Iterator[Document]:
        """Yields the function's documents, numbered from 1 where they are plain texts."""
        for record, item in enumerate(self._make_documents(), start=1):
            if isinstance(item, Document):
                yield item
            elif isinstance(item, str):
                yield Document(item, self.name, record)
            else:
                raise UserError(f"{self.name}:{record} is a {type(item).__name__}; yield str or Document")

    def describe(self) -> dict[str, Any]:
        """Returns name and version."""
        return {"kind": "iterable", "name": self.name, "version": self.version}


def corpus_fingerprint(sources: Iterable[Source], hashes: FileHashes) -> str:
    """Returns the hash of all documents that the sources hold, in order."""
    return sha256_json([source.fingerprint(hashes) for source in sources])


def total_bytes(sources: Iterable[Source]) -> int | None:
    """Estimates the text's bytes in all sources; None if one of them does not know."""
    sizes = [source.num_bytes() for source in sources]
    return None if None in sizes else sum(size for size in sizes if size is not None)
