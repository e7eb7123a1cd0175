"""Where a model comes from: hashes of what made it, and the versions of what ran.

A lineage says nothing about who or where: no user, no host, no absolute path. Things are named by content hash, so
that two runs can be compared without either being at hand.
"""

import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path, PureWindowsPath
from typing import Any

import lit_gpt
from lit_gpt.checkpoints.manifest import hash_files
from lit_gpt.data.tokenizers import TOKENIZER_FILES
from lit_gpt.hashing import sha256_json

LINEAGE = "lineage.json"
PACKAGES = ("torch", "lightning", "transformers", "tokenizers", "datasets", "safetensors", "numpy")


def hash_tokenizer(folder: Path) -> str:
    """Return one SHA-256 for the tokenizer in a folder, which may hold other things as well."""
    return sha256_json(hash_files(folder, [name for name in TOKENIZER_FILES if (folder / name).is_file()]))


def collect_lineage(
    config: Mapping[str, Any] | None = None,
    tokenizer_path: Path | None = None,
    corpus: Mapping[str, Any] | None = None,
    **extra: Any,
) -> dict[str, Any]:
    """Describe what a model is made of.

    Args:
        config: the model's, as plain data.
        tokenizer_path: its tokenizer's folder.
        corpus: what the DataModule says of its corpus (hashes, splits, counts); absolute paths in it are cut to
            their last part.
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
    """Return the version of this package (and its git commit, if it runs from a checkout) and of what it stands on."""
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
            return None  # in no checkout, or merely inside one, as a virtual environment may be
        commit = _git(folder, "rev-parse", "HEAD")
        return commit + ("-dirty" if _git(folder, "status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def without_paths(value: Any) -> Any:
    """Copy plain data with every absolute path cut to its last part."""
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
