"""Atomic writes: a folder or file is either complete or absent, even after a crash or power failure.

The sequence is: write to a temporary path in the target's folder (`.tmp-<name>-<pid>`), add a manifest, fsync every
file and folder, rename (atomic in POSIX file systems), and fsync the parent folder. A process that is killed at any
point leaves the target unchanged; the next save to the same path removes its temporary files. If the disk is full, the
temporary path is removed and a one-sentence error is raised.

Why the fsync before the rename: without it, a power failure may leave the new name with old or empty content (Pillai et
al. 2014, "All File Systems Are Not Created Equal", OSDI).
"""

import errno
import glob
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lit_gpt.errors import UserError

TEMPORARY = ".tmp-"
DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""No space left, quota exceeded, file size limit exceeded."""


def temporary_path(target: Path) -> Path:
    """Return the path at which this process writes `target` before renaming it."""
    return target.parent / f"{TEMPORARY}{target.name}-{os.getpid()}"


@contextmanager
def atomic_folder(target: Path, seal: Callable[[Path], object] | None = None) -> Iterator[Path]:
    """Write a folder atomically.

    Args:
        target: path of the folder; an existing one is replaced.
        seal: called with the temporary folder after everything else was written, to add its manifest; None: nothing.

    Yields:
        An empty temporary folder to write into.

    Raises:
        UserError: the disk is full; `target` is unchanged.
    """
    remove_leftovers(target)
    temporary = temporary_path(target)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if seal is not None:
            seal(temporary)
        publish(temporary, target)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise_if_disk_full(error, target)
        raise


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Write a file atomically; yields the temporary path to write to.

    Raises:
        UserError: the disk is full; `target` is unchanged.
    """
    temporary = temporary_path(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        fsync(temporary)
        os.replace(temporary, target)
        fsync(target.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        raise_if_disk_full(error, target)
        raise


def publish(temporary: Path, target: Path) -> None:
    """Move a finished folder to its final path durably; an older folder there is replaced."""
    for path in [*temporary.rglob("*"), temporary]:
        fsync(path)
    if target.exists():  # os.rename cannot replace a folder that is not empty
        remove_atomically(target)
    os.rename(temporary, target)
    fsync(target.parent)


def remove_atomically(target: Path) -> None:
    """Remove a folder or file so that it is never seen half deleted, even after a crash."""
    if target.is_symlink():  # the folder was moved elsewhere: remove only the link
        target.unlink()
        return
    if not target.exists():
        return
    doomed = target.parent / f"{TEMPORARY}removed-{target.name}-{os.getpid()}"
    os.rename(target, doomed)
    if doomed.is_dir():
        shutil.rmtree(doomed)
    else:
        doomed.unlink()


def remove_leftovers(target: Path) -> None:
    """Remove temporary files of killed processes: those of this target, or of all checkpoints in its folder.

    Temporary files of processes that are still running on this machine are kept.
    """
    names = [f"{TEMPORARY}*{glob.escape(target.name)}-*"]
    if target.suffix == ".ckpt":  # all checkpoints in a folder belong to one run
        names.append(f"{TEMPORARY}*.ckpt-*")
    for path in {path for name in names for path in target.parent.glob(name)}:
        pid = path.name.rpartition("-")[2]
        if not pid.isdigit() or (int(pid) != os.getpid() and _alive(int(pid))):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def raise_if_disk_full(error: BaseException, target: Path) -> None:
    """Raise a UserError if `error`, or an error that caused it, means that the disk is full."""
    if isinstance(error, UserError):
        return
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if _says_disk_full(cause):
            raise UserError(disk_full_message(target)) from error
        cause = cause.__cause__ or cause.__context__


def disk_full_message(target: Path) -> str:
    """Return a message with the path that could not be written, the free space, and the remedy."""
    parent = next(folder for folder in target.absolute().parents if folder.exists())
    free = shutil.disk_usage(parent).free
    return (
        f"no space to write {target}: {free / 1e6:,.0f} MB are free there, or the file size limit is lower; "
        "free some space, or write to another disk (trainer.default_root_dir, --out). Existing files are unchanged"
    )


def _says_disk_full(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return True
    # safetensors, numpy and torch's zip writer raise their own errors, recognizable only by their text
    text = str(error)
    numbers = any(f"os error {number})" in text for number in DISK_FULL)
    numbers = numbers or re.fullmatch(r"\d+ requested and \d+ written", text) is not None  # ndarray.tofile
    return numbers or "No space left on device" in text or "PytorchStreamWriter failed writing" in text


def fsync(path: Path) -> None:
    """Make a file's content, or a folder's entries, survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
