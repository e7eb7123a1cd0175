"""Writing prepared corpora and tokenizers to the cache: locks and atomic writes.

Processes that want to create the same entry take turns through an operating system lock, which is released when its
process dies.
"""

import contextlib
import fcntl
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lit_gpt.atomic import atomic_file
from lit_gpt.errors import UserError
from lit_gpt.pages.text import human_bytes


def print_status(line: str) -> None:
    """Print one line for the user on stderr, where the progress bars are."""
    print(line, file=sys.stderr, flush=True)


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically: a reader sees either the old or the complete new content."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically and deterministically."""
    write_atomic(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


@contextlib.contextmanager
def exclusive(path: Path, purpose: str, announce: bool = True) -> Iterator[None]:
    """Hold the lock file `path`, waiting for another process that holds it.

    Args:
        path: Lock file; created if missing and never removed (removing it would let two processes enter).
        purpose: What the holder does, for the message of a waiting process.
        announce: Whether to print a message when waiting.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if announce:
                print_status(f"another process is {purpose}; waiting for it ({path})")
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            # Closing the file is not enough: a worker forked in the meantime holds it open, too.
            fcntl.flock(file, fcntl.LOCK_UN)


def check_disk_space(
    folder: Path, needed_bytes: int, purpose: str, remedy: str = "set cache_dir (or LIT_GPT_CACHE) to a larger disk"
) -> None:
    """Raise a `UserError` if the estimated output does not fit on the disk.

    Args:
        folder: Output folder; it need not exist yet.
        needed_bytes: Estimated size of the output in bytes.
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
