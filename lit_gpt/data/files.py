"""From what the user writes (files, folders, glob patterns) to a sorted list of files; and the source made of it."""

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lit_gpt.data.documents import BadInput, Document, SplitName
from lit_gpt.data.file_hashes import FileHashes, sha256_json
from lit_gpt.data.readers import read_file
from lit_gpt.errors import UserError

# Bytes of text per byte on disk, for estimates of time and space.
_EXPANSION = {".gz": 4.0, ".zst": 4.0, ".parquet": 3.0}


def estimated_bytes(path: Path) -> int:
    """Estimates the text in a file, in bytes, from its size and suffix."""
    return int(path.stat().st_size * _EXPANSION.get(path.suffix, 1.0))


def expand_files(patterns: str | Sequence[str]) -> list[tuple[str, Path]]:
    """Lists the files that patterns name, in an order that depends on names alone.

    Args:
        patterns: A file, a folder (everything below it except hidden entries and `__pycache__`) or a glob pattern
            (`**` crosses folders), or several. Each file is taken once.

    Returns:
        `(name, path)` of each file. The name starts at the folder that was named (`docs/guide/a.md` for
        `/home/me/docs`), so that it is the same wherever the corpus lies.

    Raises:
        UserError: if a pattern names nothing.
    """
    found: dict[str, tuple[str, Path]] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        for name, path in _expand(pattern):
            found.setdefault(os.path.realpath(path), (name, path))
    return list(found.values())


def _expand(pattern: str) -> list[tuple[str, Path]]:
    path = Path(pattern).expanduser()
    if path.is_file():
        return [(path.name, path)]
    if path.is_dir():
        files = list(_walk(path))
        if not files:
            raise UserError(f"the folder {pattern} holds no files; name one that does")
        return files
    if not glob.has_magic(pattern):
        raise UserError(f"{pattern} does not exist; name a file, a folder or a glob pattern")
    expanded = str(path)
    magic = next(i for i, part in enumerate(path.parts) if glob.has_magic(part))
    root = Path(*path.parts[:magic])
    files = [
        (match.relative_to(root).as_posix(), match)
        for match in sorted(map(Path, glob.glob(expanded, recursive=True)), key=lambda match: match.as_posix())
        if match.is_file() and "__pycache__" not in match.parts
    ]
    if not files:
        raise UserError(f"no file matches {pattern}; check the pattern (** crosses folders)")
    return files


def _walk(folder: Path) -> Iterator[tuple[str, Path]]:
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__pycache__")
        for name in sorted(name for name in names if not name.startswith(".")):
            path = Path(parent, name)
            yield f"{folder.resolve().name}/{path.relative_to(folder).as_posix()}", path


class FileSource:
    """Local files: txt, md, code and any other UTF-8 text; jsonl, csv, tsv, parquet; each also as `.gz` or `.zst`.

    Args:
        patterns: Files, folders, glob patterns (see `expand_files`), or an already expanded list of (name, path).
        text_field: Field or column that holds the text in jsonl, csv, tsv and parquet.
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
        content = [[name, hashes.sha256(path)] for name, path in self.files]
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
        size = sum(path.stat().st_size for _, path in self.files)
        return {"kind": "files", "name": self.name, "num_files": len(self.files), "file_bytes": size}
