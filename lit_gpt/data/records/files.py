"""Expand user input (files, folders, glob patterns) to a sorted list of files.

Links to folders are followed, each folder once by its real path: a corpus may be spread over several disks, and cycles
of links terminate. In folders written by `datasets.Dataset.save_to_disk`, only the Arrow files are listed, not the JSON
files that describe them.
"""

import fnmatch
import glob
import json
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from lit_gpt.data.records.compression import COMPRESSED_SUFFIXES
from lit_gpt.errors import UserError
from lit_gpt.hashing import FileHashes

# Bytes of text per byte on disk, for estimates of time and space.
_EXPANSION = {**dict.fromkeys(COMPRESSED_SUFFIXES, 4.0), ".parquet": 3.0}

DATASET_STATE = "state.json"
DATASET_DICT = "dataset_dict.json"


def file_bytes(path: Path) -> int:
    """Return the size of a file, or 0 if it cannot be accessed (reading it will report the error)."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def estimated_bytes(path: Path, size: int | None = None) -> int:
    """Estimate the bytes of text in a file from its size (looked up if None) and suffix."""
    return int((file_bytes(path) if size is None else size) * _EXPANSION.get(path.suffix.lower(), 1.0))


def content_hash(path: Path, hashes: FileHashes) -> str:
    """Return the SHA-256 of a file, or a placeholder if it cannot be read (reading it will report the error)."""
    try:
        return hashes.sha256(path)
    except OSError as error:
        return f"unreadable: {error.strerror}"


def expand_files(patterns: str | Sequence[str]) -> list[tuple[str, Path]]:
    r"""List the files that patterns name, in an order that depends only on their names.

    Args:
        patterns: One or several of: a file, a folder (everything below it except hidden entries and `__pycache__`,
            following links), a glob pattern (`**` crosses folders). Each file is listed once. Pipes, sockets and
            devices in folders are ignored. Inaccessible entries (broken links, folders without permission) are listed:
            reading them fails, and `on_bad_input` determines what happens.

    Returns:
        `(name, path)` of each file, with unique names. A name starts at the folder that the user named
        (`docs/guide/a.md` for `/home/me/docs`), so that it does not depend on the location of the corpus; if two
        folders have the same name, it starts at the closest parents that differ. Bytes of a name that are not UTF-8 are
        escaped as `\xe9`.

    Raises:
        UserError: if a pattern matches nothing, or names a saved dataset with several splits, one of which must be
            chosen.
    """
    taken: set[str] = set()
    groups = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        group = _expand(pattern)
        new = []
        for name, path in group.files:
            if (real := os.path.realpath(path)) not in taken:
                taken.add(real)
                new.append((name, path))
        groups.append(_Group(group.above, new))
    return _differently_named(groups)


class _Group(NamedTuple):
    """The files that one pattern names.

    Attributes:
        above: Folder to which the names are relative.
        files: (name, path).
    """

    above: Path
    files: list[tuple[str, Path]]


def _expand(pattern: str) -> _Group:
    path = Path(pattern).expanduser()
    if path.is_file():
        return _Group(Path(os.path.abspath(path)).parent, [(_as_text(path.name), path)])
    if path.is_dir():
        files = list(_walk(path))
        if not files:
            raise UserError(f"the folder {pattern} contains no files; name one that does")
        top = path.resolve()
        names = [_as_text(f"{top.name}/{file.relative_to(path).as_posix()}") for file in files]
        return _Group(top.parent, list(zip(names, files, strict=True)))
    if path.exists():
        raise UserError(f"{pattern} is neither a file nor a folder (a pipe, a socket or a device); name a file")
    if not glob.has_magic(pattern):
        raise UserError(f"{pattern} does not exist; name a file, a folder or a glob pattern")
    magic = next(i for i, part in enumerate(path.parts) if glob.has_magic(part))
    root = Path(*path.parts[:magic])
    if "**" in path.parts and not any(part.startswith(".") for part in path.parts[magic:]):
        # Not glob's own `**`, which follows cyclic links and skips folders without read permission.
        wanted = path.parts[magic:]
        matches = {
            match
            for match in _walk(root, saved=False)
            if match.is_dir() or _matches(match.relative_to(root).parts, wanted)  # an unreadable folder
        }
    else:
        matches = {match for match in map(Path, glob.glob(str(path), recursive=True)) if _is_text_or_broken(match)}
    files = [match for match in sorted(matches, key=Path.as_posix) if "__pycache__" not in match.parts]
    if not files:
        raise UserError(f"no file matches {pattern}; check the pattern (** crosses folders)")
    return _Group(
        Path(os.path.abspath(root)), [(_as_text(match.relative_to(root).as_posix()), match) for match in files]
    )


def _matches(parts: Sequence[str], wanted: Sequence[str]) -> bool:
    """Return whether a path matches a pattern, part by part; `**` matches any number of folders."""
    if not wanted:
        return not parts
    if wanted[0] == "**":
        if len(wanted) == 1:
            return bool(parts)
        return any(_matches(parts[skipped:], wanted[1:]) for skipped in range(len(parts) + 1))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], wanted[0]) and _matches(parts[1:], wanted[1:])


def _walk(top: Path, saved: bool = True) -> Iterator[Path]:
    """Yield the files below a folder: first its own files in the order of their names, then those of its subfolders.

    Unreadable folders come last.

    Args:
        top: The folder.
        saved: Whether to yield only the Arrow files of saved datasets.
    """
    closed: list[OSError] = []
    real_top = os.path.realpath(top)
    seen = {real_top}
    for parent, folders, names in os.walk(top, onerror=closed.append, followlinks=True):
        folders[:] = [
            name
            for name in sorted(folders)
            if not name.startswith(".")
            and name != "__pycache__"
            and _should_descend(os.path.join(parent, name), real_top, seen)
        ]
        if saved and (arrow := _saved_files(Path(parent), names, folders)) is not None:
            folders[:] = []
            yield from arrow
            continue
        for name in sorted(name for name in names if not name.startswith(".")):
            path = Path(parent, name)
            if _is_text_or_broken(path):
                yield path
    yield from sorted(Path(error.filename) for error in closed)


def _should_descend(folder: str, top: str, seen: set[str]) -> bool:
    """Return whether to descend into a folder: a link is followed unless its target is a parent or visited anyway."""
    real = os.path.realpath(folder)
    if os.path.islink(folder):
        below = os.path.relpath(real, top).split(os.sep)
        is_walked = below[0] != os.pardir and not any(name.startswith(".") for name in below)
        is_above = (top + os.sep).startswith(real.rstrip(os.sep) + os.sep)
        if is_walked or is_above or real in seen:
            return False
    seen.add(real)
    return True


def _saved_files(folder: Path, names: list[str], folders: list[str]) -> list[Path] | None:
    """Return the Arrow files of a folder written by `save_to_disk`, in order; None for any other folder.

    Raises:
        UserError: if it holds several splits.
    """
    if DATASET_DICT in names:
        splits = [name for name in folders if (folder / name / DATASET_STATE).is_file()]
        if len(splits) > 1:
            raise UserError(
                f"{folder} is a saved dataset with the splits {', '.join(splits)}; name one, such as "
                f"{folder / splits[0]}, so that test data is not trained on"
            )
        return [path for split in splits for path in _state_files(folder / split)]
    if DATASET_STATE in names and any(name.endswith(".arrow") for name in names):
        return _state_files(folder)
    return None


def _state_files(folder: Path) -> list[Path]:
    try:
        state = json.loads((folder / DATASET_STATE).read_bytes())
        return [folder / entry["filename"] for entry in state["_data_files"]]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"{folder / DATASET_STATE} of a saved dataset cannot be read ({error}); save it again"
        ) from error


def _is_text_or_broken(path: Path) -> bool:
    """Return whether this is a file or inaccessible; False for folders and for pipes, which would block."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return True


def _as_text(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _differently_named(groups: list[_Group]) -> list[tuple[str, Path]]:
    """Prefix equal names of different groups with their parent folders until all names differ."""
    levels = [0] * len(groups)
    while True:
        owners: dict[str, int] = {}
        longer: set[int] = set()
        for number, group in enumerate(groups):
            above = group.above.parts[1:]
            prefix = _as_text("".join(f"{part}/" for part in above[len(above) - levels[number] :]))
            for name, _ in group.files:
                if (owner := owners.setdefault(prefix + name, number)) != number:
                    longer |= {n for n in (owner, number) if levels[n] < len(groups[n].above.parts) - 1}
        if not longer:
            break
        for number in longer:
            levels[number] += 1
    result: dict[str, Path] = {}
    for number, group in enumerate(groups):
        above = group.above.parts[1:]
        prefix = _as_text("".join(f"{part}/" for part in above[len(above) - levels[number] :]))
        for name, path in group.files:
            unique, count = prefix + name, 1
            while unique in result:  # a name with non-UTF-8 bytes, and another that contains their escapes
                count += 1
                unique = f"{prefix}{name} ({count})"
            result[unique] = path
    return list(result.items())
