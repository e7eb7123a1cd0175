"""SHA-256 of files, cached by (path, size, modification time), so that an unchanged corpus is not read again."""

import contextlib
import hashlib
import json
import os
from pathlib import Path


def sha256_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's content, read in bounded memory."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: object) -> str:
    """Return the hexadecimal SHA-256 of a JSON value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class FileHashes:
    """Content hashes of files, cached on disk.

    The cache is an append-only file of JSON lines, with one short write per line, so that processes can share it
    without a lock; a truncated line is ignored, and losing the file costs only time.

    Args:
        path: Path of the cache file; None caches only in this process.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._known: dict[tuple[str, int, int], str] = {}
        if path is not None and path.exists():
            for line in path.read_bytes().splitlines():
                with contextlib.suppress(ValueError, TypeError):  # a truncated line, or an older format
                    name, size, modified_ns, digest = json.loads(line)
                    self._known[name, size, modified_ns] = digest

    @classmethod
    def of_cache(cls, cache_dir: Path) -> "FileHashes":
        """Return the hashes stored in a cache folder."""
        return cls(cache_dir / "file_hashes.jsonl")

    def sha256(self, path: Path) -> str:
        """Return the SHA-256 of the file's content, reading it only if its size or modification time has changed."""
        absolute = os.path.abspath(path)
        stat = os.stat(absolute)
        key = (absolute, stat.st_size, stat.st_mtime_ns)
        if key not in self._known:
            self._known[key] = sha256_file(path)
            if self._path is not None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with open(self._path, "ab", buffering=0) as file:
                    file.write(json.dumps([*key, self._known[key]]).encode() + b"\n")
        return self._known[key]
