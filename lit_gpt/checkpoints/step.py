"""A checkpoint: the folder `step-00001234.ckpt/` of one optimizer step.

    model.safetensors   the LightningModule's weights, a tied matrix once      (or shards/, see `sharded.py`)
    ema.safetensors     averaged weights, where a callback keeps them
    state.pt            the rest of Lightning's checkpoint; loads with `weights_only=True`
    manifest.json       sizes and SHA-256, written last

The model's configuration stands in the header of `model.safetensors` as well, so that generating from a checkpoint
reads neither the optimizer's state nor its hash.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lit_gpt.atomic import whole_folder
from lit_gpt.checkpoints.manifest import verify, write_manifest
from lit_gpt.checkpoints.plain import to_plain
from lit_gpt.checkpoints.sharded import join_optimizers, read_shards
from lit_gpt.errors import UserError

WEIGHTS = "model.safetensors"
AVERAGES = "ema.safetensors"
EMA = "ema"
"""Entry of Lightning's checkpoint with averaged weights by name (see `ExponentialMovingAverage`)."""
STATE = "state.pt"
SHARDS = "shards"
CHECKPOINTS = "checkpoints"
"""The folder of a run that holds its checkpoints."""
TIED = "tied_weights"
"""Entry of a sharded checkpoint's state: other names of weights that are saved once."""
PREFIX = "model."
"""Of the GPT's weights among the LightningModule's."""
_NAME = re.compile(r"step-(\d+)\.ckpt")


def checkpoint_name(step: int) -> str:
    """Return the folder's name for a number of optimizer steps: `step-00001234.ckpt`."""
    return f"step-{step:08d}.ckpt"


def step_of(path: Path) -> int | None:
    """Return the optimizer steps that a folder's name says, or None if it is no checkpoint's name."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else None


def is_sharded(folder: Path) -> bool:
    """Whether a checkpoint was saved in shards, one or more files a process."""
    return (folder / SHARDS).is_dir()


def write_checkpoint(checkpoint: dict[str, Any], folder: Path) -> None:
    """Write Lightning's checkpoint dict as a folder, whole or not at all.

    Raises:
        UserError: a value could not be loaded back safely (named by its place), or the disk is full.
    """
    rest = dict(checkpoint)
    weights, averages = rest.pop("state_dict", {}), rest.pop(EMA, None)
    state = to_plain(rest)
    with whole_folder(folder, write_manifest) as temporary:
        about = state.get("lit_gpt", {})
        header = {"config": json.dumps(about.get("config")), "adapter": json.dumps(about.get("adapter"))}
        save_weights(weights, temporary / WEIGHTS, header)
        if averages is not None:
            save_weights(averages, temporary / AVERAGES, {})
        save_state(state, temporary / STATE)


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """Verify a checkpoint and return Lightning's dict, all tensors on the CPU and whole.

    A sharded checkpoint is put together, so that it can be resumed on one device.

    Raises:
        UserError: naming the file that is missing, cut off or damaged.
    """
    verify(folder)
    state = read_state(folder)
    if not is_sharded(folder):
        return state | read_averages(folder) | {"state_dict": read_weights(folder / WEIGHTS)}
    tensors = read_shards(folder / SHARDS)
    if "optimizer_states" in state:
        state["optimizer_states"] = join_optimizers(tensors, state["optimizer_states"])
    weights = retie(tensors.pop("state_dict", {}), state.pop(TIED, {}))
    return state | tensors | {"state_dict": weights}


def read_averages(folder: Path) -> dict[str, dict[str, Tensor]]:
    """Return `{"ema": averaged weights}` of a checkpoint that is not sharded, or `{}` if it has none."""
    return {EMA: read_weights(folder / AVERAGES)} if (folder / AVERAGES).exists() else {}


def read_model_weights(folder: Path, prefix: str = PREFIX, averaged: bool = True) -> dict[str, Tensor]:
    """Return whole weights of the model alone.

    Args:
        folder: a verified checkpoint.
        prefix: of the wanted names, which is cut off.
        averaged: put averaged weights in the place of those they average, in the same dtype, if there are any.
    """
    if is_sharded(folder):
        weights = retie(read_shards(folder / SHARDS, "state_dict")["state_dict"], read_state(folder, mmap=True)[TIED])
        averages = read_shards(folder / SHARDS, EMA).get(EMA, {}) if averaged else {}
    else:
        weights = read_weights(folder / WEIGHTS)
        averages = read_averages(folder).get(EMA, {}) if averaged else {}
    # Tied names share one tensor, and its average belongs to all of them.
    average_of = {id(weights[name]): average.to(weights[name].dtype) for name, average in averages.items()}
    chosen = {name: average_of.get(id(value), value) for name, value in weights.items()}
    return {name.removeprefix(prefix): value for name, value in chosen.items() if name.startswith(prefix)}


def retie(weights: dict[str, Tensor], tied: dict[str, str]) -> dict[str, Tensor]:
    """Bring back the names of tensors that were saved once under another name."""
    return weights | {alias: weights[kept] for alias, kept in tied.items()}


def save_state(state: dict[str, Any], path: Path) -> None:
    """Write plain data (`to_plain`) to a file; through Python's own file, so that a full disk is an OSError."""
    with open(path, "wb") as file:
        torch.save(state, file)


def read_state(folder: Path, mmap: bool = False) -> dict[str, Any]:
    """Read `state.pt` of a checkpoint as data alone; `mmap` leaves its tensors in the file until they are used."""
    return torch.load(folder / STATE, map_location="cpu", weights_only=True, mmap=mmap)


def save_weights(weights: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write tensors as safetensors, exactly, each one once; aliases are remembered in the header."""
    kept: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    first: dict[Any, str] = {}
    for name, tensor in weights.items():
        if not isinstance(tensor, Tensor):
            raise UserError(
                f"checkpoint['state_dict'][{name!r}] is a {type(tensor).__name__}, and weights are tensors; "
                "keep it in on_save_checkpoint instead of get_extra_state"
            )
        view = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and view in first:
            tied[name] = first[view]
        else:
            first[view] = name
            kept[name] = tensor.detach().contiguous()
    save_file(_without_shared_memory(kept), path, metadata={**metadata, "tied": json.dumps(tied)})
    _order_metadata(path)


def _order_metadata(path: Path) -> None:
    """Write the header's metadata in the order of their names: safetensors' own differs from one run to the next.

    So equal weights are equal bytes, with one hash.
    """
    with open(path, "r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        encoded = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(encoded) > size:
            raise AssertionError(f"the header of {path.name} has {size} bytes, and {len(encoded)} in order")
        file.seek(8)
        file.write(encoded.ljust(size))


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a file; a tied name gets the very tensor of the name it was saved under."""
    with safe_open(path, framework="pt") as file:
        tied = json.loads((file.metadata() or {}).get("tied", "{}"))
        return retie({name: file.get_tensor(name) for name in file.keys()}, tied)  # noqa: SIM118


def read_config(folder: Path) -> dict[str, Any] | None:
    """Return the model's configuration as a dict, or None if a module that has none wrote the checkpoint."""
    if is_sharded(folder):
        return read_state(folder, mmap=True).get("lit_gpt", {}).get("config")
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        return json.loads((file.metadata() or {}).get("config", "null"))


def read_adapter_header(folder: Path) -> dict[str, Any] | None:
    """Return what a checkpoint says of the adapter that it holds instead of whole weights; None: it holds those."""
    if is_sharded(folder):
        return None
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        return json.loads((file.metadata() or {}).get("adapter", "null"))


def _without_shared_memory(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors that overlap without being equal: safetensors stores each byte once and would refuse them."""
    seen: set[tuple[torch.device, int]] = set()
    result = {}
    for name, tensor in tensors.items():
        place = (tensor.device, tensor.untyped_storage().data_ptr())
        result[name] = tensor.clone() if tensor.numel() and place in seen else tensor
        seen.add(place)
    return result
