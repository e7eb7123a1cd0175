"""One name for a model: `--model <run | checkpoint | bundle | Hugging Face folder or hub name>`.

A run stands for its best checkpoint where a validation has chosen one, else for its newest; a damaged one is
named and passed over. Every file is verified before anything is read from it.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from lit_gpt.checkpoints.bundle import is_bundle, read_bundle_config, tokenizer_in
from lit_gpt.checkpoints.huggingface import config_from_hf, import_hf
from lit_gpt.checkpoints.lineage import LINEAGE
from lit_gpt.checkpoints.manifest import read_manifest, verify
from lit_gpt.checkpoints.step import (
    AVERAGES,
    CHECKPOINTS,
    PREFIX,
    SHARDS,
    STATE,
    WEIGHTS,
    is_sharded,
    read_config,
    read_model_weights,
    step_of,
)
from lit_gpt.data.tokenizers import TOKENIZER_FILES
from lit_gpt.errors import UserError
from lit_gpt.models import GPTConfig

BEST = "best.json"
TOKENIZER = "tokenizer"


@dataclass(frozen=True)
class ModelSource:
    """A model that was found, its weights not read yet."""

    kind: Literal["checkpoint", "bundle", "hugging_face"]
    path: Path
    """The checkpoint, bundle or Hugging Face folder itself (of a run, the checkpoint that was chosen)."""
    config: GPTConfig
    load_state_dict: Callable[[], dict[str, Tensor]]
    """Reads whole weights under the GPT's names, on the CPU; averaged ones where the checkpoint has them."""
    tokenizer_path: Path | None
    lineage: dict[str, Any] | None
    damaged: tuple[str, ...] = ()
    """What was wrong with checkpoints that were passed over."""


def resolve_model(path_or_name: str | Path, averaged: bool = True) -> ModelSource:
    """Find a model.

    Args:
        path_or_name: folder of a run, a checkpoint, a bundle or a Hugging Face model, or a name on the hub.
        averaged: take the averaged weights of a checkpoint that has them (`ExponentialMovingAverage`).

    Raises:
        UserError: there is no such thing, or it is damaged.
    """
    path = Path(path_or_name).expanduser()
    if path.is_dir():
        if step_of(path) is not None or (path / SHARDS).is_dir() or (path / STATE).is_file():
            return _from_checkpoint(path, averaged)
        if (path / CHECKPOINTS).is_dir():
            return _from_run(path, averaged)
        if is_bundle(path):
            return _from_bundle(path)
        if (path / "config.json").is_file():
            return _from_hugging_face(path)
        raise UserError(
            f"{path} holds no model: neither {CHECKPOINTS}/ (a run), {WEIGHTS} with {STATE} (a checkpoint), "
            "nor config.json (a bundle or Hugging Face folder)"
        )
    name = str(path_or_name)
    if path.exists() or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith("."):
        raise UserError(f"model {name} does not exist; name a run, a checkpoint, a bundle or a Hugging Face model")
    return _from_hugging_face(_download(name))


def list_checkpoints(run_dir: Path) -> list[Path]:
    """Return the checkpoints of a run, newest first: by when they were saved, then by step.

    After a resume from an earlier one, the newest may have fewer steps than one that was left behind.
    """
    folders = [path for path in (Path(run_dir) / CHECKPOINTS).glob("step-*.ckpt") if step_of(path) is not None]
    return sorted(folders, key=lambda path: (_saved_at(path), step_of(path) or 0), reverse=True)


def find_last_whole(run_dir: str | Path) -> tuple[Path, list[str]]:
    """Return a run's newest checkpoint that is whole, and what is wrong with each newer one.

    Raises:
        UserError: the run has no checkpoint, or no whole one (each is named with what is wrong).
    """
    damaged: list[str] = []
    for path in list_checkpoints(Path(run_dir)):
        try:
            verify(path)
            return path, damaged
        except UserError as error:
            damaged.append(str(error))
    if damaged:
        raise UserError(f"every checkpoint in {run_dir} is damaged: " + "; ".join(damaged))
    raise UserError(f"there is no checkpoint in {run_dir}; start the run without --ckpt_path")


def find_best(run_dir: str | Path) -> Path:
    """Return a run's checkpoint with the best validation.

    Raises:
        UserError: no validation has chosen one, or it is gone or damaged.
    """
    folder = Path(run_dir) / CHECKPOINTS
    record = read_best(folder)
    if record is None:
        raise UserError(f"{folder / BEST} names no checkpoint: no validation has run; use --ckpt_path last")
    path = folder / record["checkpoint"]
    verify(path)
    return path


def read_best(checkpoints: Path) -> dict[str, Any] | None:
    """Return `best.json` of a run's checkpoints (`checkpoint`, `step`, `monitor`, `value`) if it names one."""
    try:
        record = json.loads((checkpoints / BEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    sound = isinstance(record, dict) and {"checkpoint", "step", "monitor", "value"} <= record.keys()
    return record if sound and (checkpoints / record["checkpoint"]).is_dir() else None


def _from_run(run_dir: Path, averaged: bool) -> ModelSource:
    damaged: list[str] = []
    path = None
    if read_best(run_dir / CHECKPOINTS) is not None:
        try:
            path = find_best(run_dir)
        except UserError as error:
            damaged.append(str(error))
    if path is None:
        path, others = find_last_whole(run_dir)
        damaged += [other for other in others if other not in damaged]
    return _from_checkpoint(path, averaged, tuple(damaged))


def _from_checkpoint(path: Path, averaged: bool, damaged: tuple[str, ...] = ()) -> ModelSource:
    # Generating needs the weights alone; hashing the optimizer's state would take three times as long.
    verify(path, None if is_sharded(path) else [name for name in (WEIGHTS, AVERAGES) if (path / name).exists()])
    config = read_config(path)
    if config is None:
        raise UserError(f"{path} was not written by a lit_gpt module: it has no model configuration")
    run_dir = path.parent.parent if path.parent.name == CHECKPOINTS else None
    tokenizer = None if run_dir is None or not (run_dir / TOKENIZER).is_dir() else run_dir / TOKENIZER
    return ModelSource(
        "checkpoint",
        path,
        GPTConfig.from_dict(config),
        lambda: read_model_weights(path, PREFIX, averaged),
        tokenizer,
        None if run_dir is None else _read_lineage(run_dir),
        damaged,
    )


def _from_bundle(path: Path) -> ModelSource:
    verify(path)
    config = read_bundle_config(path)
    return ModelSource("bundle", path, config, lambda: import_hf(path)[1], tokenizer_in(path), _read_lineage(path))


def _from_hugging_face(path: Path) -> ModelSource:
    try:
        config = config_from_hf(json.loads((path / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path / 'config.json'} cannot be read: {error}") from error
    return ModelSource("hugging_face", path, config, lambda: import_hf(path)[1], tokenizer_in(path), None)


def _read_lineage(folder: Path) -> dict[str, Any] | None:
    path = folder / LINEAGE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _saved_at(path: Path) -> float:
    try:
        return float(read_manifest(path)["saved_at"])
    except (UserError, KeyError, TypeError, ValueError):  # damaged: it is named when its turn comes
        return path.stat().st_mtime


def _download(name: str) -> Path:
    import huggingface_hub

    wanted = ["config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", *TOKENIZER_FILES]
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=wanted, ignore_patterns=["*/*"]))
    except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"model {name!r} is neither a folder here nor can it be had from the Hugging Face hub: {reason}"
        ) from error
