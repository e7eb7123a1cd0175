"""Files behind a URL, through fsspec: which there are, and a local copy of one while it is read."""

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from lit_gpt.atomic import remove_leftovers, whole_file
from lit_gpt.data.cache import check_disk_space, exclusive
from lit_gpt.errors import UserError

_WAITS_SECONDS = (1.0, 5.0, 20.0)


@dataclass(frozen=True)
class RemoteFile:
    """A shard.

    Attributes:
        url: Where it is, with its protocol.
        size: Bytes; 0 where the server does not say.
        local: Whether it is on a disk of this machine and read in place.
    """

    url: str
    size: int
    local: bool


def list_remote(url: str) -> list[RemoteFile]:
    """Lists the files that a URL names, sorted by name.

    Args:
        url: A file, a folder or a glob pattern, with or without protocol.

    Raises:
        UserError: if there are none, or the protocol needs a package that is not installed.
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
        RemoteFile(name if local else system.unstrip_protocol(name), int(info.get("size") or 0), local)
        for name, info in sorted(found.items())
        if info.get("type") != "directory" and not PurePosixPath(name).name.startswith(".")
    ]
    if not files:
        raise UserError(f"no file matches {url}; check the pattern (** crosses folders)")
    return files


def fetch(file: RemoteFile, cache_dir: Path) -> Path:
    """Returns a local path of the file, fetching it if it is not on this machine.

    Args:
        file: The file.
        cache_dir: Where the copy goes, below `shards/`.

    Raises:
        UserError: if it cannot be had after some tries, or the disk has no room.
    """
    if file.local:
        return Path(file.url)
    key = hashlib.sha256(f"{file.url} {file.size}".encode()).hexdigest()[:16]
    target = cache_dir / "shards" / f"{key}-{PurePosixPath(file.url).name}"
    with exclusive(target.with_name(f"{key}.lock"), f"fetching {file.url}"):
        if target.exists():
            return target
        remove_leftovers(target)
        check_disk_space(target.parent, file.size, f"fetching {file.url}")
        system, path = _system(file.url)
        for wait in (*_WAITS_SECONDS, None):
            try:
                with whole_file(target) as beside:
                    system.get_file(path, str(beside))
                break
            except (OSError, ValueError) as error:
                if wait is None or isinstance(error, FileNotFoundError | UserError):
                    raise UserError(
                        f"{file.url} cannot be fetched: {_reason(error)}; when it can be again, go on with "
                        "--ckpt_path last"
                    ) from error
                time.sleep(wait)
    return target


def forget(file: RemoteFile, path: Path) -> None:
    """Removes the copy that `fetch` made."""
    if not file.local:
        path.unlink(missing_ok=True)


def _system(url: str) -> tuple[Any, str]:
    """Returns fsspec's file system for a URL and the path in it."""
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(str(Path(url).expanduser()) if "://" not in url else url)
    except ImportError as error:  # fsspec says which package its protocol needs
        raise UserError(f"{url}: {error}; install that package beside lit_gpt") from error
    except ValueError as error:
        raise UserError(f"{url}: {_reason(error)}") from error
    return system, path


def _reason(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
