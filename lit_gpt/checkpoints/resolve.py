"""Resolve the name of a model: `--model <run | checkpoint | bundle | Hugging Face folder or Hub name | .gguf file>`.

A run resolves to its best checkpoint by validation or, without a validation, to its newest. Damaged checkpoints are
reported and skipped. The files of checkpoints and bundles are verified before they are read.
"""

import json
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lit_gpt.checkpoints.adapters import (
    SavedAdapter,
    from_checkpoint_tensors,
    is_peft_folder,
    read_adapter_info,
    read_peft_folder,
)
from lit_gpt.checkpoints.bundle import Carried, is_bundle, read_bundle_config, read_carried, tokenizer_in
from lit_gpt.checkpoints.gguf import open_gguf_model
from lit_gpt.checkpoints.huggingface import config_from_hf, open_hf
from lit_gpt.checkpoints.huggingface.tensors import read_json
from lit_gpt.checkpoints.huggingface.writing import TRAINING_ONLY
from lit_gpt.checkpoints.provenance import LINEAGE, read_manifest, verify, without_paths
from lit_gpt.checkpoints.quantization import QuantizedBundle, is_quantized_bundle, read_quantized_bundle
from lit_gpt.checkpoints.step import (
    AVERAGES,
    CHECKPOINTS,
    PREFIX,
    SHARDS,
    STATE,
    WEIGHTS,
    is_sharded,
    read_adapter_header,
    read_builder,
    read_config,
    read_model_weights,
    step_of,
)
from lit_gpt.checks import local_path
from lit_gpt.data.tokenizers import TOKENIZER_FILES
from lit_gpt.errors import UserError
from lit_gpt.extensions import how_to_import, imported_class
from lit_gpt.hub import HubError, download_snapshot
from lit_gpt.instantiate import read_yaml
from lit_gpt.models import GPT, GPTConfig
from lit_gpt.suggest import close_matches

BEST = "best.json"
RUNS = "runs"
"""Where runs live unless `default_root_dir` says otherwise."""
TOKENIZER = "tokenizer"
ADAPTERS = "adapters"
"""Subfolder of a base model's folder with named adapters."""


@dataclass(frozen=True)
class ModelSource:
    """A model on disk, whose weights are read on demand."""

    kind: Literal["checkpoint", "bundle", "hugging_face", "gguf"]
    path: Path
    """Folder of the checkpoint (for a run, the one chosen), bundle or Hugging Face model; or a GGUF file."""
    config: GPTConfig
    load_state_dict: Callable[[], Mapping[str, Tensor]]
    """Returns the complete weights under lit_gpt's names, on the CPU; averaged ones if the checkpoint has them. Weights
    of a bundle, Hugging Face folder or GGUF file are read from disk one at a time, on access."""
    tokenizer_path: Path | None
    lineage: dict[str, Any] | None
    damaged: tuple[str, ...] = ()
    """One error message for each damaged checkpoint that was skipped."""
    carried: Carried = field(default_factory=Carried)
    """Special token IDs and generation settings of a bundle, Hugging Face folder or GGUF file."""
    quantized: QuantizedBundle | None = None
    """Set for a quantized bundle. Its `load_state_dict` raises, because its weights are rounded."""
    builder: dict[str, Any] | None = None
    """`class` and `arguments` of the module that built the model, if it has custom parts; None: a plain `GPT`."""


def language_model_weights(source: ModelSource) -> Mapping[str, Tensor]:
    """Return the weights of a model, after checking that it is a language model.

    Raises:
        UserError: it is a reward model or a classifier, or it is quantized.
    """
    weights = source.load_state_dict()
    if "score.weight" in weights:
        raise UserError(
            f"{source.path} is a reward model or a classifier, which does not generate text; score answers with "
            "`score`, or run `predict` with its config"
        )
    return weights


def exportable_weights(source: ModelSource) -> Mapping[str, Tensor]:
    """Return the weights of a language model, after checking that its config describes all of its parts.

    Raises:
        UserError: as for `language_model_weights`, or the model has custom parts.
    """
    if source.builder is not None:
        raise UserError(
            f"{source.path} has custom parts, which {source.builder['class']} builds and other formats cannot "
            "represent; "
            "`generate`, `chat`, `serve` and `evaluate` can load it"
        )
    return language_model_weights(source)


def resolve_model(path_or_name: str | Path, averaged: bool = True, adapter: str | Path | None = None) -> ModelSource:
    """Find a model; if an adapter is given, it is merged into the model.

    Args:
        path_or_name: folder of a run, checkpoint, bundle or Hugging Face model, a GGUF file, or a name on the Hub.
        averaged: whether to use a checkpoint's averaged weights, if it has any (`ExponentialMovingAverage`).
        adapter: run or checkpoint that trained an adapter on this model, folder in peft's format, or name of an adapter
            in the model's own `adapters/` folder; None: no adapter.

    Raises:
        UserError: the model or adapter does not exist or is damaged, or the adapter belongs to another model.
    """
    if adapter is not None:
        named = Path(path_or_name).expanduser() / ADAPTERS / str(adapter)
        saved = resolve_adapter(named if named.is_dir() else adapter, averaged)
        return _adapted(resolve_model(path_or_name, averaged), saved)
    path = local_path("model", path_or_name)
    if path.is_dir():
        if is_peft_folder(path):
            return _on_its_base(read_peft_folder(path), averaged)
        if step_of(path) is not None or (path / SHARDS).is_dir() or (path / STATE).is_file():
            return _from_checkpoint(path, averaged)
        if (path / CHECKPOINTS).is_dir():
            return _from_run(path, averaged)
        if is_quantized_bundle(path):
            return _from_quantized(path)
        if is_bundle(path):
            return _from_bundle(path)
        if (path / "config.json").is_file():
            return _from_hugging_face(path, path.resolve().name)
        raise UserError(
            f"{path} contains no model: neither {CHECKPOINTS}/ (a run), {WEIGHTS} with {STATE} (a checkpoint), "
            "nor config.json (a bundle or Hugging Face folder)"
        )
    name = str(path_or_name)
    if path.suffix == ".gguf" and path.is_file():
        return _from_gguf(path)
    if path.exists():
        raise UserError(
            f"model {name} is a file; name the folder of a run, a checkpoint, a bundle or a Hugging Face model, or a "
            ".gguf file"
        )
    hint = check_folder_or_hub(
        "model", name, "name a run, a checkpoint, a bundle, a Hugging Face model or a .gguf file"
    )
    try:
        folder = _download(name)
    except UserError as error:
        raise UserError(f"{error}{f'; {hint}' if hint else ''}") from error
    return _from_hugging_face(folder, name)


def check_folder_or_hub(option: str, name: str, remedy: str) -> str:
    """Return what may have been meant by the name of something that does not exist here; "" if nothing is near.

    Args:
        option: name of the option, for the error.
        name: folder or name on the Hub.
        remedy: what to give instead, if nothing is near.

    Raises:
        UserError: it can only be a folder here; the message has the nearest run, or the YAML to train first.
    """
    could_be_on_the_hub = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) and not name.startswith(".")
    hint, is_here = _nearest_models(Path(name).expanduser())
    if is_here or not could_be_on_the_hub:
        raise UserError(f"{option} {name} does not exist; {hint or remedy}")
    return hint


def _nearest_models(path: Path) -> tuple[str, bool]:
    """Return what may have been meant by a folder that does not exist, and whether it can only be meant as a folder.

    A name such as `runs/sft` is a folder here if `runs` is one, and `sft` is if there is a run of that name. A YAML of
    the working directory whose run would have the name is named as what has to run first.
    """
    parents = [path.parent] if path.parent != Path() else [Path(), Path(RUNS)]
    found = {other.name: other for parent in parents if parent.is_dir() for other in parent.iterdir() if other.is_dir()}
    if path.name in found:
        return f"did you mean {found[path.name]}?", True
    is_here = path.parent != Path() and (path.parent.is_dir() or path.parent.name == RUNS)
    names = re.compile(rf"^  name: {re.escape(path.name)}\s*(#.*)?$", re.MULTILINE)
    first = next((file for file in sorted(Path("configs").rglob("*.yaml")) if names.search(file.read_text())), None)
    if first is not None:
        return f"train it first: python -m lit_gpt fit --config {first}", is_here
    models = [
        name for name, other in found.items() if any((other / mark).exists() for mark in (CHECKPOINTS, "config.json"))
    ]
    near = close_matches(path.name, models, count=3)
    return (f"the nearest here: {', '.join(str(found[name]) for name in near)}" if near else ""), is_here


def resolve_adapter(path_or_name: str | Path, averaged: bool = True) -> SavedAdapter:
    """Find an adapter by its run, checkpoint or folder in peft's format.

    Raises:
        UserError: there is no adapter, or it is damaged.
    """
    path = local_path("model", path_or_name)
    if not path.is_dir():
        remedy = _nearest_models(path)[0] or "name a run, a checkpoint or a folder in peft's format"
        raise UserError(f"adapter {path_or_name} does not exist; {remedy}")
    if is_peft_folder(path):
        return read_peft_folder(path)
    is_checkpoint = step_of(path) is not None or (path / STATE).is_file()
    if not is_checkpoint and not (path / CHECKPOINTS).is_dir():
        raise UserError(f"{path} contains no adapter: it is not a run or checkpoint, and has no adapter_config.json")
    checkpoint = path if is_checkpoint else chosen_checkpoint(path)[0]
    verify(checkpoint, None if is_sharded(checkpoint) else [WEIGHTS])
    saved = _saved_adapter(checkpoint, averaged)
    if saved is None:
        raise UserError(f"{checkpoint} is a full model, not an adapter; give it as --model")
    return saved


def _saved_adapter(path: Path, averaged: bool) -> SavedAdapter | None:
    """Return the adapter of a verified checkpoint; None if the checkpoint is a full model."""
    header, config = read_adapter_header(path), read_config(path)
    if header is None or config is None:
        return None
    adapter, base, base_sha256 = read_adapter_info(header)
    run_dir, tokenizer = _run_of(path)
    return SavedAdapter(
        path=path,
        adapter=adapter,
        config=GPTConfig.from_dict(config),
        base=base,
        base_sha256=base_sha256,
        load_tensors=lambda: from_checkpoint_tensors(read_model_weights(path, PREFIX, averaged)),
        tokenizer_path=tokenizer,
        lineage=None if run_dir is None else _read_lineage(run_dir),
        builder=read_builder(path),
    )


def _run_of(checkpoint: Path) -> tuple[Path | None, Path | None]:
    """Return the folders of a checkpoint's run and of the run's tokenizer, each None if it does not exist."""
    run_dir = run_of(checkpoint)
    has_tokenizer = run_dir is not None and (run_dir / TOKENIZER).is_dir()
    return run_dir, run_dir / TOKENIZER if run_dir is not None and has_tokenizer else None


def run_of(checkpoint: Path) -> Path | None:
    """Return the run that a checkpoint belongs to, also if the checkpoint is a link, or was moved and linked."""
    for path in (checkpoint, checkpoint.absolute(), checkpoint.resolve()):
        if path.parent.name == CHECKPOINTS:
            return path.parent.parent
    return None


def _on_its_base(saved: SavedAdapter, averaged: bool, damaged: tuple[str, ...] = ()) -> ModelSource:
    """Merge an adapter into its base model, found under the name that it had in training."""
    if not saved.base:
        raise UserError(
            f"{saved.path} is an adapter without a recorded base model; give --model <base> --adapter {saved.path}"
        )
    try:
        base = resolve_model(saved.base, averaged)
    except UserError as error:
        raise UserError(
            f"{saved.path} is an adapter for {saved.base}, which cannot be found here ({error}); give --model <base> "
            f"--adapter {saved.path}"
        ) from error
    return replace(_adapted(base, saved), damaged=damaged)


def _adapted(base: ModelSource, saved: SavedAdapter) -> ModelSource:
    return ModelSource(
        "checkpoint",
        saved.path,
        saved.config,
        lambda: saved.merged(base.load_state_dict(), base.config, str(base.path)),
        saved.tokenizer_path or base.tokenizer_path,
        saved.lineage or base.lineage,
        base.damaged,
        builder=saved.builder or base.builder,
    )


def _from_run(run_dir: Path, averaged: bool) -> ModelSource:
    path, damaged = chosen_checkpoint(run_dir)
    return _from_checkpoint(path, averaged, damaged)


def _from_checkpoint(path: Path, averaged: bool, damaged: tuple[str, ...] = ()) -> ModelSource:
    # Generation needs only the weights; hashing the optimizer's state as well would take three times as long.
    verify(path, None if is_sharded(path) else [name for name in (WEIGHTS, AVERAGES) if (path / name).exists()])
    saved = _saved_adapter(path, averaged)
    if saved is not None:
        return _on_its_base(saved, averaged, damaged)
    config = read_config(path)
    if config is None:
        raise UserError(
            f"{path} was not written by a lit_gpt module: it has no model configuration; name a run, a checkpoint, a "
            "bundle or a Hugging Face folder"
        )
    run_dir, tokenizer = _run_of(path)
    return ModelSource(
        "checkpoint",
        path,
        GPTConfig.from_dict(config),
        lambda: read_model_weights(path, PREFIX, averaged),
        tokenizer,
        None if run_dir is None else _read_lineage(run_dir),
        damaged,
        builder=read_builder(path),
    )


def _from_bundle(path: Path) -> ModelSource:
    verify(path)
    config = read_bundle_config(path)
    return ModelSource(
        "bundle",
        path,
        config,
        lambda: open_hf(path)[1],
        tokenizer_in(path),
        _read_lineage(path),
        carried=read_carried(path),
    )


def _from_quantized(path: Path) -> ModelSource:
    verify(path)
    bundle = read_quantized_bundle(path)
    return ModelSource(
        "bundle",
        path,
        bundle.config,
        bundle.refuse_plain_weights,
        bundle.tokenizer_path,
        _read_lineage(path),
        carried=bundle.carried,
        quantized=bundle,
    )


def _from_hugging_face(path: Path, name: str) -> ModelSource:
    config = config_from_hf(read_json(path / "config.json"))
    return ModelSource(
        "hugging_face",
        path,
        config,
        lambda: open_hf(path)[1],
        tokenizer_in(path),
        {"imported_from": name},  # a Hub name or the folder's last component, never an absolute path
        carried=read_carried(path),
    )


def _from_gguf(path: Path) -> ModelSource:
    model = open_gguf_model(path)
    folder = None if model.tokenizer is None else _tokenizer_folder(tuple(model.tokenizer.files.items()))
    return ModelSource(
        "gguf",
        path,
        model.config,
        lambda: model.weights,
        None if folder is None else Path(folder.name),
        {"imported_from": path.name},
        carried=Carried({} if model.tokenizer is None else model.tokenizer.token_ids),
    )


@cache  # one folder per tokenizer; removed when the process ends
def _tokenizer_folder(files: tuple[tuple[str, bytes], ...]) -> "tempfile.TemporaryDirectory[str]":
    """Write a tokenizer to a temporary folder, because all other code reads tokenizers from folders."""
    folder = tempfile.TemporaryDirectory(prefix="lit_gpt-tokenizer-")
    for name, content in files:
        (Path(folder.name) / name).write_bytes(content)
    return folder


def _read_lineage(folder: Path) -> dict[str, Any] | None:
    path = folder / LINEAGE
    return read_json(path, "restore it, or remove it") if path.is_file() else None


def _download(name: str) -> Path:
    wanted = ["config.json", "generation_config.json", *TOKENIZER_FILES]
    weights = ["*.safetensors", "*.safetensors.index.json"]
    try:
        folder = download_snapshot(name, wanted + weights, ["*/*"])
        if not any(folder.glob("*.safetensors")):  # older models have only pickles, read with weights_only=True
            weights = ["pytorch_model*.bin", "pytorch_model.bin.index.json"]
            folder = download_snapshot(name, wanted + weights, ["*/*"])
        return folder
    except HubError as error:
        raise UserError(
            f"model {name!r} is neither a folder here nor available from the Hugging Face Hub: {error}"
        ) from error


# ------------------------------------------------------------------ a run's checkpoints


def list_checkpoints(run_dir: Path) -> list[Path]:
    """Return the checkpoints of a run, newest first: by time of saving, then by step.

    After a resume from an earlier checkpoint, the newest may have fewer steps than an abandoned one.
    """
    folders = [path for path in (Path(run_dir) / CHECKPOINTS).glob("step-*.ckpt") if step_of(path) is not None]
    return sorted(folders, key=lambda path: (_saved_at(path), step_of(path) or 0), reverse=True)


def find_last_complete(run_dir: str | Path) -> tuple[Path, list[str]]:
    """Return a run's newest intact checkpoint, and one error message for each newer one that is damaged.

    Raises:
        UserError: the run has no checkpoint, or all of them are damaged (each is reported).
    """
    damaged: list[str] = []
    for path in list_checkpoints(Path(run_dir)):
        try:
            verify(path)
            return path, damaged
        except UserError as error:
            damaged.append(str(error))
    if damaged:
        raise UserError(
            f"every checkpoint in {run_dir} is damaged: " + "; ".join(damaged) + "; restore a copy of one of "
            "them, or start a new run"
        )
    inside = " (the working directory is itself a run)" if list_checkpoints(Path()) else ""
    raise UserError(
        f"there is no checkpoint in {Path(run_dir).absolute()}{inside}; a relative trainer.default_root_dir is "
        "resolved "
        "from the working directory: change to the folder where the run was started. To start a new run, omit "
        "--ckpt_path"
    )


def find_best(run_dir: str | Path) -> Path:
    """Return a run's best checkpoint by validation.

    Raises:
        UserError: no validation has run, or the checkpoint is missing or damaged.
    """
    folder = Path(run_dir) / CHECKPOINTS
    record = read_best(folder)
    if record is None:
        raise UserError(f"{folder / BEST} does not name a checkpoint: no validation has run; use --ckpt_path last")
    path = folder / record["checkpoint"]
    verify(path)
    return path


def read_best(checkpoints: Path) -> dict[str, Any] | None:
    """Return `best.json` (`checkpoint`, `step`, `monitor`, `value`), or None if it or its checkpoint is missing."""
    try:
        record = json.loads((checkpoints / BEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    sound = isinstance(record, dict) and {"checkpoint", "step", "monitor", "value"} <= record.keys()
    return record if sound and (checkpoints / record["checkpoint"]).is_dir() else None


def chosen_checkpoint(run_dir: Path) -> tuple[Path, tuple[str, ...]]:
    """Return the checkpoint that a run resolves to, and one error message for each damaged one that was skipped."""
    damaged: list[str] = []
    path = None
    if read_best(run_dir / CHECKPOINTS) is not None:
        try:
            path = find_best(run_dir)
        except UserError as error:
            damaged.append(str(error))
    if path is None:
        path, others = find_last_complete(run_dir)
        damaged += [other for other in others if other not in damaged]
    return path, tuple(damaged)


def _saved_at(path: Path) -> float:
    try:
        return float(read_manifest(path)["saved_at"])
    except (UserError, KeyError, TypeError, ValueError):  # damaged: reported later, by verify()
        return path.stat().st_mtime


# ------------------------------------------------------------------ building a model


def finished_model(config: GPTConfig, weights: Mapping[str, Tensor]) -> GPT:
    """Build a model for inference: in eval mode, frozen, without dropout and multi-token-prediction blocks.

    Args:
        config: the model's configuration.
        weights: complete weights under lit_gpt's names, plain or quantized; the model shares these tensors.
    """
    with torch.device("meta"):
        network = GPT(replace(config, dropout=0.0, multi_token=0)).eval().requires_grad_(False)
    network.load_state_dict(_without_training_only(weights), assign=True)
    return network


def _without_training_only(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: weights[name] for name in weights if not name.startswith(TRAINING_ONLY)}


def built_model(source: ModelSource, weights: Mapping[str, Tensor]) -> GPT:
    """Build a model for inference, including custom parts; see `finished_model`.

    Custom parts are built by the LightningModule that trained them. Its class is searched among the modules that are
    already imported and those of `load_extensions`: a name in a checkpoint never triggers an import.

    Args:
        source: the model.
        weights: its complete weights under lit_gpt's names, plain or quantized.

    Raises:
        UserError: the model has custom parts whose class is not imported.
    """
    if source.builder is None:
        return finished_model(source.config, weights)
    path = str(source.builder["class"])
    kind: Any = imported_class(path)
    if not hasattr(kind, "build_model") or not hasattr(kind, "load_from_checkpoint"):
        raise UserError(f"{source.path}: its model has custom parts that {path} builds, {how_to_import(path)}")
    if source.builder["not_saved"]:
        raise UserError(
            f"{source.path}: {path} was created with {', '.join(source.builder['not_saved'])}, which a checkpoint "
            "cannot "
            f"contain; create it in Python, with init_from={str(source.path)!r}"
        )
    model = kind.load_from_checkpoint(source.path, **source.builder["arguments"]).model
    if not isinstance(model, GPT):
        raise UserError(f"{source.path}: {path} builds a {type(model).__name__}, which is not a GPT")
    model.multi_token = None
    model.load_state_dict(_without_training_only(weights), assign=True)
    return model.eval().requires_grad_(False)


def training_facts(checkpoint: Path) -> dict[str, Any]:
    """Return what a run recorded about a checkpoint: its step, its value if it is the best one, the run's config.

    Args:
        checkpoint: folder of a checkpoint; for any other folder, {} is returned.
    """
    run_dir = run_of(checkpoint)
    if run_dir is None:
        return {}
    name = checkpoint.name if step_of(checkpoint) is not None else checkpoint.resolve().name
    facts: dict[str, Any] = {"step": step_of(Path(name))}
    best = read_best(run_dir / CHECKPOINTS)
    if best is not None and best["checkpoint"] == name:
        facts |= {"monitor": best["monitor"], "value": best["value"]}
    config = run_dir / "config.yaml"
    if config.is_file():
        facts["config"] = without_paths(read_yaml(config, "the config of a run"))
    return facts
