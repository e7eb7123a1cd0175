"""The manifest of a folder: which files it holds, how long they are and what they hash to.

A folder is whole when it has a `manifest.json` and every file in it matches. The manifest is written last, so a
folder without one was never finished. Reading checks sizes first (cheap, finds what was cut off), then SHA-256
(finds a flipped bit). Hashes say that a file is the one that was written, not that it can be trusted: what is read
afterwards is read as data alone (safetensors, `weights_only=True`).
"""

import json
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from lit_gpt.errors import UserError
from lit_gpt.hashing import sha256_file

MANIFEST = "manifest.json"
FORMAT = "lit_gpt-manifest-1"


def hash_files(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Hash several files at once: hashlib leaves Python's lock, so that cores share the work."""
    names = list(names)
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        return dict(zip(names, pool.map(lambda name: sha256_file(folder / name), names), strict=True))


def list_files(folder: Path) -> list[str]:
    """Return the relative names of all files under a folder but its manifest, sorted."""
    files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in files if name != MANIFEST)


def write_manifest(folder: Path) -> dict[str, Any]:
    """Hash everything in a folder and write its manifest, the last file to be written there."""
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
        raise UserError(f"{path} is missing: {folder} was never written to its end, or is no folder of ours") from None
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
            raise UserError(f"{path} is not in the manifest beside it; use another copy of {folder.name}")
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
