"""Token corpus on disk, and the reader that presents a split as a circular stream.

    <corpus>/manifest.json          written last: a folder without it is not a corpus
             sources.json           names of the sources, by index
             byte_lengths.bin       int64 number of text bytes of each token
             train/tokens-00000.bin little-endian uint16 or uint32 ids
             train/documents-00000.bin  one DOCUMENT record per document, in order
             val/...  test/...

A document is a separator followed by its tokens. The separator gives the first token a context from which to be
predicted, and teaches the model where the previous document ends. Shards end at a document boundary.
"""

import json
from bisect import bisect_right
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from lit_gpt.data.records import SPLITS, SplitName
from lit_gpt.errors import UserError
from lit_gpt.hashing import sha256_file, sha256_json

FORMAT = "lit_gpt.tokens"
FORMAT_VERSION = 1

DOCUMENT = np.dtype(
    [
        ("offset", "<u8"),  # token index of its separator in the shard
        ("num_bytes", "<u8"),  # UTF-8 bytes of its text
        ("record", "<u8"),  # line or row in the source, from 1; 0: the source is a single document
        ("source", "<u4"),  # index into sources.json
        ("sha256", "u1", (16,)),  # the first half of its text's hash
    ]
)
_MAX_OPEN_SHARDS = 256


@dataclass(frozen=True)
class Shard:
    """A pair of files: tokens, and the records of the documents in them.

    Attributes:
        tokens: Path of the token file, relative to the corpus.
        documents: Path of the file of document records, relative to the corpus.
        num_tokens: Number of tokens, including separators.
        num_documents: Number of documents.
        num_bytes: UTF-8 bytes of their texts.
        sha256: SHA-256 of the token file.
        documents_sha256: SHA-256 of the file of document records.
    """

    tokens: str
    documents: str
    num_tokens: int
    num_documents: int
    num_bytes: int
    sha256: str
    documents_sha256: str


@dataclass(frozen=True)
class DocumentSpan:
    """Position of a document in its split's stream, and its origin.

    Attributes:
        start: Position of its separator in the stream.
        num_tokens: Number of tokens after the separator.
        num_bytes: UTF-8 bytes of its text.
        source: Name of its source.
        record: Line or row in the source, from 1; 0 if the source is a single document.
        sha256: First 32 hexadecimal digits of its text's SHA-256.
    """

    start: int
    num_tokens: int
    num_bytes: int
    source: str
    record: int
    sha256: str


class TokenSplit:
    """One split of a corpus: a circular stream of tokens over memory-mapped shards.

    It can be pickled (the shards are mapped again after unpickling) and shared with forked workers.
    """

    def __init__(self, folder: Path, name: SplitName, dtype: str, shards: list[Shard]) -> None:
        self.folder = folder
        self.name = name
        self.dtype = np.dtype(dtype)
        self.shards = shards
        self._token_ends = list(accumulate(shard.num_tokens for shard in shards))
        self._document_ends = list(accumulate(shard.num_documents for shard in shards))
        self._maps: OrderedDict[str, np.ndarray] = OrderedDict()
        self.num_tokens = self._token_ends[-1] if shards else 0
        self.num_documents = self._document_ends[-1] if shards else 0
        self.num_bytes = sum(shard.num_bytes for shard in shards)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the tokens, independent of the corpus's location."""
        return sha256_json([self.dtype.str, [shard.sha256 for shard in self.shards]])

    def read(self, start: int, length: int) -> np.ndarray:
        """Return `length` tokens starting at position `start`, wrapping around at the end.

        Args:
            start: Position in the stream, at least 0; taken modulo its length.
            length: Number of tokens, at most the length of the stream.

        Returns:
            (length,) uint16 or uint32; a view of the memory map if a single shard contains them all.
        """
        start %= self.num_tokens
        index = bisect_right(self._token_ends, start)
        shard_end = self._token_ends[index]
        shard = self.shards[index]
        begin = start - shard_end + shard.num_tokens
        tokens = self._map(shard.tokens, self.dtype)[begin : begin + length]
        if len(tokens) == length:
            return tokens
        parts = [tokens]
        missing = length - len(tokens)
        while missing:
            index = (index + 1) % len(self.shards)
            parts.append(self._map(self.shards[index].tokens, self.dtype)[:missing])
            missing -= len(parts[-1])
        return np.concatenate(parts)

    def document(self, index: int) -> DocumentSpan:
        """Return the span of document `index`, counted from 0 within the split."""
        if not 0 <= index < self.num_documents:
            raise IndexError(f"document {index} of {self.num_documents}")
        number = bisect_right(self._document_ends, index)
        shard = self.shards[number]
        position = index - self._document_ends[number] + shard.num_documents
        records = self._map(shard.documents, DOCUMENT)
        record = records[position]
        offset = int(record["offset"])
        end = int(records[position + 1]["offset"]) if position + 1 < len(records) else shard.num_tokens
        return DocumentSpan(
            start=self._token_ends[number] - shard.num_tokens + offset,
            num_tokens=end - offset - 1,
            num_bytes=int(record["num_bytes"]),
            source=self.source_names[int(record["source"])],
            record=int(record["record"]),
            sha256=record["sha256"].tobytes().hex(),
        )

    def document_at(self, position: int) -> int:
        """Return the index of the document that contains the token at `position` of the stream."""
        position %= self.num_tokens
        number = bisect_right(self._token_ends, position)
        shard = self.shards[number]
        offsets = self._map(shard.documents, DOCUMENT)["offset"]
        inside = position - self._token_ends[number] + shard.num_tokens
        index = int(np.searchsorted(offsets, inside, side="right")) - 1
        return self._document_ends[number] - shard.num_documents + index

    def document_lengths(self) -> np.ndarray:
        """Return the number of tokens of every document, without separators: (num_documents,) int64."""
        lengths = [np.empty(0, dtype=np.int64)]
        for shard in self.shards:
            offsets = self._map(shard.documents, DOCUMENT)["offset"].astype(np.int64)
            lengths.append(np.diff(offsets, append=shard.num_tokens) - 1)
        return np.concatenate(lengths)

    @cached_property
    def source_names(self) -> list[str]:
        """Names of the corpus's sources."""
        names: list[str] = json.loads((self.folder / "sources.json").read_bytes())
        return names

    def _map(self, name: str, dtype: np.dtype[Any]) -> np.ndarray:
        array = self._maps.get(name)
        if array is None:
            array = np.memmap(self.folder / name, dtype=dtype, mode="r").view(np.ndarray)
            self._maps[name] = array
            if len(self._maps) > _MAX_OPEN_SHARDS:  # each map keeps a file descriptor open
                self._maps.popitem(last=False)
        return array

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_maps": OrderedDict()}


class TokenCorpus:
    """A prepared corpus.

    Args:
        path: Folder of the corpus.

    Raises:
        UserError: if the corpus is incomplete: no manifest, another format version, a file missing or of the wrong
            size.

    Attributes:
        manifest: Contents of `manifest.json`.
        vocab_size: Number of token ids of the tokenizer that made it.
        separator_id: Token at the start of each document.
        fingerprint: Hash of all tokens and the tokenizer.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.manifest: dict[str, Any] = json.loads((path / "manifest.json").read_bytes())
        except FileNotFoundError:
            raise UserError(f"{path} is not a prepared corpus: it has no manifest.json; prepare it first") from None
        except ValueError as error:
            raise UserError(
                f"{path / 'manifest.json'} is damaged ({error}); delete the folder {path} and prepare it again"
            ) from error
        version = (self.manifest.get("format"), self.manifest.get("version"))
        if version != (FORMAT, FORMAT_VERSION):
            raise UserError(f"{path} is in format {version}, expected {(FORMAT, FORMAT_VERSION)}; prepare it again")
        self.vocab_size: int = self.manifest["vocab_size"]
        self.separator_id: int = self.manifest["separator_id"]
        self.fingerprint: str = self.manifest["fingerprint"]
        self._splits: dict[SplitName, TokenSplit] = {
            name: TokenSplit(path, name, self.manifest["dtype"], [Shard(**s) for s in self.manifest["splits"][name]])
            for name in SPLITS
        }
        for file, size in self._expected_sizes().items():
            found = (path / file).stat().st_size if (path / file).exists() else None
            if found != size:
                raise UserError(f"{path / file} is damaged: {found} bytes instead of {size}; delete the folder {path}")

    def split(self, name: SplitName) -> TokenSplit:
        """Return one split; it may be empty."""
        return self._splits[name]

    @cached_property
    def byte_lengths(self) -> np.ndarray:
        """(vocab_size,) int64: number of UTF-8 bytes of each token's text, 0 for special tokens."""
        return np.fromfile(self.path / "byte_lengths.bin", dtype="<i8")

    def verify(self) -> None:
        """Read every file again and compare its SHA-256.

        Raises:
            UserError: naming the first file that differs.
        """
        for split in self._splits.values():
            for shard in split.shards:
                for file, digest in ((shard.tokens, shard.sha256), (shard.documents, shard.documents_sha256)):
                    if sha256_file(self.path / file) != digest:
                        raise UserError(
                            f"{self.path / file} is damaged: its content has changed since it was written; "
                            "prepare it again"
                        )

    def lineage(self) -> dict[str, Any]:
        """Return how the corpus was made: its sources, tokenizer, split sizes and hashes (JSON values)."""
        splits = {
            name: {
                "documents": split.num_documents,
                "tokens": split.num_tokens,
                "bytes": split.num_bytes,
                "sha256": split.fingerprint,
            }
            for name, split in self._splits.items()
        }
        recorded = ("key", "sources", "tokenizer", "val_fraction", "test_fraction", "num_skipped", "num_empty")
        return {
            "path": str(self.path),
            "fingerprint": self.fingerprint,
            "splits": splits,
            **{key: self.manifest[key] for key in recorded},
        }

    def _expected_sizes(self) -> dict[str, int]:
        sizes = {"byte_lengths.bin": 8 * self.vocab_size}
        for split in self._splits.values():
            for shard in split.shards:
                sizes[shard.tokens] = shard.num_tokens * split.dtype.itemsize
                sizes[shard.documents] = shard.num_documents * DOCUMENT.itemsize
        return sizes
