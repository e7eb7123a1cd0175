"""A quantised bundle: a finished model in one folder, its linear layers in 8 or 4 bits, for lit_gpt alone.

- `quantized.safetensors`: `<layer>.weight.qdata` and `.scale` of each quantised layer, everything else as it was
- `quantization.json`: how, and from which model
- `lit_gpt.json`, tokenizer, `generation_config.json`, `lineage.json`, `manifest.json`: as in every bundle

There is no `config.json`: `transformers` would open such a folder and fill what it does not know with random numbers.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from lit_gpt.atomic import whole_folder
from lit_gpt.checkpoints.bundle import (
    Beside,
    Carried,
    check_free,
    torch_dtype,
    write_json,
)
from lit_gpt.checkpoints.huggingface.exporting import TRAINING_ONLY
from lit_gpt.checkpoints.manifest import write_manifest
from lit_gpt.checkpoints.model_card import CardFacts
from lit_gpt.checkpoints.quantization.layers import check_scheme, layer_sizes, quantize_weight, to_parts
from lit_gpt.checkpoints.quantization.reading import FORMAT, PARTS, QUANTIZED, WEIGHTS
from lit_gpt.checkpoints.quantization.scheme import Quantization
from lit_gpt.checkpoints.step import STATE, read_state
from lit_gpt.errors import UserError
from lit_gpt.models import GPTConfig
from lit_gpt.models.precision import converted

CALLBACK = "QuantizationAware"
"""Of the callback's state in a checkpoint."""


@dataclass(frozen=True)
class Sizes:
    """Bytes of weights, before and after; a tied matrix counts once."""

    before: int
    after: int
    layers_before: int
    """Of the layers that were quantised."""
    layers_after: int


def save_quantized_bundle(
    out: str | Path,
    config: GPTConfig,
    weights: Mapping[str, Tensor],
    scheme: Quantization,
    device: torch.device,
    source: str,
    tokenizer_path: str | Path | None = None,
    lineage: Mapping[str, Any] | None = None,
    dtype: str | None = None,
    carried: Carried | None = None,
    check: Callable[[Path], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
    facts: CardFacts | None = None,
) -> Sizes:
    """Quantise a model and write it, whole or not at all.

    Args:
        out: its folder.
        config: the model's.
        weights: whole, under our names; if they are lazy, only one of them is in memory at a time beside the
            quantised ones.
        scheme: how.
        device: where the rounding is done; it must be able to compute with the result.
        source: the name of the model, for whoever needs the original.
        tokenizer_path: folder of the tokenizer; None: the bundle has none.
        lineage: see `collect_lineage`.
        dtype: float32, bfloat16 or float16 for what is not quantised, and for what the layers compute in; None: as
            the weights are.
        carried: what the model's source says beside its weights; None: the tokenizer decides.
        check: called with the folder when it is complete but not yet in its place; what it raises leaves nothing.
        progress: told (done, of how many) tensors.
        facts: what the model card says beyond the lineage.

    Returns:
        What the weights take, before and after.

    Raises:
        UserError: there is something at `out`, the groups do not fit a layer, layers are of several types, the device
            cannot compute with the result, torchao is not installed, or the disk is full.
    """
    out = Path(out)
    check_free(out)
    kind = None if dtype is None else torch_dtype(dtype)
    check_scheme(config, scheme)
    scheme.check_device(device)
    beside = Beside.of(
        config, tokenizer_path, _with_origin(lineage, scheme, source), carried, facts or CardFacts(out.name)
    )
    layers = layer_sizes(config)
    tensors: dict[str, Tensor] = {}
    computed_in: set[torch.dtype] = set()
    all_before = layers_before = 0
    for name, weight in _whole(config, weights, progress):
        all_before += weight.nbytes
        value = converted(name, weight.detach(), kind)
        if name.removesuffix(".weight") not in layers:
            tensors[name] = value.cpu().clone()
            continue
        layers_before += weight.nbytes
        computed_in.add(value.dtype)
        parts = to_parts(quantize_weight(value.to(device), scheme), scheme)
        tensors |= {f"{name}.{part}": tensor.cpu() for part, tensor in parts.items()}
    assert computed_in, "every model has linear layers in its blocks"
    if len(computed_in) > 1:
        raise UserError(
            f"the layers of this model are in {' and '.join(sorted(map(str, computed_in)))}; choose one with --dtype"
        )
    compute_dtype = computed_in.pop()
    with whole_folder(out, write_manifest) as folder:
        save_file(tensors, folder / WEIGHTS, metadata={"format": FORMAT})
        about = {
            "format": FORMAT,
            **scheme.to_dict(),
            "dtype": str(compute_dtype).removeprefix("torch."),
            "source": source,
            "token_ids": beside.token_ids,
        }
        write_json(folder / QUANTIZED, about)
        beside.write(folder)
        if check is not None:
            check(folder)
    rounded = [tensor.nbytes for name, tensor in tensors.items() if name.rpartition(".")[2] in PARTS]
    return Sizes(all_before, sum(tensor.nbytes for tensor in tensors.values()), layers_before, sum(rounded))


def trained_for(checkpoint: Path) -> Quantization | None:
    """How a checkpoint was trained to be quantised (`QuantizationAware`); None: it was not."""
    if not (checkpoint / STATE).is_file():
        return None
    state = read_state(checkpoint, mmap=True).get("callbacks", {}).get(CALLBACK)
    return None if state is None or not state["rounds"] else Quantization(state["method"], state["group_size"])


def _whole(
    config: GPTConfig, weights: Mapping[str, Tensor], progress: Callable[[int, int], None] | None
) -> Iterator[tuple[str, Tensor]]:
    """The weights that a finished model has, one by one: a tied matrix once, nothing of training alone."""
    names = [name for name in weights if not name.startswith(TRAINING_ONLY)]
    if config.tie_embeddings:
        names = [name for name in names if name != "lm_head.weight"]
    for number, name in enumerate(names, start=1):
        yield name, weights[name]
        if progress is not None:
            progress(number, len(names))


def _with_origin(lineage: Mapping[str, Any] | None, scheme: Quantization, source: str) -> dict[str, Any]:
    return {**(lineage or {}), "quantized": {**scheme.to_dict(), "source": source}}
