"""From what the user writes (files, folders, glob patterns) to a sorted list of files; and the source made of it."""

import glob
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lit_gpt.data.documents import BadInput, Document, SplitName
from lit_gpt.data.readers import read_file
from lit_gpt.errors import UserError
from lit_gpt.hashing import FileHashes, sha256_json

# Bytes of text per byte on disk, for estimates of time and space.
_EXPANSION = {".gz": 4.0, ".zst": 4.0, ".parquet": 3.0}


def file_bytes(path: Path) -> int:
    """Returns the size of a file; 0 for what cannot be looked at, which reading it will tell."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def estimated_bytes(path: Path) -> int:
    """Estimates the text in a file, in bytes, from its size and suffix."""
    return int(file_bytes(path) * _EXPANSION.get(path.suffix, 1.0))


def content_hash(path: Path, hashes: FileHashes) -> str:
    """Returns the SHA-256 of a file; a word for what cannot be read, which reading the corpus will tell."""
    try:
        return hashes.sha256(path)
    except OSError as error:
        return f"unreadable: {error.strerror}"


def expand_files(patterns: str | Sequence[str]) -> list[tuple[str, Path]]:
    r"""Lists the files that patterns name, in an order that depends on names alone.

    Args:
        patterns: A file, a folder (everything below it except hidden entries and `__pycache__`) or a glob pattern
            (`**` crosses folders), or several. Each file is taken once. Pipes, sockets and devices in folders are no
            files. What cannot be looked at (a link that leads nowhere, a folder without permission) stays in the list:
            reading it fails, and `on_bad_input` decides.

    Returns:
        `(name, path)` of each file, no name twice. The name starts at the folder that was named (`docs/guide/a.md` for
        `/home/me/docs`), so that it is the same wherever the corpus lies; where two folders have the same name, at the
        nearest parents that tell them apart. Bytes of a name that are no UTF-8 are spelt out, as `\xe9`.

    Raises:
        UserError: if a pattern names nothing.
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
    """What one pattern names.

    Attributes:
        above: The folder that the names start below.
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
            raise UserError(f"the folder {pattern} holds no files; name one that does")
        top = path.resolve()
        names = [_as_text(f"{top.name}/{file.relative_to(path).as_posix()}") for file in files]
        return _Group(top.parent, list(zip(names, files, strict=True)))
    if path.exists():
        raise UserError(f"{pattern} is neither a file nor a folder (a pipe, a socket or a device); name a file")
    if not glob.has_magic(pattern):
        raise UserError(f"{pattern} does not exist; name a file, a folder or a glob pattern")
    expanded = str(path)
    magic = next(i for i, part in enumerate(path.parts) if glob.has_magic(part))
    root = Path(*path.parts[:magic])
    matches = [match for match in map(Path, glob.glob(expanded, recursive=True)) if _is_text_or_broken(match)]
    if "**" in path.parts:
        matches += _closed_folders(root)  # glob passes over them in silence
    files = [match for match in sorted(set(matches), key=Path.as_posix) if "__pycache__" not in match.parts]
    if not files:
        raise UserError(f"no file matches {pattern}; check the pattern (** crosses folders)")
    return _Group(
        Path(os.path.abspath(root)), [(_as_text(match.relative_to(root).as_posix()), match) for match in files]
    )


def _walk(folder: Path) -> Iterator[Path]:
    closed: list[OSError] = []
    for parent, folders, names in os.walk(folder, onerror=closed.append):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__pycache__")
        for name in sorted(name for name in names if not name.startswith(".")):
            path = Path(parent, name)
            if _is_text_or_broken(path):
                yield path
    yield from sorted(Path(error.filename) for error in closed)


def _closed_folders(root: Path) -> list[Path]:
    closed: list[OSError] = []
    for _, folders, _ in os.walk(root, onerror=closed.append):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__pycache__"]
    return [Path(error.filename) for error in closed]


def _is_text_or_broken(path: Path) -> bool:
    """Returns whether this is a file, or cannot be looked at: no folder, and no pipe, which would be waited for."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return True


def _as_text(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _differently_named(groups: list[_Group]) -> list[tuple[str, Path]]:
    """Lengthens the names of groups that share one by the folders above, until no name stands for two files."""
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
            while unique in result:  # bytes that are no UTF-8 beside a name that spells them out
                count += 1
                unique = f"{prefix}{name} ({count})"
            result[unique] = path
    return list(result.items())


class FileSource:
    """Local files: txt, md, code and any other UTF-8 text; json, jsonl, csv, tsv, parquet; each also as .gz or .zst.

    Args:
        patterns: Files, folders, glob patterns (see `expand_files`), or an already expanded list of (name, path).
        text_field: Field or column that holds the text in json, jsonl, csv, tsv and parquet.
        document_separator: String at which plain text files are cut into documents; None keeps a file whole.
        split: Split that all documents go to; None decides each by its hash.
        name: What lineage calls the source; the patterns by default.
    """

    def __init__(
        self,
        patterns: str | Sequence[str] | list[tuple[str, Path]],
        text_field: str = "text",
        document_separator: str | None = None,
        split: SplitName | None = None,
        name: str | None = None,
    ) -> None:
        if document_separator == "":
            raise UserError("document_separator is empty; give a string such as '\\n\\n', or null to keep files whole")
        self._patterns = patterns
        self._files: list[tuple[str, Path]] | None = None
        self.text_field = text_field
        self.document_separator = document_separator
        self.split: SplitName | None = split
        self.name = name or (patterns if isinstance(patterns, str) else ", ".join(map(str, patterns)))

    @property
    def files(self) -> list[tuple[str, Path]]:
        """(name, path) of each file; the disk is searched on first use."""
        if self._files is None:
            expanded = [item for item in self._patterns if isinstance(item, tuple)]
            patterns = self._patterns if isinstance(self._patterns, str) else [str(p) for p in self._patterns]
            self._files = expanded or expand_files(patterns)
        return self._files

    def fingerprint(self, hashes: FileHashes) -> str:
        """Returns a hash of the files' names and contents and of how they are read."""
        content = [[name, content_hash(path, hashes)] for name, path in self.files]
        return sha256_json(["files", content, self.text_field, self.document_separator, self.split])

    def num_bytes(self) -> int:
        """Estimates the text's bytes from the files' sizes."""
        return sum(estimated_bytes(path) for _, path in self.files)

    def documents(self, bad_input: BadInput) -> Iterator[Document]:
        """Yields the documents, file by file."""
        for name, path in self.files:
            yield from read_file(path, name, bad_input, self.text_field, self.document_separator)

    def describe(self) -> dict[str, Any]:
        """Returns name, number of files and their size."""
        size = sum(file_bytes(path) for _, path in self.files)
        return {"kind": "files", "name": self.name, "num_files": len(self.files), "file_bytes": size}
