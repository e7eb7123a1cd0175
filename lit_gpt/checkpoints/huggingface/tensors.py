"""Open the tensors of a Hugging Face folder: names, dtypes and shapes first, values on demand.

safetensors files are read with `pread`: a memory map would keep every page that was read, so that an import would take
twice the model's memory. `.bin` files (pickles) are loaded with `weights_only=True`, so they cannot execute code.
"""

import json
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lit_gpt.errors import UserError


@dataclass(frozen=True)
class Stored:
    """A tensor on disk; `read` returns its values."""

    read: Callable[[], Tensor]
    dtype: torch.dtype
    shape: tuple[int, ...]


DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Names of dtypes in safetensors."""
_DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}
_LISTED = 40
_SINGLE_AND_INDEX = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)


def open_tensors(folder: Path) -> dict[str, Stored]:
    """Return all tensors in a folder by name; safetensors are preferred to pickles.

    Raises:
        UserError: If there are no weights, a shard is missing or a file is damaged.
    """
    for single, index in _SINGLE_AND_INDEX:
        files = [folder / single] if (folder / single).is_file() else _shards(folder / index)
        if files:
            tensors: dict[str, Stored] = {}
            for file in files:
                tensors |= _open_safetensors(file) if file.suffix == ".safetensors" else _open_bin(file)
            return tensors
    raise UserError(f"{folder} has no weights: neither model.safetensors nor pytorch_model.bin, single or sharded")


def read_json(file: Path, remedy: str = "download it again") -> dict[str, Any]:
    """Return the JSON object in a file.

    Args:
        file: path of the file.
        remedy: advice for the error message if the file is damaged.

    Raises:
        UserError: If the file is missing or does not contain a JSON object.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{file} is missing; is {file.parent} a Hugging Face model folder?") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{file} is not JSON: {error}; {remedy}") from error
    if not isinstance(values, dict):
        raise UserError(f"{file} does not contain a JSON object; {remedy}")
    return values


def _shards(index: Path) -> list[Path]:
    if not index.is_file():
        return []
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise UserError(f"{index} has no weight_map from tensors to files; download it again")
    names = sorted(set(weight_map.values()))
    for name in names:
        if not re.fullmatch(r"[\w.-]+\.(safetensors|bin)", name):
            raise UserError(f"{index} lists a shard outside its folder, or of an unknown type: {name!r}")
        if not (index.parent / name).is_file():
            raise UserError(f"{index} lists {name}, which is missing; download it again")
    return [index.parent / name for name in names]


def _open_safetensors(file: Path) -> dict[str, Stored]:
    try:
        handle = safe_open(file, framework="pt", backend="pread")
        tensors = {}
        for name in handle.keys():  # noqa: SIM118 (the handle is not a mapping)
            part = handle.get_slice(name)
            if part.get_dtype() not in _DTYPES:
                raise UserError(
                    f"{file} has {name} of dtype {part.get_dtype()}; import the model's unquantized weights"
                )
            tensors[name] = Stored(partial(_read, handle, name, file), _DTYPES[part.get_dtype()], (*part.get_shape(),))
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is damaged: {error}; download it again") from error
    return tensors


def _read(handle: Any, name: str, file: Path) -> Tensor:
    try:
        tensor: Tensor = handle.get_tensor(name)
        return tensor
    except (SafetensorError, OSError) as error:  # the file was truncated after it was opened
        raise UserError(f"{file} is damaged: {error}; download it again") from error


def _open_bin(file: Path) -> dict[str, Stored]:
    try:
        state = _load_pickle(file)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{file} is damaged, or contains code, which is not executed: {reason}") from error
    strays = [str(name) for name, value in state.items() if not isinstance(value, Tensor)]
    if strays:
        raise UserError(f"{file} contains more than weights: {', '.join(sorted(strays))}; download it again")
    return {
        name: Stored(partial(state.__getitem__, name), value.dtype, tuple(value.shape)) for name, value in state.items()
    }


def _load_pickle(file: Path) -> dict[str, Any]:
    with open(file, "rb") as opened:
        zipped = (
            opened.read(4) == b"PK\x03\x04"
        )  # a zip, as torch writes since 1.6; older files cannot be memory-mapped
    state = torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    if not isinstance(state, dict):
        raise ValueError(f"expected a dict of tensors, got a {type(state).__name__}")
    return state


def check_names(where: str, missing: set[str], leftover: set[str]) -> None:
    """Raise if tensors are missing or left over.

    Args:
        where: Description of what contains the tensors, for the error message.
        missing: Expected names that were not found.
        leftover: Names that were found but not expected.

    Raises:
        UserError: If there are any; up to 40 names of each kind are listed.
    """
    problems = [
        f"{len(names)} tensors {what}: {_listed(names)}"
        for what, names in (("are missing", missing), ("are left over", leftover))
        if names
    ]
    if problems:
        raise UserError(f"{where} do not match the config: {'; '.join(problems)}")


def _listed(names: set[str]) -> str:
    listed = sorted(names)
    rest = len(listed) - _LISTED
    return ", ".join(listed[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")
