"""Atomic writes: a folder or file is complete or absent, also after a kill or a power cut.

The order: write next to the target under a name that nothing reads (`.tmp-<name>-<pid>`), seal it with a manifest,
fsync every file and folder, rename, which the file system does atomically, and fsync the parent. A process killed at
any point leaves the target as it was, and a leftover that the next save to the same place removes. On a full disk
the temporary is removed and the error is one sentence.

Source of the order: Pillai et al. 2014, "All File Systems Are Not Created Equal" (OSDI): without the fsync before
the rename, a power cut may leave the new name with old or empty content.
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
"""No space, over the quota, over the limit on a file's size."""


def temporary_path(target: Path) -> Path:
    """Return the name under which this process writes what will become `target`."""
    return target.parent / f"{TEMPORARY}{target.name}-{os.getpid()}"


@contextmanager
def atomic_folder(target: Path, seal: Callable[[Path], object] | None = None) -> Iterator[Path]:
    """Write a folder completely or not at all.

    Args:
        target: path of the folder; an existing one is replaced.
        seal: writes the folder's last file, such as its manifest, when all others are there.

    Yields:
        An empty temporary folder to write into.

    Raises:
        UserError: the disk is full; nothing but the temporary was touched.
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
    """Write a file completely or not at all; yields the temporary path to write to.

    Raises:
        UserError: the disk is full; an older `target` is as it was.
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
    """Move a finished folder to its final path so that it survives a power cut; an older one is replaced."""
    for path in [*temporary.rglob("*"), temporary]:
        fsync(path)
    if target.exists():  # a folder cannot be renamed over another that is not empty
        remove_atomically(target)
    os.rename(temporary, target)
    fsync(target.parent)


def remove_atomically(target: Path) -> None:
    """Remove a folder or file so that a kill in the middle leaves nothing damaged under its name."""
    if target.is_symlink():  # the folder was moved away: what the link names is left alone
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
    """Remove what killed processes left half-written: for this target, or for any checkpoint of its folder.

    Files that a running process of this machine is writing are left alone.
    """
    names = [f"{TEMPORARY}*{glob.escape(target.name)}-*"]
    if target.suffix == ".ckpt":  # checkpoints share a folder that belongs to one run
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
    """Raise a UserError about space if `error` says that a disk is full, by number or by its library's words."""
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
    """Say what could not be written, how much space is free, and what to do."""
    parent = next(folder for folder in target.absolute().parents if folder.exists())
    free = shutil.disk_usage(parent).free
    return (
        f"no space to write {target}: {free / 1e6:,.0f} MB are free there, or the limit on a file's size is lower; "
        "free some, or write to another disk (trainer.default_root_dir, --out). What was there before is untouched"
    )


def _says_disk_full(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return True
    # safetensors, numpy and torch's zip writer raise errors of their own, the number or a sentence in the text
    text = str(error)
    numbers = any(f"os error {number})" in text for number in DISK_FULL)
    numbers = numbers or re.fullmatch(r"\d+ requested and \d+ written", text) is not None  # ndarray.tofile
    return numbers or "No space left on device" in text or "PytorchStreamWriter failed writing" in text


def fsync(path: Path) -> None:
    """Make a file's bytes, or a folder's entries, survive a power cut."""
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
