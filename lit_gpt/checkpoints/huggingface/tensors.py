"""The tensors of a Hugging Face folder, read one at a time: safetensors, or `.bin` without running what is in it."""

import json
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lit_gpt.errors import UserError

Readers = dict[str, Callable[[], Tensor]]
"""A function for each tensor's name that reads it from disk."""

_SINGLE_AND_INDEX = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)


def open_tensors(folder: Path) -> Readers:
    """A reader for every tensor in the folder; safetensors are preferred, and read only when asked for.

    Raises:
        UserError: If there are no weights, a shard is missing or a file is damaged.
    """
    for single, index in _SINGLE_AND_INDEX:
        files = [folder / single] if (folder / single).is_file() else _shards(folder / index)
        if files:
            readers: Readers = {}
            for file in files:
                readers |= _open_safetensors(file) if file.suffix == ".safetensors" else _open_bin(file)
            return readers
    raise UserError(f"{folder} has no weights: neither model.safetensors nor pytorch_model.bin, single or sharded")


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UserError: If the file is missing or holds no JSON object.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{file} is missing; is {file.parent} a Hugging Face model folder?") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{file} is not JSON: {error}; fetch it again") from error
    if not isinstance(values, dict):
        raise UserError(f"{file} holds no JSON object; fetch it again")
    return values


def _shards(index: Path) -> list[Path]:
    if not index.is_file():
        return []
    names = sorted(set(read_json(index).get("weight_map", {}).values()))
    for name in names:
        if Path(name).name != name:
            raise UserError(f"{index} names a shard outside its folder: {name!r}")
        if not (index.parent / name).is_file():
            raise UserError(f"{index} names {name}, which is not there; fetch it again")
    return [index.parent / name for name in names]


def _open_safetensors(file: Path) -> Readers:
    try:
        handle = safe_open(file, framework="pt")
        names = handle.keys()
    except SafetensorError as error:
        raise UserError(f"{file} is damaged: {error}; fetch it again") from error
    return {name: partial(handle.get_tensor, name) for name in names}


def _open_bin(file: Path) -> Readers:
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise UserError(f"{file} is damaged, or holds more than weights and will not be run: {error}") from error
    return {name: partial(state.__getitem__, name) for name in state}
