"""Document shards on disk: zstandard-compressed JSON lines, each file written atomically.

A folder of shards contains `00000.jsonl.zst`, `00001.jsonl.zst`, ... in corpus order; a line is `{"id", "text",
"metadata"}`. Shard r is the input of task r of the next pass.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import orjson
import zstandard
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from lit_gpt.atomic import atomic_file
from lit_gpt.data.pipeline.progress import TaskProgress
from lit_gpt.data.records.compression import open_bytes
from lit_gpt.errors import UserError

SUFFIX = ".jsonl.zst"
_LEVEL = 3


def shard_path(folder: Path, rank: int) -> Path:
    """Return the path of shard `rank`."""
    return folder / f"{rank:05d}{SUFFIX}"


def shard_paths(folder: Path) -> list[Path]:
    """List a folder's shards in order."""
    return sorted(path for path in folder.glob(f"*{SUFFIX}") if not path.name.startswith("."))


class Lines(Protocol):
    """Writer of JSON values, one per line."""

    def write(self, value: Any) -> None:
        """Append one line."""
        ...

    def write_encoded(self, line: bytes) -> None:
        """Append one line made by `encode_line`."""
        ...


def encode_line(value: Any) -> bytes:
    """Return a JSON value encoded as a line.

    Raises:
        TypeError: for values that JSON cannot represent: bytes, lone surrogates, integers beyond 64 bits.
    """
    return orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE)


class _ZstdLines:
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, value: Any) -> None:
        try:
            line = encode_line(value)
        except TypeError as error:
            raise UserError(
                f"document {value['id']}: a transform produced a value that is not JSON ({error}); fix the transform"
            ) from error
        self.write_encoded(line)

    def write_encoded(self, line: bytes) -> None:
        self._stream.write(line)


@contextmanager
def writing_lines(path: Path) -> Iterator[Lines]:
    """Write compressed JSON lines to `path`, which appears only when they are complete."""
    with atomic_file(path) as temporary, open(temporary, "wb") as file:
        with zstandard.ZstdCompressor(level=_LEVEL).stream_writer(file, closefd=False) as stream:
            yield _ZstdLines(stream)
        file.flush()


def read_lines(path: Path) -> Iterator[Any]:
    """Yield the values of compressed JSON lines, one line in memory at a time."""
    with open_bytes(path) as file:
        for line in file:
            yield orjson.loads(line)


def document_line(document: Document) -> dict[str, Any]:
    """Return the JSON value of a document."""
    return {"id": document.id, "text": document.text, "metadata": document.metadata}


class ReadDocuments(PipelineStep):
    """datatrove reader of a folder of shards: task r of n reads shards r, r + n, ... (with n shards: shard r).

    Args:
        folder: Folder of the shards.
        progress: Folder of the tasks' progress files; None writes none.
    """

    type = "📖 - READER"
    name = "document shards"

    def __init__(self, folder: Path, progress: Path | None = None) -> None:
        super().__init__()
        self.folder = Path(folder)
        self.progress = progress

    def run(self, data: Iterable[Document] | None = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield the documents of this task's shards, in order."""
        if data:
            yield from data
        with TaskProgress(self.progress, rank) as progress:
            for path in shard_paths(self.folder)[rank::world_size]:
                for line in read_lines(path):
                    document = Document(text=line["text"], id=line["id"], metadata=line["metadata"])
                    size = len(document.text)
                    self.stat_update("documents")
                    yield document
                    progress.advance(size)


class WriteDocuments(PipelineStep):
    """datatrove writer: task r writes the documents that reach it to shard r.

    Args:
        folder: Folder of the shards.
    """

    type = "💽 - WRITER"
    name = "document shards"

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = Path(folder)

    def run(self, data: Iterable[Document] | None = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Write the documents and pass them on."""
        with writing_lines(shard_path(self.folder, rank)) as lines:
            for document in data or ():
                lines.write(document_line(document))
                yield document
