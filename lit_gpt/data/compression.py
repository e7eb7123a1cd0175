"""Opens plain, gzip and zstandard files as one kind of byte stream, and notices when a compressed one is cut off."""

import gzip
import io
import zlib
from pathlib import Path
from typing import Any, BinaryIO, cast

DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error)
"""What a damaged compressed stream raises (a zstandard one is turned into `EOFError` below)."""

COMPRESSED_SUFFIXES = (".gz", ".zst")
_CHUNK_BYTES = 1 << 18


class _ZstdReader(io.RawIOBase):
    """Decompresses frame after frame; the library's own reader takes a truncated file for a finished one."""

    def __init__(self, path: Path) -> None:
        import zstandard

        self._zstandard = zstandard
        self._file = open(path, "rb")  # noqa: SIM115 (closed in close)
        self._frame: Any = None
        self._ready = memoryview(b"")
        self._pending = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            data = self._pending or self._file.read(_CHUNK_BYTES)
            self._pending = b""
            if not data:
                if self._frame is not None:
                    raise EOFError("the last zstandard frame is cut off")
                return 0
            if self._frame is None:
                self._frame = self._zstandard.ZstdDecompressor().decompressobj()
            try:
                self._ready = memoryview(self._frame.decompress(data))
            except self._zstandard.ZstdError as error:
                raise EOFError(str(error)) from error
            if self._frame.eof:
                self._pending = self._frame.unused_data
                self._frame = None
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def open_bytes(path: Path) -> BinaryIO:
    """Opens a file for reading bytes, decompressing by its suffix (`.gz`, `.zst`)."""
    if path.suffix == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    if path.suffix == ".zst":
        return cast(BinaryIO, io.BufferedReader(_ZstdReader(path), _CHUNK_BYTES))
    return open(path, "rb")


def inner_suffix(path: Path) -> str:
    """Returns the lower-case suffix below a compression's: `.jsonl` for `a.jsonl.gz`."""
    return (Path(path.stem) if path.suffix in COMPRESSED_SUFFIXES else path).suffix.lower()
