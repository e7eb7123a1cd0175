"""A quantised bundle: a finished model in one folder, its linear layers in 8 or 4 bits, for lit_gpt alone.

- `quantized.safetensors`: `<layer>.weight.qdata` and `.scale` of each quantised layer, everything else as it was
- `quantization.json`: how, and from which model
- `lit_gpt.json`, tokenizer, `generation_config.json`, `lineage.json`, `manifest.json`: as in every bundle

There is no `config.json`: `transformers` would open such a folder and fill what it does not know with random numbers.

The manifest says that the files are those that were written, not who wrote them. So on reading every tensor is compared
with the model of `lit_gpt.json` (name, shape and type) before anything is computed.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lit_gpt.atomic import atomic_folder
from lit_gpt.checkpoints.bundle import (
    GENERATION_CONFIG,
    BundleMetadata,
    Carried,
    check_free,
    read_bundle_config,
    tokenizer_in,
    torch_dtype,
    write_json,
)
from lit_gpt.checkpoints.huggingface.tensors import check_names, read_json
from lit_gpt.checkpoints.huggingface.writing import TRAINING_ONLY
from lit_gpt.checkpoints.model_card import CardFacts
from lit_gpt.checkpoints.provenance import write_manifest
from lit_gpt.checkpoints.quantization.scheme import (
    Quantization,
    Rebuilder,
    check_scheme,
    layer_sizes,
    quantize_weight,
    to_parts,
)
from lit_gpt.checkpoints.step import STATE, read_state
from lit_gpt.errors import UserError
from lit_gpt.models import GPT, GPTConfig
from lit_gpt.models.precision import converted

QUANTIZED = "quantization.json"
WEIGHTS = "quantized.safetensors"
FORMAT = "lit_gpt-quantized-1"
PARTS = ("qdata", "scale")
CALLBACK = "QuantizationAware"
"""Of the callback's state in a checkpoint."""


@dataclass(frozen=True)
class Sizes:
    """Bytes of weights before and after; a tied matrix counts once."""

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
    metadata = BundleMetadata.of(
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
    with atomic_folder(out, write_manifest) as folder:
        save_file(tensors, folder / WEIGHTS, metadata={"format": FORMAT})
        about = {
            "format": FORMAT,
            **scheme.to_dict(),
            "dtype": str(compute_dtype).removeprefix("torch."),
            "source": source,
            "token_ids": metadata.token_ids,
        }
        write_json(folder / QUANTIZED, about)
        metadata.write(folder)
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


@dataclass(frozen=True)
class QuantizedBundle:
    """The description of a quantised bundle."""

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
        """Refuse to return whole weights; takes the place of the function that reads them.

        Raises:
            UserError: always: training, merging and exporting need the weights before rounding.
        """
        raise UserError(
            f"{self.path} is quantised ({self.scheme}): its weights are rounded, and can be generated from, served and "
            f"evaluated, but not trained on, merged or exported; use the model that it was made of ({self.source})"
        )

    def load_weights(self, device: torch.device) -> dict[str, Any]:
        """Read the weights, quantised ones as torchao's tensors.

        Args:
            device: where to put them.

        Raises:
            UserError: the device cannot compute with them, torchao is not installed, or the file is damaged or does
                not fit the model.
        """
        path = self.path / WEIGHTS
        layers = layer_sizes(self.config)
        plain = _plain_tensors(self.config, set(layers))
        needed = {*plain, *(f"{layer}.weight.{part}" for layer in layers for part in PARTS)}
        rebuild = Rebuilder(self.scheme, self.dtype, device)
        found: dict[str, Any] = {}
        try:
            with safe_open(path, framework="pt") as file:
                names = set(file.keys())
                check_names(str(path), missing=needed - names, leftover=names - needed)
                for layer, size in layers.items():
                    name = f"{layer}.weight"
                    found[name] = rebuild(name, {part: file.get_tensor(f"{name}.{part}") for part in PARTS}, size)
                for name, like in plain.items():
                    tensor = file.get_tensor(name)
                    self._check(name, tensor, like)
                    found[name] = tensor.to(device)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is damaged or missing: {error}; quantise the model again") from error
        return found

    def _check(self, name: str, tensor: Tensor, like: Tensor) -> None:
        """Refuse a tensor that is not one of this model's: what stays wide of a model in 16 bits is float32."""
        types = {self.dtype, torch.float32} if like.is_floating_point() else {like.dtype}
        if tensor.shape != like.shape or tensor.dtype not in types:
            raise UserError(
                f"{self.path / WEIGHTS} has {name} as {tensor.dtype} {tuple(tensor.shape)}; the model has "
                f"{' or '.join(sorted(map(str, types)))} {tuple(like.shape)}"
            )


def is_quantized_bundle(path: Path) -> bool:
    """Whether a folder is (or was meant to be) a quantised bundle."""
    return (path / QUANTIZED).is_file()


def read_quantized_bundle(path: Path) -> QuantizedBundle:
    """Read the description of a (verified) quantised bundle.

    Raises:
        UserError: it is of another format, or its description is damaged or does not fit the model.
    """
    about = read_json(path / QUANTIZED)
    if about.get("format") != FORMAT:
        raise UserError(f"{path / QUANTIZED} is of format {about.get('format')!r}; this version reads {FORMAT!r}")
    config = read_bundle_config(path)
    try:
        scheme = Quantization(about["method"], about["group_size"])
        dtype, source, ids = torch_dtype(about["dtype"]), str(about["source"]), dict(about["token_ids"])
        check_scheme(config, scheme)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path / QUANTIZED} is damaged ({error}); quantise the model again") from error
    carried = Carried(ids, read_json(path / GENERATION_CONFIG))
    return QuantizedBundle(path, config, scheme, dtype, source, carried, tokenizer_in(path))


def _plain_tensors(config: GPTConfig, layers: set[str]) -> dict[str, Tensor]:
    """The tensors of a model besides its quantised weights: on the meta device, a tied matrix once."""
    with torch.device("meta"):
        state = GPT(replace(config, multi_token=0)).state_dict()
    elsewhere = layers | {"lm_head"} if config.tie_embeddings else layers
    return {name: value for name, value in state.items() if name.removesuffix(".weight") not in elsewhere}
