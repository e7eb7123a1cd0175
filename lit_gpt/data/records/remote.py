"""Read records from remote files through fsspec: list the files, and keep a local copy of each while it is read."""

import contextlib
import datetime
import fcntl
import hashlib
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from lit_gpt.atomic import atomic_file, remove_leftovers
from lit_gpt.data.cache import check_disk_space, print_status
from lit_gpt.data.records.formats import FileFormat
from lit_gpt.data.records.record import BadInput, Record
from lit_gpt.data.records.source import FORMAT_VERSION, FileRecords, Part
from lit_gpt.errors import UserError
from lit_gpt.hashing import FileHashes, sha256_json

_WAITS_SECONDS = (1.0, 5.0, 20.0)
_CHECKSUMS = ("checksum", "md5hash", "contentmd5", "md5", "sha", "blobid", "xethash", "crc32c", "crc", "digest", "etag")
_DATES = ("generation", "lastmodified", "updated", "mtime", "modified", "modificationtime", "modify", "created")
_VERSIONS = _CHECKSUMS + _DATES
"""Lower-case keys under which fsspec file systems report a version of a file, the most reliable first."""


@dataclass(frozen=True)
class RemoteFile:
    """A file, possibly remote.

    Attributes:
        url: URL with its protocol.
        size: Size in bytes; 0 if the server does not report it.
        version: Value that changes with the content: modification time, checksum or ETag; empty if the server has none.
        local: Whether it is on a disk of this machine and read in place.
    """

    url: str
    size: int
    version: str
    local: bool


class RemoteRecords(FileRecords):
    """Files in any location supported by fsspec: `s3://`, `gs://`, `hf://`, `https://`, `memory://`, plain paths.

    A remote file is downloaded completely into the cache before it is read, and deleted when all streams that read it
    there have finished. A file is identified by its name, size and version: the date of a local file (copy with `cp -p`
    or `rsync -a` to keep it), and for a remote one a checksum, ETag or date from the server.

    Args:
        urls: Files, folders or glob patterns.
        cache_dir: Folder in which a copy is stored while it is read.
        text_field: Field with the text of a record.
        document_separator: String at which plain text files are split into records.
        format: Encoding, quoting and delimiter of the files.
    """

    kind = "remote"

    def __init__(
        self,
        urls: str | Sequence[str],
        cache_dir: Path,
        text_field: str = "text",
        document_separator: str | None = None,
        format: FileFormat | None = None,
    ) -> None:
        self.urls = [urls] if isinstance(urls, str) else list(urls)
        super().__init__(self.urls, text_field, document_separator, name=", ".join(self.urls), format=format)
        self.cache_dir = cache_dir
        self._remote: list[RemoteFile] | None = None

    @property
    def remote_files(self) -> list[RemoteFile]:
        """Files, sorted by name; listed on first use."""
        if self._remote is None:
            self._remote = [file for url in self.urls for file in list_remote(url)]
        return self._remote

    def parts(self) -> Iterator[Part]:
        """Yield the files."""
        for number, file in enumerate(self.remote_files):
            yield Part(file.url, number, [file.size, file.version], file.size, None)

    def read(self, spec: Any, bad_input: BadInput, columns: Sequence[str] | None = None) -> Iterator[Record]:
        """Yield the records of one file, from a temporary local copy if it is remote."""
        file = self.remote_files[spec]
        with fetched(file, self.cache_dir) as path:
            yield from self.read_file(file.url, path, bad_input, columns)

    def records(self, bad_input: BadInput, columns: Sequence[str] | None = None) -> Iterator[Record]:
        """Yield all records, file by file."""
        for part in self.parts():
            yield from self.read(part.spec, bad_input, columns)

    def num_bytes(self) -> int:
        """Estimate the UTF-8 bytes of all texts from the files' sizes."""
        return sum(file.size for file in self.remote_files)

    def fingerprint(self, hashes: FileHashes) -> str:
        """Return a hash of the files' names, sizes and versions and of how they are read."""
        listed = [[file.url, file.size, file.version] for file in self.remote_files]
        return sha256_json([self.kind, FORMAT_VERSION, listed, *self.reading_key()])

    def describe(self) -> dict[str, Any]:
        """Return the patterns and the number and total size of the files."""
        size = sum(file.size for file in self.remote_files)
        return {"kind": self.kind, "name": self.name, "num_files": len(self.remote_files), "file_bytes": size}


def list_remote(url: str) -> list[RemoteFile]:
    """List the files that a URL names, sorted by name.

    Args:
        url: A file, a folder or a glob pattern, with or without protocol.

    Raises:
        UserError: if there are no files, or the protocol needs a package that is not installed.
    """
    system, path = _system(url)
    try:
        if any(character in path for character in "*?["):
            found = system.glob(path, detail=True)
        elif system.isdir(path):
            found = system.find(path, detail=True)
        else:
            found = {path: system.info(path)}
    except (OSError, ValueError) as error:
        raise UserError(f"{url} cannot be listed: {_reason(error)}") from error
    local = "file" in ([system.protocol] if isinstance(system.protocol, str) else system.protocol)
    files = [
        _local_file(name) if local else _remote_file(system, name, info)
        for name, info in sorted(found.items())
        if info.get("type") != "directory" and not PurePosixPath(name).name.startswith(".")
    ]
    if not files:
        raise UserError(f"no file matches {url}; check the pattern (** crosses folders)")
    unknown = [file.url for file in files if not file.version]
    if unknown:
        warnings.warn(
            f"{len(unknown)} shards of {url} have no checksum, ETag or date, such as {unknown[0]}: a change that keeps "
            "the size would go unnoticed, and training would use the cached version; give a changed shard a new name",
            stacklevel=2,
        )
    return files


def _local_file(name: str) -> RemoteFile:
    try:
        stat = os.stat(name)
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror}; fix it, or leave it out of the pattern") from error
    return RemoteFile(name, stat.st_size, str(stat.st_mtime_ns), True)


def _remote_file(system: Any, name: str, listed: Mapping[str, Any]) -> RemoteFile:
    info = listed if _version(listed) else {**listed, **_query(system, name)}
    return RemoteFile(system.unstrip_protocol(name), int(info.get("size") or 0), _version(info), False)


def _version(info: Mapping[str, Any]) -> str:
    """Return the value that identifies a version of the file; empty if its file system reports none."""
    values = {name.lower().replace("-", "").replace("_", ""): value for name, value in info.items()}
    for name in _VERSIONS:
        if value := values.get(name):
            # Some file systems return a date sometimes as a datetime and sometimes as a number.
            return f"{name} {value.timestamp() if isinstance(value, datetime.datetime) else value}"
    return ""


def _query(system: Any, name: str) -> dict[str, Any]:
    """Return the information on a single file, which may be more than a listing has (a web server lists only names)."""
    protocols = [system.protocol] if isinstance(system.protocol, str) else system.protocol
    more = {"expand_info": True} if "hf" in protocols else {}
    with contextlib.suppress(OSError, ValueError):
        return dict(system.info(name, **more))
    return {}


@contextlib.contextmanager
def fetched(file: RemoteFile, cache_dir: Path) -> Iterator[Path]:
    """Yield a local path of the file, downloading it if necessary, and keep it there while it is read.

    Readers of the copy hold a shared lock; it is downloaded and deleted under an exclusive lock. So streams that share
    a cache also share a copy, and the last one that has read it to its end deletes it. If reading ends early, the copy
    is kept, so that a resumed stream can continue with it.

    Args:
        file: The file.
        cache_dir: Cache folder; the copy goes below its `shards/`.

    Yields:
        The path.

    Raises:
        UserError: if it cannot be downloaded after several attempts, or the disk is full.
    """
    if file.local:
        yield Path(file.url)
        return
    key = hashlib.sha256(f"{file.url} {file.size} {file.version}".encode()).hexdigest()[:16]
    target = cache_dir / "shards" / f"{key}-{PurePosixPath(file.url).name}"
    target.parent.mkdir(parents=True, exist_ok=True)
    process = os.getpid()
    with open(target.with_name(f"{key}.lock"), "a+") as lock:
        _take_shared(lock, f"fetching {file.url}")
        while not target.exists():
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not target.exists():
                _fetch(file, target)
            # Between releasing one lock and taking the other, another stream may have finished and deleted the copy.
            fcntl.flock(lock, fcntl.LOCK_SH)
        try:
            yield target
            with contextlib.suppress(BlockingIOError):  # another stream is reading it
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                target.unlink(missing_ok=True)
        finally:
            # A forked worker shares this lock with its parent: closing the file does not release it here, and must not
            # release it there.
            if os.getpid() == process:
                fcntl.flock(lock, fcntl.LOCK_UN)


def _take_shared(lock: IO[str], purpose: str) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        print_status(f"another stream is {purpose}; waiting for it ({lock.name})")
        fcntl.flock(lock, fcntl.LOCK_SH)


def _fetch(file: RemoteFile, target: Path) -> None:
    remove_leftovers(target)
    check_disk_space(target.parent, file.size, f"fetching {file.url}")
    system, path = _system(file.url)
    for wait in (*_WAITS_SECONDS, None):
        try:
            with atomic_file(target) as temporary:
                system.get_file(path, str(temporary))
            return
        except (OSError, ValueError) as error:
            if wait is None or isinstance(error, FileNotFoundError | UserError):
                raise UserError(
                    f"{file.url} cannot be fetched: {_reason(error)}; later resume with --ckpt_path last"
                ) from error
            time.sleep(wait)


def _system(url: str) -> tuple[Any, str]:
    """Return fsspec's file system for a URL and the path in it."""
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(str(Path(url).expanduser()) if "://" not in url else url)
    except ImportError as error:  # the message names the package that the protocol needs
        raise UserError(f"{url}: {error}; install that package, too") from error
    except ValueError as error:
        raise UserError(f"{url}: {_reason(error)}") from error
    return system, path


def _reason(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
