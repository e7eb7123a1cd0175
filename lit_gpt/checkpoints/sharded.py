"""Sharded checkpoints: `shards/` of a checkpoint folder, written by torch.distributed.checkpoint (DCP).

Each process writes its own pieces; the file `.metadata` says which piece of which tensor lies where, so that any
other number of processes can load them. Only tensors lie there: `state_dict.<weight>`,
`optimizer_0.<weight>.<moment>`, and whatever else is sharded like the weights (`ema.<weight>`). The options of the
optimizer's groups are plain data and stay in `state.pt`.

DCP reads `.metadata` with `pickle.load` and plain values with `weights_only=False`, which would let a file choose
code to run. The reader here allows DCP's own record classes and torch's dtypes; the planners load tensors alone.
"""

import io
import pickle
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

from lit_gpt.errors import UserError

OPTIMIZER = "optimizer_"
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
    """Knows the classes of DCP's `.metadata` and torch's dtypes; every other name is refused."""

    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_dtype or name in _RECORDS.get(module, ()):
            return super().find_class(module, name)
        raise UserError(f"the shards' .metadata names {module}.{name}, which no checkpoint needs: it is not loaded")


class ShardReader(dcp.FileSystemReader):
    """DCP's reader, with `.metadata` read as data alone."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Read `.metadata`; see the base class."""
        path = Path(self.path) / ".metadata"
        with open(path, "rb") as file:
            try:
                metadata = _RecordUnpickler(file).load()
            except (pickle.UnpicklingError, EOFError, AttributeError, TypeError) as error:
                raise UserError(f"{path} is damaged ({error}); use another checkpoint") from None
        if not isinstance(metadata, Metadata):
            raise UserError(f"{path} holds a {type(metadata).__name__} and no metadata; use another checkpoint")
        return metadata


class _Tensors(DefaultLoadPlanner):
    """Loads tensors into place and refuses what is none."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        raise UserError(f"{read_item.dest_index.fqn} in the shards is no tensor; only tensors are loaded from there")


class _WholeTensors(_Tensors, _EmptyStateDictLoadPlanner):
    """The same, making each tensor whole in this one process."""


def load_into(state: dict[str, Any], shards: Path) -> None:
    """Fill a nested dict of (sharded) tensors in place; every process of the group calls it.

    Raises:
        UserError: a tensor is missing, or has another shape than the model's.
    """
    reader = ShardReader(shards)
    reader.read_metadata()  # an error here reaches the user as it is, not through DCP's own
    try:
        dcp.load(state, storage_reader=reader, planner=_Tensors())
    except CheckpointException as error:
        first = next(iter(error.failures.values()))[0] if error.failures else error
        raise UserError(f"{shards} does not fit the model: {first}") from error


def read_shards(shards: Path, entry: str | None = None) -> dict[str, Any]:
    """Put sharded tensors together in one process.

    Args:
        shards: the folder.
        entry: read this entry alone, such as `state_dict`; None: all.

    Returns:
        Nested dicts of whole tensors on the CPU, by entry.
    """
    state: dict[str, Any] = {}
    reader = ShardReader(shards)
    reader.read_metadata()
    planner = _WholeTensors(None if entry is None else {entry})
    _load_state_dict(state, storage_reader=reader, planner=planner, no_dist=True)
    return state


def join_optimizers(tensors: dict[str, Any], states: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Bring the tensors of `shards/` and the plain parts of `state.pt` together, in torch's form by index.

    Args:
        tensors: what `read_shards` or `load_into` gave; its `optimizer_<i>` entries are taken out.
        states: `{"state": {name: plain values}, "param_groups": [...]}` of each optimizer, by parameter name.
    """
    for i, state in enumerate(states):
        for name, moments in tensors.pop(f"{OPTIMIZER}{i}", {}).items():
            state["state"].setdefault(name, {}).update(moments)
    return [by_index(state) for state in states]


def saved_tensors(shards: Path) -> dict[tuple[str, ...], tuple[torch.Size, torch.dtype]]:
    """Return size and dtype of each tensor by its place, such as `("optimizer_0", "model.wte.weight", "exp_avg")`."""
    metadata = ShardReader(shards).read_metadata()
    places = metadata.planner_data or {}
    return {
        places.get(name, (name,)): (entry.size, entry.properties.dtype)
        for name, entry in metadata.state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }


def by_index(state: dict[str, Any]) -> dict[str, Any]:
    """Turn an optimizer's state by parameter name into torch's own form, by index in the order of its groups."""
    names = [name for group in state["param_groups"] for name in group["params"]]
    index = {name: i for i, name in enumerate(names)}
    groups = [{**group, "params": [index[name] for name in group["params"]]} for group in state["param_groups"]]
    return {"state": {index[name]: item for name, item in state.get("state", {}).items()}, "param_groups": groups}


def by_name(state: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """Turn `Optimizer.state_dict()` into a state by parameter name.

    Args:
        state: by index.
        names: of the parameters, in the order of the optimizer's groups.
    """
    groups = [{**group, "params": [names[i] for i in group["params"]]} for group in state["param_groups"]]
    return {"state": {names[i]: item for i, item in state["state"].items()}, "param_groups": groups}
