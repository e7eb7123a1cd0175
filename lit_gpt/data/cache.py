"""The cache of prepared corpora and tokenizers: where it is, its locks and its atomic writes.

Two processes that want to make the same thing take turns by an operating system lock, which dies with its process.
"""

import contextlib
import fcntl
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lit_gpt.atomic import atomic_file
from lit_gpt.errors import UserError
from lit_gpt.pages.text import human_bytes


def default_cache_dir() -> Path:
    """`$LIT_GPT_CACHE`, else `$XDG_CACHE_HOME/lit_gpt`, else `~/.cache/lit_gpt`."""
    if own := os.environ.get("LIT_GPT_CACHE"):
        return Path(own).expanduser()
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg).expanduser() / "lit_gpt"
    return Path("~/.cache/lit_gpt").expanduser()


def make_cache_dir(path: Path) -> None:
    """Create the cache's folder if it is missing.

    Raises:
        UserError: if it cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cache_dir {path} cannot be made ({error.strerror}); set it (or LIT_GPT_CACHE) to a folder that can be "
            "written"
        ) from error


def say(line: str) -> None:
    """Print one line for the user on stderr, where the progress bars are."""
    print(line, file=sys.stderr, flush=True)


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader finds the old content or the whole new one."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically and with the same bytes for the same value."""
    write_atomic(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


@contextlib.contextmanager
def exclusive(path: Path, purpose: str, announce: bool = True) -> Iterator[None]:
    """Hold the lock file `path`; another process that holds it is waited for.

    Args:
        path: Lock file; created if missing, never removed (removing it would let two processes in).
        purpose: What the holder does, for the line that the waiting process prints.
        announce: Whether it prints that line.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if announce:
                say(f"another process is {purpose}; waiting for it ({path})")
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            # Closing the file is not enough: a worker that was forked meanwhile holds it open too.
            fcntl.flock(file, fcntl.LOCK_UN)


def check_disk_space(
    folder: Path, needed_bytes: int, purpose: str, remedy: str = "set cache_dir (or LIT_GPT_CACHE) to a larger disk"
) -> None:
    """Refuse to begin what would not fit.

    Args:
        folder: Where it would be written; it need not exist yet.
        needed_bytes: Estimate of what will be written.
        purpose: What the space is for.
        remedy: What the user can do besides freeing space.

    Raises:
        UserError: if fewer than `needed_bytes` are free.
    """
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if needed_bytes > free:
        raise UserError(
            f"{purpose} needs about {human_bytes(needed_bytes)} in {folder}, and {human_bytes(free)} are free; "
            f"free some space, or {remedy}"
        )
