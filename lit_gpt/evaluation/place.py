"""Where a model's reports lie, and which weights they are about."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lit_gpt.atomic import temporary_beside
from lit_gpt.checkpoints.bundle import is_bundle
from lit_gpt.checkpoints.manifest import MANIFEST, hash_files, read_manifest
from lit_gpt.checkpoints.resolve import ADAPTERS, CHECKPOINTS, resolve_adapter, resolve_model
from lit_gpt.checkpoints.step import SHARDS
from lit_gpt.data.chat import load_chat_template
from lit_gpt.errors import UserError
from lit_gpt.generation.loading import short_name
from lit_gpt.hashing import sha256_json

EVALUATION = "evaluation"
REPORT = "report.json"
PAGE = "report.html"


def own_folder(path: Path) -> Path | None:
    """The folder of the reports on a model that was found at `path`: in its run, or in the bundle.

    Returns:
        None for a model that is nobody's to write into: of the hub, or another project's folder.
    """
    if path.parent.name == CHECKPOINTS:
        return path.parent.parent / EVALUATION
    return path / EVALUATION if is_bundle(path) else None


def report_folder(path: Path, model: str) -> Path:
    """Where reports on a model are written unless something else is said.

    Args:
        path: Where it was found.
        model: What the user called it.
    """
    return own_folder(path) or Path(EVALUATION) / short_name(model).replace("/", "--")


def report_folders(model: str | Path) -> tuple[Path, list[Path]]:
    """Return where a model is, and the folders in which reports on it may lie.

    Raises:
        UserError: There is no such model.
    """
    folder = Path(model).expanduser()
    is_run = (folder / CHECKPOINTS).is_dir() or not folder.is_dir()
    path = resolve_model(model).path if is_run else folder
    own = own_folder(path.resolve())
    return path, [folder for folder in (own, Path(EVALUATION) / short_name(str(model)).replace("/", "--")) if folder]


def asked_with(model: str, adapter: str | None, chat_template: str | None) -> dict[str, Any]:
    """What of the command makes an evaluation another one, beside its plan: each by its name and what is in it.

    Raises:
        UserError: There is no such adapter or chat template.
    """
    found: dict[str, Any] = {}
    if adapter is not None:
        beside = Path(model).expanduser() / ADAPTERS / adapter
        path = resolve_adapter(beside if beside.is_dir() else adapter).path
        found["adapter"] = {"name": short_name(adapter), "sha256": weights_sha256(path)}
    if chat_template is not None:
        source = load_chat_template(chat_template).source
        found["chat_template"] = {"name": Path(chat_template).name, "sha256": sha256_json(source)}
    return found


def folder_name(plan: str, config: Mapping[str, Any]) -> str:
    """The folder of a plan's report: its name, and what else makes it another one (a limit, an adapter, a template)."""
    names = [config[key]["name"] for key in ("adapter", "chat_template") if key in config]
    limit = [f"limit-{config['limit']}"] if "limit" in config else []
    return "-".join([plan, *(re.sub(r"[^\w.-]+", "-", name) for name in names), *limit])


def check_writable(folder: Path) -> None:
    """Try whether a folder can be written, before hours are spent on what shall lie there; leaves nothing behind.

    Raises:
        UserError: It cannot; says why.
    """
    trial = temporary_beside(folder)
    try:
        missing = [path for path in trial.parents if not path.exists()]
        trial.mkdir(parents=True)
        trial.rmdir()
        for path in missing:
            path.rmdir()
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}; choose another --out") from error


def weights_sha256(path: Path) -> str:
    """One SHA-256 for the weights in a checkpoint, bundle or Hugging Face folder."""
    if (path / MANIFEST).is_file():
        files = read_manifest(path)["files"]
        return sha256_json({name: entry["sha256"] for name, entry in files.items() if _is_weights(name)})
    names = [file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()]
    return sha256_json(hash_files(path, sorted(name for name in names if _is_weights(name))))


def _is_weights(name: str) -> bool:
    return name.endswith((".safetensors", ".bin")) or name.startswith(f"{SHARDS}/")
