"""Write the shards of one split so that a killed process leaves only finished shards behind.

For each shard, tokens and document records go to `.tmp-` files. When the shard is full, these are synced and renamed,
and then `shard-NNNNN.json` is written, which marks the shard as finished and records the number of the next document. A
restart keeps the unbroken sequence of finished shards and deletes everything else.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lit_gpt.atomic import TEMPORARY, fsync
from lit_gpt.data.cache import write_json
from lit_gpt.data.shards import DOCUMENT, Shard

SHARD_TOKENS = 1 << 25
"""A shard is finished after the document with which it reaches this many tokens (64 MB of uint16)."""


@dataclass(frozen=True)
class Finished:
    """A finished shard, and the number (over all splits) of the first document after it."""

    shard: Shard
    next_document: int


def finished_shards(folder: Path, itemsize: int) -> list[Finished]:
    """Return the split's unbroken sequence of finished shards, and delete every other file in its folder.

    Args:
        folder: The split's folder, created if missing.
        itemsize: Bytes per token.
    """
    folder.mkdir(parents=True, exist_ok=True)
    done: list[Finished] = []
    keep: set[str] = set()
    while (finished := _read_finished(folder, len(done), itemsize)) is not None:
        keep |= {
            f"shard-{len(done):05}.json",
            *(Path(n).name for n in (finished.shard.tokens, finished.shard.documents)),
        }
        done.append(finished)
    for path in folder.iterdir():
        if path.name not in keep:
            path.unlink()
    return done


def remove_progress_records(folder: Path) -> None:
    """Remove a split's records of finished shards, once the manifest lists the shards."""
    for path in folder.glob("shard-*.json"):
        path.unlink(missing_ok=True)


def _read_finished(folder: Path, number: int, itemsize: int) -> Finished | None:
    try:
        state = json.loads((folder / f"shard-{number:05}.json").read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    shard = Shard(**state["shard"])
    sizes = {shard.tokens: shard.num_tokens * itemsize, shard.documents: shard.num_documents * DOCUMENT.itemsize}
    for name, size in sizes.items():
        path = folder.parent / name
        if not path.exists() or path.stat().st_size != size:
            return None
    return Finished(shard, state["next_document"])


class _HashedFile:
    """A file that is written under a temporary name and hashed while it is written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._temporary = path.with_name(TEMPORARY + path.name)
        self._file: BinaryIO = open(self._temporary, "wb", buffering=1 << 20)  # noqa: SIM115 (closed in finish, abandon)
        self._digest = hashlib.sha256()

    def write(self, array: np.ndarray) -> None:
        data = array.tobytes()
        self._file.write(data)
        self._digest.update(data)

    def finish(self) -> str:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._temporary, self.path)
        return self._digest.hexdigest()

    def abandon(self) -> None:
        with contextlib.suppress(OSError):  # closing flushes, which fails again on a full disk
            self._file.close()
        self._temporary.unlink(missing_ok=True)


class SplitWriter:
    """Writes documents, in order, into the shards of one split.

    Args:
        folder: The split's folder below the corpus.
        dtype: Token dtype, little-endian.
        shard_tokens: Number of tokens at which a shard is finished.

    Attributes:
        finished: Complete shards on disk, including those of an earlier run.
    """

    def __init__(self, folder: Path, dtype: np.dtype[Any], shard_tokens: int = SHARD_TOKENS) -> None:
        self._folder = folder
        self._dtype = dtype
        self._shard_tokens = shard_tokens
        self._open: tuple[_HashedFile, _HashedFile] | None = None
        self._num_tokens = self._num_documents = self._num_bytes = self._next_document = 0
        self.finished = finished_shards(folder, dtype.itemsize)

    @property
    def next_document(self) -> int:
        """Number of the first document that is not in a finished shard."""
        return self.finished[-1].next_document if self.finished else 0

    def add(self, tokens: np.ndarray, num_bytes: int, source: int, record: int, sha256: bytes, number: int) -> None:
        """Append one document.

        Args:
            tokens: (n,) token ids, starting with the separator.
            num_bytes: UTF-8 bytes of the text.
            source: Index of the source.
            record: Line or row in the source.
            sha256: SHA-256 of the text.
            number: Number of the document over all splits.
        """
        if self._open is None:
            names = (f"{kind}-{len(self.finished):05}.bin" for kind in ("tokens", "documents"))
            tokens_path, documents_path = (self._folder / name for name in names)
            self._open = (_HashedFile(tokens_path), _HashedFile(documents_path))
        tokens_file, documents_file = self._open
        entry = np.zeros(1, dtype=DOCUMENT)
        entry["offset"], entry["num_bytes"] = self._num_tokens, num_bytes
        entry["record"], entry["source"] = record, source
        entry["sha256"] = np.frombuffer(sha256[:16], dtype="u1")
        tokens_file.write(tokens.astype(self._dtype, copy=False))
        documents_file.write(entry)
        self._num_tokens += len(tokens)
        self._num_documents += 1
        self._num_bytes += num_bytes
        self._next_document = number + 1
        if self._num_tokens >= self._shard_tokens:
            self.finish_shard()

    def finish_shard(self) -> None:
        """Complete the open shard on disk, if there is one."""
        if self._open is None:
            return
        digests = [file.finish() for file in self._open]
        fsync(self._folder)
        tokens_name, documents_name = (f"{self._folder.name}/{file.path.name}" for file in self._open)
        shard = Shard(
            tokens_name, documents_name, self._num_tokens, self._num_documents, self._num_bytes, digests[0], digests[1]
        )
        done = Finished(shard, self._next_document)
        write_json(self._folder / f"shard-{len(self.finished):05}.json", dataclasses.asdict(done))
        self.finished.append(done)
        self._open = None
        self._num_tokens = self._num_documents = self._num_bytes = 0

    def abandon(self) -> None:
        """Remove the unfinished shard."""
        for file in self._open or ():
            file.abandon()
        self._open = None
