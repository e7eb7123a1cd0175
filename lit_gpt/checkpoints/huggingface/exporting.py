"""`GPTConfig` and weights → a folder that `AutoModelForCausalLM.from_pretrained` opens."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_gpt.checkpoints.huggingface.agreement import agree
from lit_gpt.checkpoints.huggingface.family import Entry
from lit_gpt.checkpoints.huggingface.registry import FAMILIES, config_to_hf
from lit_gpt.checkpoints.huggingface.weights import LazyWeights
from lit_gpt.checkpoints.huggingface.writer import write_safetensors
from lit_gpt.models import GPTConfig
from lit_gpt.models.precision import converted

TRAINING_ONLY = "multi_token."
"""Of the names of what a model is trained with and is not part of it afterwards."""


def export_hf(
    config: GPTConfig,
    state_dict: Mapping[str, Tensor],
    out_dir: str | Path,
    max_shard_size: int | str = "5GB",
    dtype: torch.dtype | None = None,
    **extra: Any,
) -> None:
    """Write config.json and safetensors; what is joined or transposed is in memory one entry at a time.

    Args:
        config: The model's shape; its `family` chooses the class.
        state_dict: Weights under our names, whole tensors on any device, or `LazyWeights`.
        out_dir: Made if it is not there.
        max_shard_size: Bytes, or such as "5GB"; more than that is split over several files with an index.
        dtype: Floating-point type to convert to (`models/precision.py` says what stays wide); None = as they are.
        **extra: Further keys of config.json, e.g. `eos_token_id`.

    Raises:
        UserError: If the family cannot express the config, or tensors are missing or left over (they are listed).
    """
    values = config_to_hf(config, **extra)
    entries = FAMILIES[config.family].entries(config)
    needed = {name for entry in entries for name in entry.ours}
    given = {name for name in state_dict if not name.startswith(TRAINING_ONLY)}
    given -= {"lm_head.weight"} if config.tie_embeddings else set()
    agree(f"the weights to export as {config.family}", missing=needed - given, leftover=given - needed)
    metas = {name: converted(name, _meta(state_dict, name), dtype) for name in needed}
    # Wide dtypes first: each tensor then lies at a multiple of its element's size.
    entries = sorted(entries, key=lambda entry: -metas[entry.ours[0]].element_size())
    plan = {name: meta for entry in entries for name, meta in entry.to_theirs(metas).items()}
    values["dtype"] = str(metas["wte.weight"].dtype).removeprefix("torch.")
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder, plan, _converted_tensors(entries, state_dict, dtype), max_shard_size)
    (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _converted_tensors(
    entries: list[Entry], state_dict: Mapping[str, Tensor], dtype: torch.dtype | None
) -> Iterator[tuple[str, Tensor]]:
    for entry in entries:
        theirs = entry.to_theirs({name: converted(name, state_dict[name].detach(), dtype) for name in entry.ours})
        for name in entry.theirs:
            yield name, theirs.pop(name)  # nothing is kept here of what has been written


def _meta(state_dict: Mapping[str, Tensor], name: str) -> Tensor:
    if isinstance(state_dict, LazyWeights):
        return state_dict.meta(name)
    tensor = state_dict[name]
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
