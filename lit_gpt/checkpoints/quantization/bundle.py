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
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lit_gpt.atomic import whole_folder
from lit_gpt.checkpoints.bundle import (
    GENERATION_CONFIG,
    Beside,
    Carried,
    check_free,
    read_bundle_config,
    tokenizer_in,
    torch_dtype,
    write_json,
)
from lit_gpt.checkpoints.huggingface.agreement import agree
from lit_gpt.checkpoints.huggingface.exporting import TRAINING_ONLY
from lit_gpt.checkpoints.huggingface.tensors import read_json
from lit_gpt.checkpoints.manifest import write_manifest
from lit_gpt.checkpoints.model_card import CardFacts
from lit_gpt.checkpoints.quantization.layers import Rebuilder, layer_sizes, quantize_weight, to_parts
from lit_gpt.checkpoints.quantization.scheme import Quantization
from lit_gpt.checkpoints.step import STATE, read_state
from lit_gpt.errors import UserError
from lit_gpt.models import GPTConfig
from lit_gpt.models.precision import converted

QUANTIZED = "quantization.json"
WEIGHTS = "quantized.safetensors"
CALLBACK = "QuantizationAware"
"""Of the callback's state in a checkpoint."""
_FORMAT = "lit_gpt-quantized-1"
_PARTS = ("qdata", "scale")


@dataclass(frozen=True)
class QuantizedBundle:
    """What `quantization.json` says, and where the rest is."""

    path: Path
    config: GPTConfig
    scheme: Quantization
    dtype: torch.dtype
    """Of the weights before, and of what the layers compute in."""
    source: str
    """The name of the model that it was made of."""
    carried: Carried
    tokenizer_path: Path | None

    def refuse_plain_weights(self) -> Mapping[str, Tensor]:
        """Stand in for the function that reads a model's whole weights.

        Raises:
            UserError: always: what was rounded away is gone, and training, merging and exporting need it.
        """
        raise UserError(
            f"{self.path} is quantised ({self.scheme}): its weights are rounded, and can be generated from, served and "
            f"evaluated, but not trained on, merged or exported; use the model that it was made of ({self.source})"
        )

    def load_weights(self, device: torch.device) -> dict[str, Any]:
        """Read the weights, quantised ones as torchao's tensors.

        Args:
            device: where they shall be.

        Raises:
            UserError: the device cannot compute with them, torchao is not installed, or the file does not fit the
                model.
        """
        sizes = layer_sizes(self.config)
        rebuild = Rebuilder(self.scheme, self.dtype, device)
        found: dict[str, Any] = {}
        with safe_open(self.path / WEIGHTS, framework="pt") as file:
            names = set(file.keys())
            for layer, size in sizes.items():
                name = f"{layer}.weight"
                needed = {f"{name}.{part}" for part in _PARTS}
                agree(str(self.path / WEIGHTS), missing=needed - names, leftover=set())
                found[name] = rebuild(name, {part: file.get_tensor(f"{name}.{part}") for part in _PARTS}, size)
                names -= needed
            found |= {name: file.get_tensor(name).to(device) for name in sorted(names)}
        return found


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
        UserError: there is something at `out`, the groups do not fit a layer, the device cannot compute with the
            result, torchao is not installed, or the disk is full.
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
    compute_dtype = None
    all_before = layers_before = 0
    for name, weight in _whole(config, weights, progress):
        all_before += weight.nbytes
        value = converted(name, weight.detach(), kind)
        if name.removesuffix(".weight") not in layers:
            tensors[name] = value.cpu().clone()
            continue
        layers_before += weight.nbytes
        compute_dtype = value.dtype
        parts = to_parts(quantize_weight(value.to(device), scheme), scheme)
        tensors |= {f"{name}.{part}": tensor.cpu() for part, tensor in parts.items()}
    assert compute_dtype is not None, "every model has linear layers in its blocks"
    with whole_folder(out, write_manifest) as folder:
        save_file(tensors, folder / WEIGHTS, metadata={"format": _FORMAT})
        about = {
            "format": _FORMAT,
            **scheme.to_dict(),
            "dtype": str(compute_dtype).removeprefix("torch."),
            "source": source,
            "token_ids": beside.token_ids,
        }
        write_json(folder / QUANTIZED, about)
        beside.write(folder)
        if check is not None:
            check(folder)
    rounded = [tensor.nbytes for name, tensor in tensors.items() if name.rpartition(".")[2] in _PARTS]
    return Sizes(all_before, sum(tensor.nbytes for tensor in tensors.values()), layers_before, sum(rounded))


def check_scheme(config: GPTConfig, scheme: Quantization) -> None:
    """Refuse groups that do not fit a model's layers.

    Raises:
        UserError: names the layer.
    """
    for name, (_, in_features) in layer_sizes(config).items():
        scheme.check_layer(name, in_features)


def is_quantized_bundle(path: Path) -> bool:
    """Whether a folder is (or was meant to be) a quantised bundle."""
    return (path / QUANTIZED).is_file()


def read_quantized_bundle(path: Path) -> QuantizedBundle:
    """Read what a (verified) quantised bundle says of itself.

    Raises:
        UserError: it is of another format, or its description is damaged.
    """
    about = read_json(path / QUANTIZED)
    if about.get("format") != _FORMAT:
        raise UserError(f"{path / QUANTIZED} is of format {about.get('format')!r}; this version reads {_FORMAT!r}")
    try:
        scheme = Quantization(about["method"], about["group_size"])
        dtype, source, ids = torch_dtype(about["dtype"]), str(about["source"]), dict(about["token_ids"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path / QUANTIZED} is damaged ({error}); quantise the model again") from error
    carried = Carried(ids, read_json(path / GENERATION_CONFIG))
    return QuantizedBundle(path, read_bundle_config(path), scheme, dtype, source, carried, tokenizer_in(path))


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
