"""Content hashes: the manifest of a folder, and the lineage of a model.

**Manifest.** The name, size and hash of every file in a folder. A folder is complete if it has a `manifest.json` and
every file listed there matches. The manifest is written last, so a folder without one was never finished. Verification
checks sizes first (cheap, detects truncated files), then SHA-256 (detects flipped bits). A hash shows that a file is
unchanged, not that it can be trusted, so files are always read without executing code (safetensors,
`weights_only=True`).

**Lineage.** Hashes of everything that a model was made from, and versions of the software. It contains no user name,
host name or absolute path. Inputs are identified by content hash, so that two models can be compared without access to
their inputs.
"""

import json
import os
import platform
import subprocess
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path, PureWindowsPath
from typing import Any

import lit_gpt
from lit_gpt.data.tokenizers import TOKENIZER_FILES
from lit_gpt.errors import UserError
from lit_gpt.hashing import sha256_file, sha256_json

MANIFEST = "manifest.json"
FORMAT = "lit_gpt-manifest-1"
LINEAGE = "lineage.json"
PACKAGES = ("torch", "lightning", "transformers", "tokenizers", "datasets", "safetensors", "numpy")


def hash_files(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of each file, computed in threads (hashlib releases the GIL)."""
    names = list(names)
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        return dict(zip(names, pool.map(lambda name: sha256_file(folder / name), names), strict=True))


def list_files(folder: Path) -> list[str]:
    """Return the relative names of all files under a folder except its manifest, sorted."""
    files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in files if name != MANIFEST)


def write_manifest(folder: Path) -> dict[str, Any]:
    """Hash every file in a folder, then write and return its manifest; call it last."""
    hashes = hash_files(folder, list_files(folder))
    manifest = {
        "format": FORMAT,
        "saved_at": time.time(),
        "files": {name: {"bytes": (folder / name).stat().st_size, "sha256": sha} for name, sha in hashes.items()},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a folder.

    Raises:
        UserError: it is missing (the folder was never finished) or damaged.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        entries = manifest["files"].values()
        sound = manifest["format"] == FORMAT and all({"bytes", "sha256"} <= set(entry) for entry in entries)
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing: {folder} was never completed, or was not written by lit_gpt; use another copy of it"
        ) from None
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); use another copy of {folder.name}") from None
    if not sound:
        raise UserError(f"{path} is not a manifest of format {FORMAT}; use another copy of {folder.name}")
    return manifest


def verify_sizes(folder: Path, only: Iterable[str] | None = None) -> dict[str, Any]:
    """Check that every file of the manifest exists with its recorded size, without reading the files.

    Args:
        folder: folder with a manifest.
        only: names of the files to check; None: all.

    Returns:
        The manifest.

    Raises:
        UserError: a file is missing or has another size; the message names it.
    """
    manifest = read_manifest(folder)
    for name in manifest["files"] if only is None else only:
        path = folder / name
        if name not in manifest["files"]:
            raise UserError(f"{path} is not in its folder's manifest; use another copy of {folder.name}")
        expected = manifest["files"][name]["bytes"]
        if not path.is_file():
            raise UserError(f"{path} is missing although the manifest lists it; use another copy of {folder.name}")
        if path.stat().st_size != expected:
            raise UserError(
                f"{path} has {path.stat().st_size} bytes, but {expected} were written; "
                f"use another copy of {folder.name}"
            )
    return manifest


def verify(folder: Path, only: Iterable[str] | None = None) -> dict[str, Any]:
    """Check size and SHA-256 of every file of the manifest.

    Args:
        folder: folder with a manifest.
        only: names of the files to check; None: all.

    Returns:
        The manifest.

    Raises:
        UserError: a file is missing, or has another size or hash; the message names it.
    """
    only = None if only is None else list(only)
    manifest = verify_sizes(folder, only)
    names = list(manifest["files"]) if only is None else only
    for name, found in hash_files(folder, names).items():
        expected = manifest["files"][name]["sha256"]
        if found != expected:
            raise UserError(
                f"{folder / name} is damaged: its SHA-256 is {found[:12]}…, but {str(expected)[:12]}… was written; "
                f"use another copy of {folder.name}"
            )
    return manifest


# ------------------------------------------------------------------ lineage


def hash_tokenizer(folder: Path) -> str:
    """Return the SHA-256 of the tokenizer files in a folder; other files are ignored."""
    return sha256_json(hash_files(folder, [name for name in TOKENIZER_FILES if (folder / name).is_file()]))


def collect_lineage(
    config: Mapping[str, Any] | None = None,
    tokenizer_path: Path | None = None,
    corpus: Mapping[str, Any] | None = None,
    **extra: Any,
) -> dict[str, Any]:
    """Return the lineage of a model.

    Args:
        config: the model's configuration as plain data.
        tokenizer_path: folder of the tokenizer.
        corpus: the DataModule's description of its corpus (hashes, splits, counts); absolute paths in it are reduced to
            their last component.
        extra: further plain data, such as the lineage of the weights that a run was initialized from.
    """
    corpus = None if corpus is None else without_paths(corpus)
    return {
        "config_sha256": None if config is None else sha256_json(config),
        "tokenizer_sha256": None if tokenizer_path is None else hash_tokenizer(Path(tokenizer_path)),
        "corpus_sha256": None if corpus is None else sha256_json(corpus),
        "corpus": corpus,
        **without_paths(extra),
        "code": code_versions(),
    }


def code_versions() -> dict[str, Any]:
    """Return the versions of this package (and its git commit, in a checkout) and of its main dependencies."""
    return {
        "lit_gpt": lit_gpt.__version__,
        "git_commit": git_commit(Path(lit_gpt.__file__).parent),
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
    }


def git_commit(folder: Path) -> str | None:
    """Return the commit of the checkout that tracks `folder` (`-dirty` if files changed), or None."""
    try:
        if not _git(folder, "ls-files", "--", "."):
            return None  # not in a checkout, or in one that does not track it, such as a virtual environment
        commit = _git(folder, "rev-parse", "HEAD")
        return commit + ("-dirty" if _git(folder, "status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def without_paths(value: Any) -> Any:
    """Return a copy of plain data with every absolute path reduced to its last component."""
    if isinstance(value, Mapping):
        return {without_paths(key): without_paths(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(item) for item in value]
    if isinstance(value, Path):
        return without_paths(str(value))
    if isinstance(value, str) and "\n" not in value:
        for scheme in ("file://", "~"):
            if value.startswith(scheme):
                return Path(value).name
        if Path(value).is_absolute() or PureWindowsPath(value).drive:
            return Path(value).name
    return value


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
