"""Write a `GPTConfig` and weights as a folder that `AutoModelForCausalLM.from_pretrained` can load.

safetensors files are written as a stream, with one tensor in memory at a time. The format
(huggingface.co/docs/safetensors): the header's length as little-endian uint64, the header as JSON (dtype, shape and
offsets of each tensor), then the contiguous bytes of all tensors. `safetensors.torch.save_file` writes the same, but
needs all tensors of a file at once; as concatenated or transposed tensors are copies, that is twice the model's memory.
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
"""Prefix of weights that only training uses (multi-token prediction); exports omit them."""
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def export_hf(
    config: GPTConfig,
    state_dict: Mapping[str, Tensor],
    out_dir: str | Path,
    max_shard_size: int | str = "5GB",
    dtype: torch.dtype | None = None,
    **extra: Any,
) -> None:
    """Write config.json and safetensors files; tensors are copied one table entry at a time.

    Args:
        config: The model's configuration; its `family` determines the format.
        state_dict: Complete weights under lit_gpt's names, on any device, or `LazyWeights`.
        out_dir: Output folder, created if it does not exist.
        max_shard_size: Maximum file size in bytes, or a string such as "5GB"; larger models are split into several
            files with an index.
        dtype: Floating-point type to convert to (`models/precision.py` lists the exceptions); None: unchanged.
        **extra: Further keys of config.json, such as `eos_token_id`.

    Raises:
        UserError: If the family cannot express the config, or tensors are missing or left over (all are listed).
    """
    values = config_to_hf(config, **extra)
    entries = get_family(config.family).entries(config)
    needed = {name for entry in entries for name in entry.local}
    given = {name for name in state_dict if not name.startswith(TRAINING_ONLY)}
    given -= {"lm_head.weight"} if config.tie_embeddings else set()
    check_names(f"the weights to export as {config.family}", missing=needed - given, leftover=given - needed)
    metas = {name: converted(name, _meta(state_dict, name), dtype) for name in needed}
    # Wide dtypes first, so that each tensor's offset is a multiple of its element size.
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
            yield name, parts.pop(name)  # pop, so that a tensor is freed once it is written


def _meta(state_dict: Mapping[str, Tensor], name: str) -> Tensor:
    if isinstance(state_dict, LazyWeights):
        return state_dict.meta(name)
    tensor = state_dict[name]
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


def write_safetensors(
    folder: Path, plan: Mapping[str, Tensor], tensors: Iterable[tuple[str, Tensor]], max_shard_size: int | str
) -> None:
    """Write `model.safetensors`, or several shards and an index.

    Args:
        folder: Existing output folder.
        plan: Every tensor on the meta device, in the order of `tensors`; wide dtypes first, which aligns the tensors.
        tensors: Names and tensors, on any device; each is written before the next one is requested.
        max_shard_size: Maximum file size in bytes, or a string such as "5GB"; exceeded only by a single larger tensor.
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
                del tensor, flat  # free the memory before reading the next tensor
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(_bytes(meta) for meta in plan.values())},
            "weight_map": {name: file for file, shard in zip(names, shards, strict=True) for name in shard},
        }
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def parse_size(size: int | str) -> int:
    """Convert a size such as "5GB" to bytes.

    Raises:
        UserError: If it is not a positive size.
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
