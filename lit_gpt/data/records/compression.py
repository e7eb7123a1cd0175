"""Open plain and compressed files as byte streams, and detect truncated compressed files."""

import bz2
import gzip
import io
import lzma
import zlib
from pathlib import Path
from typing import Any, BinaryIO, cast

DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError)
"""Exceptions raised for a damaged compressed stream (zstandard and bzip2 errors are converted to `EOFError` below)."""

COMPRESSED_SUFFIXES = (".gz", ".zst", ".bz2", ".xz")
_CHUNK_BYTES = 1 << 18
_MAX_WINDOW_BYTES = 1 << 31  # the largest window that zstandard's format can use (`zstd --ultra --long=31`)


class _ZstdReader(io.RawIOBase):
    """Decompresses frame after frame; the library's own reader takes a truncated file for a complete one."""

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
                # By default the library rejects windows over 128 MiB.
                self._frame = self._zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES).decompressobj()
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


class _Bz2Reader(io.RawIOBase):
    """Converts bzip2's `OSError: Invalid data stream`, which looks like a disk error, to `EOFError`."""

    def __init__(self, path: Path) -> None:
        self._file = bz2.open(path, "rb")  # noqa: SIM115 (closed in close)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            return self._file.readinto(buffer)
        except OSError as error:
            if error.errno is not None:
                raise
            raise EOFError(str(error)) from error

    def close(self) -> None:
        self._file.close()
        super().close()


def open_bytes(path: Path) -> BinaryIO:
    """Open a file for reading bytes, decompressing by its suffix: `.gz`, `.zst`, `.bz2` or `.xz`, case-insensitive."""
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    if suffix == ".zst":
        return cast(BinaryIO, io.BufferedReader(_ZstdReader(path), _CHUNK_BYTES))
    if suffix == ".bz2":
        return cast(BinaryIO, io.BufferedReader(_Bz2Reader(path), _CHUNK_BYTES))
    if suffix == ".xz":
        return cast(BinaryIO, lzma.open(path, "rb"))
    return open(path, "rb")


def is_compressed(path: Path) -> bool:
    """Return whether a file's suffix says that it is compressed."""
    return path.suffix.lower() in COMPRESSED_SUFFIXES


def inner_suffix(path: Path) -> str:
    """Return the lower-case suffix before that of the compression: `.jsonl` for `a.jsonl.gz` and `A.JSONL.GZ`."""
    return (Path(path.stem) if is_compressed(path) else path).suffix.lower()
