"""Safetensors files written as a stream: one tensor in memory at a time, whatever the model's size.

The format (huggingface.co/docs/safetensors): the header's length as little-endian uint64, the header as JSON (dtype,
shape and place of each tensor), then the bytes of all tensors end to end. `safetensors.torch.save_file` writes the
same but wants every tensor of a file at once, and those that were joined or transposed are copies: twice the model.
"""

import json
import math
import re
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from lit_gpt.errors import UserError

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
"""As the format spells them."""

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def write_safetensors(
    folder: Path, plan: Mapping[str, Tensor], tensors: Iterable[tuple[str, Tensor]], max_shard_size: int | str
) -> None:
    """Write `model.safetensors`, or several files of it with an index.

    Args:
        folder: Where to.
        plan: Every tensor on the meta device, in the order of `tensors`. Wide dtypes come first, so that each tensor
            is aligned in its file.
        tensors: Names and tensors, on any device; each is written before the next one is asked for.
        max_shard_size: Bytes, or such as "5GB", that a file holds at most, unless one tensor is larger.
    """
    shards = _shards(plan, parse_size(max_shard_size))
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    if len(shards) == 1:
        names = ["model.safetensors"]
    stream = iter(tensors)
    for file_name, shard in zip(names, shards, strict=True):
        with open(folder / file_name, "wb") as file:
            file.write(_header(shard))
            for planned, meta in shard.items():
                name, tensor = next(stream)
                assert (name, tensor.dtype, tensor.shape) == (planned, meta.dtype, meta.shape), (name, planned)
                flat = tensor.detach().cpu().contiguous().reshape(-1)
                file.write(flat.view(torch.uint8).numpy().data)
                del tensor, flat  # before the next one is read
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(_bytes(meta) for meta in plan.values())},
            "weight_map": {name: file for file, shard in zip(names, shards, strict=True) for name in shard},
        }
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def parse_size(size: int | str) -> int:
    """Bytes of such as "5GB".

    Raises:
        UserError: If it is no size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?B?)", str(size).strip().upper())
    if match is None or match[2] not in _UNITS or float(match[1]) == 0:
        raise UserError(f"max_shard_size is {size!r}; give bytes, or a number with KB, MB, GB or TB, such as 5GB")
    return int(float(match[1]) * _UNITS[match[2]])


def _shards(plan: Mapping[str, Tensor], limit: int) -> list[dict[str, Tensor]]:
    shards: list[dict[str, Tensor]] = [{}]
    held = 0
    for name, meta in plan.items():
        if shards[-1] and held + _bytes(meta) > limit:
            shards.append({})
            held = 0
        shards[-1][name] = meta
        held += _bytes(meta)
    return shards


def _header(shard: Mapping[str, Tensor]) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, meta in shard.items():
        start, end = end, end + _bytes(meta)
        header[name] = {"dtype": DTYPE_NAMES[meta.dtype], "shape": list(meta.shape), "data_offsets": [start, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    return struct.pack("<Q", len(encoded)) + encoded


def _bytes(tensor: Tensor) -> int:
    return math.prod(tensor.shape) * tensor.element_size()
