"""A checkpoint: the folder `step-00001234.ckpt/`, saved after that optimizer step.

    model.safetensors   the LightningModule's weights, tied ones stored once     (or shards/, see below)
    ema.safetensors     averaged weights, if a callback maintains them
    state.pt            the rest of Lightning's checkpoint; loads with `weights_only=True`
    manifest.json       sizes and SHA-256, written last

The model's configuration is also stored in the header of `model.safetensors`, so that generating from a checkpoint
neither reads nor hashes the optimizer state.

**Plain data.** A checkpoint contains only plain data and tensors, nothing that refers to code.
`torch.load(weights_only=True)` rejects anything else, but only on loading, when it is too late; so `to_plain` checks
while saving, when the error can name the value's location and nothing has been lost yet.

**Shards.** `shards/` is written by torch.distributed.checkpoint (DCP). Each process writes its own shards; the file
`.metadata` records the location of every piece of every tensor, so that any number of processes can load them. Only
tensors are stored there: `state_dict.<weight>`, `optimizer_0.<weight>.<moment>`, and anything else that is sharded like
the weights (`ema.<weight>`). The options of the optimizer's parameter groups are plain data and stay in `state.pt`.
DCP reads `.metadata` with `pickle.load` and plain values with `weights_only=False`, either of which would let a file
execute code. The reader here accepts only DCP's own record classes and torch's dtypes; the planners load only tensors.
"""

import enum
import io
import json
import pickle
import re
from collections import Counter, OrderedDict
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

from lit_gpt.atomic import atomic_folder
from lit_gpt.checkpoints.provenance import verify, write_manifest
from lit_gpt.errors import UserError

WEIGHTS = "model.safetensors"
AVERAGES = "ema.safetensors"
EMA = "ema"
"""Key of the averaged weights in Lightning's checkpoint dict (see `ExponentialMovingAverage`)."""
STATE = "state.pt"
SHARDS = "shards"
CHECKPOINTS = "checkpoints"
"""Subfolder of a run with its checkpoints."""
TIED = "tied_weights"
"""Key in a sharded checkpoint's `state.pt`: maps aliases to the name that the shared weight is saved under."""
PREFIX = "model."
"""Prefix of the GPT's weights in the LightningModule's state dict."""
_SCALARS = (type(None), bool, int, float, complex, str, bytes)
_PLAIN_TYPES = (torch.Size, torch.dtype, torch.device)
OPTIMIZER = "optimizer_"
_NAME = re.compile(r"step-(\d+)\.ckpt")


def checkpoint_name(step: int) -> str:
    """Return the name of a checkpoint's folder: `step-00001234.ckpt`."""
    return f"step-{step:08d}.ckpt"


def step_of(path: Path) -> int | None:
    """Return the optimizer step in a checkpoint folder's name, or None if it is not the name of a checkpoint."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else None


def is_sharded(folder: Path) -> bool:
    """Return whether a checkpoint was saved in shards, one or more files per process."""
    return (folder / SHARDS).is_dir()


def write_checkpoint(checkpoint: dict[str, Any], folder: Path) -> None:
    """Write Lightning's checkpoint dict as a folder, atomically.

    Raises:
        UserError: a value could not be loaded back safely (its location is named), or the disk is full.
    """
    rest = dict(checkpoint)
    weights, averages = rest.pop("state_dict", {}), rest.pop(EMA, None)
    state = to_plain(rest)
    with atomic_folder(folder, write_manifest) as temporary:
        about = state.get("lit_gpt", {})
        header = {name: json.dumps(about.get(name)) for name in ("config", "adapter", "builder")}
        save_weights(weights, temporary / WEIGHTS, header)
        if averages is not None:
            save_weights(averages, temporary / AVERAGES, {})
        save_state(state, temporary / STATE)


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """Verify a checkpoint and return Lightning's checkpoint dict with full (unsharded) tensors on the CPU.

    A sharded checkpoint is assembled, so that training can resume on a single device.

    Raises:
        UserError: a file is missing, truncated or damaged; the message names it.
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
    """Return `{"ema": averaged weights}` of an unsharded checkpoint, or `{}` if it has none."""
    return {EMA: read_weights(folder / AVERAGES)} if (folder / AVERAGES).exists() else {}


def read_model_weights(folder: Path, prefix: str = PREFIX, averaged: bool = True) -> dict[str, Tensor]:
    """Return the full (unsharded) weights of the model, without optimizer state.

    Args:
        folder: folder of a verified checkpoint.
        prefix: only names with this prefix are returned, without it.
        averaged: whether to replace weights by their averages, in the same dtype, if there are any.
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
    """Return weights with the aliases of tied tensors added back; `tied` maps an alias to its saved name."""
    return weights | {alias: weights[kept] for alias, kept in tied.items()}


def save_state(state: dict[str, Any], path: Path) -> None:
    """Write plain data (`to_plain`) through a Python file object, so that a full disk raises OSError."""
    with open(path, "wb") as file:
        torch.save(state, file)


def read_state(folder: Path, mmap: bool = False) -> dict[str, Any]:
    """Read `state.pt` of a checkpoint without executing code; with `mmap`, tensors are read when they are used."""
    return torch.load(folder / STATE, map_location="cpu", weights_only=True, mmap=mmap)


def save_weights(weights: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write tensors as safetensors, each stored once; aliases are recorded in the header.

    Raises:
        UserError: a value is not a tensor.
    """
    kept: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    first: dict[Any, str] = {}
    for name, tensor in weights.items():
        if not isinstance(tensor, Tensor):
            raise UserError(
                f"checkpoint['state_dict'][{name!r}] is a {type(tensor).__name__}, but weights must be tensors; "
                "save it in on_save_checkpoint instead of get_extra_state"
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
    """Sort the header's metadata by name, because safetensors' own order differs from run to run.

    Files with equal weights are then equal byte for byte and have the same hash.
    """
    with open(path, "r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        encoded = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(encoded) > size:
            raise AssertionError(f"the header of {path.name} grew from {size} to {len(encoded)} bytes by sorting")
        file.seek(8)
        file.write(encoded.ljust(size))


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a file; tied names share one tensor object."""
    with safe_open(path, framework="pt") as file:
        tied = json.loads((file.metadata() or {}).get("tied", "{}"))
        return retie({name: file.get_tensor(name) for name in file.keys()}, tied)  # noqa: SIM118


def read_config(folder: Path) -> dict[str, Any] | None:
    """Return the model's configuration as a dict, or None if the checkpoint's module had none."""
    return _read_about(folder, "config")


def read_adapter_header(folder: Path) -> dict[str, Any] | None:
    """Return the description of a checkpoint's adapter; None if the checkpoint is a full model."""
    return _read_about(folder, "adapter")


def read_builder(folder: Path) -> dict[str, Any] | None:
    """Return `{"class": ..., "arguments": {...}}` of the module that built a custom model; None: a plain `GPT`."""
    return _read_about(folder, "builder")


def _read_about(folder: Path, name: str) -> dict[str, Any] | None:
    """Read an entry of a module's description of its model, without reading the optimizer state."""
    if is_sharded(folder):
        return read_state(folder, mmap=True).get("lit_gpt", {}).get(name)
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        return json.loads((file.metadata() or {}).get(name, "null"))


def _without_shared_memory(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors with copies of those that share storage without being identical, which safetensors rejects."""
    seen: set[tuple[torch.device, int]] = set()
    result = {}
    for name, tensor in tensors.items():
        storage = (tensor.device, tensor.untyped_storage().data_ptr())
        result[name] = tensor.clone() if tensor.numel() and storage in seen else tensor
        seen.add(storage)
    return result


# ------------------------------------------------------------------ plain data


def to_plain(value: Any, where: str = "checkpoint") -> Any:
    """Return a copy of `value` that `torch.load(weights_only=True)` can load; tensors are shared, not copied.

    Args:
        value: nested dicts, lists, tuples and sets of scalars and tensors.
        where: location of `value` in error messages; keys and indices are appended to it.

    Raises:
        UserError: a nested value has no plain form; the message names its location.
    """
    kind = type(value)
    if kind in _SCALARS or kind in _PLAIN_TYPES:
        return value
    if isinstance(value, Tensor):
        return _plain_tensor(value, where)
    if isinstance(value, enum.Enum):
        return to_plain(value.value, where)
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, np.generic):
        return to_plain(value.item(), where)
    if isinstance(value, Mapping):
        items = ((_plain_key(key, where), to_plain(item, f"{where}[{key!r}]")) for key, item in value.items())
        return kind(items) if kind is OrderedDict else Counter(dict(items)) if kind is Counter else dict(items)
    if isinstance(value, list | tuple):  # a named tuple becomes a tuple, since loading its class would need an import
        items_ = [to_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
        return items_ if isinstance(value, list) else tuple(items_)
    if kind is set:
        return {to_plain(item, f"{where}{{...}}") for item in value}
    for base in (int, float, str):  # a subclass of a scalar
        if isinstance(value, base):
            return base(value)
    raise UserError(
        f"{where} is a {kind.__module__}.{kind.__qualname__}, which cannot be checkpointed: a checkpoint holds plain "
        "data and tensors only, so that loading it never runs code. Save numbers, strings, lists, dicts or tensors "
        "instead, or leave it out (save_hyperparameters(ignore=[...]), state_dict of the callback or DataModule)"
    )


def _plain_key(key: Any, where: str) -> Any:
    return to_plain(key, f"the key {key!r} of {where}")


def _plain_tensor(value: Tensor, where: str) -> Tensor:
    if type(value) in (Tensor, nn.Parameter) or type(value) in torch.serialization.get_safe_globals():
        return value
    raise UserError(
        f"{where} is a {type(value).__module__}.{type(value).__qualname__}, a tensor subclass that a checkpoint cannot "
        "load back; save a plain tensor (full_tensor() of a sharded one)"
    )


# ------------------------------------------------------------------ shards

_RECORDS = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size"},
    "pathlib": {"PosixPath", "WindowsPath"},
    "pathlib._local": {"PosixPath", "WindowsPath"},
}


class _RecordUnpickler(pickle.Unpickler):
    """An unpickler that accepts only the classes of DCP's `.metadata` and torch's dtypes."""

    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_dtype or name in _RECORDS.get(module, ()):
            return super().find_class(module, name)
        raise UserError(f"the shards' .metadata refers to {module}.{name}, which no checkpoint needs; it is not loaded")


class ShardReader(dcp.FileSystemReader):
    """DCP's reader, but `.metadata` is read without executing code."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Read `.metadata`; see the base class.

        Raises:
            UserError: the file is damaged, or contains anything but metadata.
        """
        path = Path(self.path) / ".metadata"
        with open(path, "rb") as file:
            try:
                metadata = _RecordUnpickler(file).load()
            except (pickle.UnpicklingError, EOFError, AttributeError, TypeError) as error:
                raise UserError(f"{path} is damaged ({error}); use another checkpoint") from None
        if not isinstance(metadata, Metadata):
            raise UserError(f"{path} contains a {type(metadata).__name__} instead of metadata; use another checkpoint")
        return metadata


class _Tensors(DefaultLoadPlanner):
    """A planner that loads tensors in place and rejects everything else."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        raise UserError(f"{read_item.dest_index.fqn} in the shards is not a tensor; shards may contain only tensors")


class _FullTensors(_Tensors, _EmptyStateDictLoadPlanner):
    """A planner that also assembles full tensors in a single process."""


def load_into(state: dict[str, Any], shards: Path) -> None:
    """Load a nested dict of (sharded) tensors in place; a collective call of all processes in the group.

    Raises:
        UserError: a tensor is missing or its shape differs from the model's.
    """
    reader = ShardReader(shards)
    reader.read_metadata()  # outside the try: this UserError must not be wrapped by DCP
    try:
        dcp.load(state, storage_reader=reader, planner=_Tensors())
    except CheckpointException as error:
        first = next(iter(error.failures.values()))[0] if error.failures else error
        raise UserError(
            f"{shards} does not fit the model: {first}; set the model's config to that of its run"
        ) from error


def read_shards(shards: Path, entry: str | None = None) -> dict[str, Any]:
    """Assemble sharded tensors in one process.

    Args:
        shards: the `shards/` folder of a checkpoint.
        entry: top-level entry to read, such as `state_dict`; None: all.

    Returns:
        Nested dicts of full tensors on the CPU, by entry.
    """
    state: dict[str, Any] = {}
    reader = ShardReader(shards)
    reader.read_metadata()
    planner = _FullTensors(None if entry is None else {entry})
    _load_state_dict(state, storage_reader=reader, planner=planner, no_dist=True)
    return state


def join_optimizers(tensors: dict[str, Any], states: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Combine optimizer tensors from `shards/` with plain values from `state.pt` into torch's form, by index.

    Args:
        tensors: result of `read_shards` or `load_into`; its `optimizer_<i>` entries are removed.
        states: `{"state": {name: plain values}, "param_groups": [...]}` of each optimizer, by parameter name.
    """
    for i, state in enumerate(states):
        for name, moments in tensors.pop(f"{OPTIMIZER}{i}", {}).items():
            state["state"].setdefault(name, {}).update(moments)
    return [by_index(state) for state in states]


def saved_tensors(shards: Path) -> dict[tuple[str, ...], tuple[torch.Size, torch.dtype]]:
    """Return shape and dtype of each tensor by its path, such as `("optimizer_0", "model.wte.weight", "exp_avg")`."""
    metadata = ShardReader(shards).read_metadata()
    paths = metadata.planner_data or {}
    return {
        paths.get(name, (name,)): (entry.size, entry.properties.dtype)
        for name, entry in metadata.state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }


def join_parameters(states: list[dict[str, Any]], order: Mapping[str, int]) -> dict[str, Any]:
    """Return one optimizer's state over all parameters from its states on processes that hold different ones.

    Args:
        states: state of each process, by parameter name (`by_name`); groups of the same name (without one: of the same
            options) are one group.
        order: index of each name in the whole model. Parameters of a group come in this order, and groups in that of
            the processes, as if one process had all parameters.
    """

    def key(group: dict[str, Any]) -> Any:
        return group.get("name") or {name: value for name, value in group.items() if name != "params"}

    groups: list[dict[str, Any]] = []
    for state in states:
        after = len(groups)  # where a group goes that no process so far has: before the one that follows it
        for own in reversed(state["param_groups"]):
            known = [i for i, group in enumerate(groups) if key(group) == key(own)]
            if known:
                after, group = known[0], groups[known[0]]
                group["params"] += [name for name in own["params"] if name not in group["params"]]
            else:
                groups.insert(after, {**own, "params": list(own["params"])})
    for group in groups:
        group["params"].sort(key=lambda name: order.get(name, len(order)))
    return {"state": {name: item for state in states for name, item in state["state"].items()}, "param_groups": groups}


def select_parameters(state: dict[str, Any], saved: list[str], wanted: list[str]) -> dict[str, Any]:
    """Return the part of an optimizer's state that belongs to some parameters, by index in their order.

    Args:
        state: by index, of the parameters `saved`.
        saved: names of the parameters that the state is of.
        wanted: names of the parameters of this process.

    Raises:
        UserError: a parameter is missing.
    """
    index = {name: i for i, name in enumerate(saved)}
    groups = {i: group for group in state["param_groups"] for i in group["params"]}
    chosen: dict[int, dict[str, Any]] = {}
    moments = {}
    for i, name in enumerate(wanted):
        if name not in index:
            raise UserError(f"the checkpoint's optimizer has no parameter {name}; it contains another model")
        group = groups[index[name]]
        chosen.setdefault(id(group), {**group, "params": []})["params"].append(i)
        if index[name] in state["state"]:
            moments[i] = state["state"][index[name]]
    return {"state": moments, "param_groups": list(chosen.values())}


def by_index(state: dict[str, Any]) -> dict[str, Any]:
    """Convert an optimizer's state from parameter names to torch's form, by index in the order of its groups."""
    names = [name for group in state["param_groups"] for name in group["params"]]
    index = {name: i for i, name in enumerate(names)}
    groups = [{**group, "params": [index[name] for name in group["params"]]} for group in state["param_groups"]]
    return {"state": {index[name]: item for name, item in state.get("state", {}).items()}, "param_groups": groups}


def by_name(state: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """Convert `Optimizer.state_dict()` from indices to parameter names.

    Args:
        state: an optimizer's state, by index.
        names: names of the parameters, in the order of the optimizer's groups.
    """
    groups = [{**group, "params": [names[i] for i in group["params"]]} for group in state["param_groups"]]
    return {"state": {names[i]: item for i, item in state["state"].items()}, "param_groups": groups}
