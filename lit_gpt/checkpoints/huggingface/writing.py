"""A `GPTConfig` and weights as a folder that `AutoModelForCausalLM.from_pretrained` opens.

safetensors files are written as a stream: one tensor in memory at a time, whatever the model's size. The format
(huggingface.co/docs/safetensors): the header's length as little-endian uint64, the header as JSON (dtype, shape and
offsets of each tensor), then the bytes of all tensors end to end. `safetensors.torch.save_file` writes the same but
needs every tensor of a file at once, and those that are joined or transposed are copies: twice the model.
"""

import json
import math
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_gpt.checkpoints.huggingface.config import config_to_hf
from lit_gpt.checkpoints.huggingface.reading import LazyWeights
from lit_gpt.checkpoints.huggingface.tensors import DTYPE_NAMES, check_names
from lit_gpt.errors import UserError
from lit_gpt.models import GPTConfig
from lit_gpt.models.families import get_family
from lit_gpt.models.families.weights import Entry
from lit_gpt.models.precision import converted

TRAINING_ONLY = "multi_token."
"""Prefix of the names of what only training uses (multi-token prediction); exports leave it out."""
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def export_hf(
    config: GPTConfig,
    state_dict: Mapping[str, Tensor],
    out_dir: str | Path,
    max_shard_size: int | str = "5GB",
    dtype: torch.dtype | None = None,
    **extra: Any,
) -> None:
    """Write config.json and safetensors; copies of tensors are in memory one entry at a time.

    Args:
        config: The model's shape; its `family` decides the format.
        state_dict: Weights under our names, whole tensors on any device, or `LazyWeights`.
        out_dir: The folder; created if it does not exist.
        max_shard_size: Bytes, or a string such as "5GB"; larger models become several files with an index.
        dtype: Floating-point type to convert to (`models/precision.py` lists what stays wide); None: as they are.
        **extra: Further keys of config.json, e.g. `eos_token_id`.

    Raises:
        UserError: If the family cannot express the config, or tensors are missing or left over (they are listed).
    """
    values = config_to_hf(config, **extra)
    entries = get_family(config.family).entries(config)
    needed = {name for entry in entries for name in entry.local}
    given = {name for name in state_dict if not name.startswith(TRAINING_ONLY)}
    given -= {"lm_head.weight"} if config.tie_embeddings else set()
    check_names(f"the weights to export as {config.family}", missing=needed - given, leftover=given - needed)
    metas = {name: converted(name, _meta(state_dict, name), dtype) for name in needed}
    # Wide dtypes first: each tensor then starts at a multiple of its element's size.
    entries = sorted(entries, key=lambda entry: -metas[entry.local[0]].element_size())
    plan = {name: meta for entry in entries for name, meta in entry.to_file(metas).items()}
    values["dtype"] = str(metas["wte.weight"].dtype).removeprefix("torch.")
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder, plan, _converted_tensors(entries, state_dict, dtype), max_shard_size)
    (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _converted_tensors(
    entries: list[Entry], state_dict: Mapping[str, Tensor], dtype: torch.dtype | None
) -> Iterator[tuple[str, Tensor]]:
    for entry in entries:
        parts = entry.to_file({name: converted(name, state_dict[name].detach(), dtype) for name in entry.local})
        for name in entry.file:
            yield name, parts.pop(name)  # pop: a tensor that was written is freed


def _meta(state_dict: Mapping[str, Tensor], name: str) -> Tensor:
    if isinstance(state_dict, LazyWeights):
        return state_dict.meta(name)
    tensor = state_dict[name]
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


def write_safetensors(
    folder: Path, plan: Mapping[str, Tensor], tensors: Iterable[tuple[str, Tensor]], max_shard_size: int | str
) -> None:
    """Write `model.safetensors`, or several files of it with an index.

    Args:
        folder: An existing folder.
        plan: Every tensor on the meta device, in the order of `tensors`. Wide dtypes come first, so that each tensor
            is aligned in its file.
        tensors: Names and tensors, on any device; each is written before the next one is asked for.
        max_shard_size: Bytes (or "5GB") that a file has at most, unless a single tensor is larger.
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
                del tensor, flat  # free it before the next one is read
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(_bytes(meta) for meta in plan.values())},
            "weight_map": {name: file for file, shard in zip(names, shards, strict=True) for name in shard},
        }
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def parse_size(size: int | str) -> int:
    """Return the number of bytes of a size such as "5GB".

    Raises:
        UserError: If it is not a size above 0.
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
