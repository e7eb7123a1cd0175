"""Content hashes: the manifest of a folder, and the lineage of a model.

**Manifest.** Which files a folder holds, how long they are and what they hash to. A folder is complete when it has a
`manifest.json` and every file in it matches. The manifest is written last, so a folder without one was never finished.
Verification checks sizes first (cheap, finds truncated files), then SHA-256 (finds flipped bits). Hashes say that a
file is the one that was written, not that it can be trusted: what is read afterwards is read as data alone
(safetensors, `weights_only=True`).

**Lineage.** Hashes of what made a model, and the versions of the software that ran. It says nothing about who or where:
no user, no host, no absolute path. Inputs are named by content hash, so that two runs can be compared without either
being at hand.
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
    """Return the SHA-256 of several files; hashlib releases the GIL, so threads share the work."""
    names = list(names)
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        return dict(zip(names, pool.map(lambda name: sha256_file(folder / name), names), strict=True))


def list_files(folder: Path) -> list[str]:
    """Return the relative names of all files under a folder except its manifest, sorted."""
    files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in files if name != MANIFEST)


def write_manifest(folder: Path) -> dict[str, Any]:
    """Hash everything in a folder and write its manifest, the last file written there."""
    hashes = hash_files(folder, list_files(folder))
    manifest = {
        "format": FORMAT,
        "saved_at": time.time(),
        "files": {name: {"bytes": (folder / name).stat().st_size, "sha256": sha} for name, sha in hashes.items()},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read a manifest.

    Raises:
        UserError: there is none (the folder was never finished), or it is itself damaged.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        entries = manifest["files"].values()
        sound = manifest["format"] == FORMAT and all({"bytes", "sha256"} <= set(entry) for entry in entries)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {folder} was never completed, or was not written by lit_gpt") from None
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); use another copy of {folder.name}") from None
    if not sound:
        raise UserError(f"{path} is not a manifest of format {FORMAT}; use another copy of {folder.name}")
    return manifest


def verify_sizes(folder: Path, only: Iterable[str] | None = None) -> dict[str, Any]:
    """Check that every file of the manifest is there at its full length; read none of them.

    Args:
        folder: with a manifest.
        only: names to check; None: all of them.

    Raises:
        UserError: naming the file that is missing or has another size.
    """
    manifest = read_manifest(folder)
    for name in manifest["files"] if only is None else only:
        path = folder / name
        if name not in manifest["files"]:
            raise UserError(f"{path} is not in its folder's manifest; use another copy of {folder.name}")
        expected = manifest["files"][name]["bytes"]
        if not path.is_file():
            raise UserError(f"{path} is missing although the manifest names it; use another copy of {folder.name}")
        if path.stat().st_size != expected:
            raise UserError(
                f"{path} has {path.stat().st_size} bytes where {expected} were written; "
                f"use another copy of {folder.name}"
            )
    return manifest


def verify(folder: Path, only: Iterable[str] | None = None) -> dict[str, Any]:
    """Check size and SHA-256 of every file of the manifest.

    Args:
        folder: with a manifest.
        only: names to check; None: all of them.

    Returns:
        The manifest.

    Raises:
        UserError: naming the file and what is wrong with it: missing, another size, another hash.
    """
    only = None if only is None else list(only)
    manifest = verify_sizes(folder, only)
    names = list(manifest["files"]) if only is None else only
    for name, found in hash_files(folder, names).items():
        expected = manifest["files"][name]["sha256"]
        if found != expected:
            raise UserError(
                f"{folder / name} is damaged: its SHA-256 is {found[:12]}… where {str(expected)[:12]}… was written; "
                f"use another copy of {folder.name}"
            )
    return manifest


# ------------------------------------------------------------------ lineage


def hash_tokenizer(folder: Path) -> str:
    """Return one SHA-256 for the tokenizer in a folder, which may hold other things as well."""
    return sha256_json(hash_files(folder, [name for name in TOKENIZER_FILES if (folder / name).is_file()]))


def collect_lineage(
    config: Mapping[str, Any] | None = None,
    tokenizer_path: Path | None = None,
    corpus: Mapping[str, Any] | None = None,
    **extra: Any,
) -> dict[str, Any]:
    """Return what a model was made from.

    Args:
        config: the model's, as plain data.
        tokenizer_path: its tokenizer's folder.
        corpus: the DataModule's description of its corpus (hashes, splits, counts); of absolute paths in it only
            the last part is recorded.
        extra: further plain data, such as the lineage of the weights that a run started from.
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
            return None  # not in a checkout, or merely inside one, as a virtual environment may be
        commit = _git(folder, "rev-parse", "HEAD")
        return commit + ("-dirty" if _git(folder, "status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def without_paths(value: Any) -> Any:
    """Return a copy of plain data with every absolute path reduced to its last part."""
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
