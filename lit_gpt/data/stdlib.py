"""A corpus that needs no download: the source of this machine's Python standard library, without its tests.

About 12 MB of real code and prose in some 700 files (Python 3.11). Tests are excluded because they are mostly long
tables of cases rather than code worth imitating.
"""

import sysconfig
from pathlib import Path

from lit_gpt.data.records import FileRecords
from lit_gpt.errors import UserError

EXCLUDED_FOLDERS = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"})


def stdlib_files(root: Path | None = None) -> list[tuple[str, Path]]:
    """List the standard library's `.py` files as (name below its folder, path), sorted by name.

    Args:
        root: Folder of the library; this interpreter's by default.

    Raises:
        UserError: if this Python has no library source on disk.
    """
    root = Path(sysconfig.get_path("stdlib")) if root is None else root
    files = []
    for path in root.rglob("*.py"):
        relative = path.relative_to(root)
        if not EXCLUDED_FOLDERS.intersection(relative.parts) and _is_utf8(path):
            files.append((relative.as_posix(), path))
    if not files:
        raise UserError(f"the Python standard library has no source files in {root}; use TextDataModule with files")
    return sorted(files)


def _is_utf8(path: Path) -> bool:
    """Return whether the file is UTF-8; the few files that declare another encoding are not part of the corpus."""
    try:
        path.read_bytes().decode()
    except (UnicodeDecodeError, OSError):
        return False
    return True


def stdlib_source(root: Path | None = None) -> FileRecords:
    """Return the standard library as a source."""
    return FileRecords(stdlib_files(root), name="Python standard library")
