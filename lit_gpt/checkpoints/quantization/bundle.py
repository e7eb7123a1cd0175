"""Quantized bundles: finished models with linear layers in 8 or 4 bits, which only lit_gpt can load.

- `quantized.safetensors`: `<layer>.weight.qdata` and `.scale` of each quantized layer; all other tensors unchanged
- `quantization.json`: the scheme, and the original model's name
- `lit_gpt.json`, tokenizer, `generation_config.json`, `lineage.json`, `manifest.json`: as in every bundle

There is no `config.json`, because `transformers` would load such a folder and initialize unknown weights at random.

The manifest shows that files are unchanged, not who wrote them. So name, shape and dtype of every tensor are checked
against the model of `lit_gpt.json` before anything is computed.
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
from lit_gpt.checks import local_path
from lit_gpt.errors import UserError
from lit_gpt.models import GPT, GPTConfig
from lit_gpt.models.precision import converted

QUANTIZED = "quantization.json"
WEIGHTS = "quantized.safetensors"
FORMAT = "lit_gpt-quantized-1"
PARTS = ("qdata", "scale")
CALLBACK = "QuantizationAware"
"""Key of the callback's state in a checkpoint."""


@dataclass(frozen=True)
class Sizes:
    """Size of the weights in bytes before and after quantization; tied weights count once."""

    before: int
    after: int
    layers_before: int
    """Size of the quantized layers, before quantization."""
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
    """Quantize a model and write it as a bundle, atomically.

    Args:
        out: output folder.
        config: the model's configuration.
        weights: complete weights under lit_gpt's names; lazy ones are read one at a time.
        scheme: quantization method and group size.
        device: device to quantize on; it must support computation with the result.
        source: name of the original model, shown when the original is needed.
        tokenizer_path: folder of the tokenizer; None: the bundle has no tokenizer.
        lineage: the model's lineage (`collect_lineage`).
        dtype: dtype of the other tensors and of the computation: float32, bfloat16 or float16; None: that of the
            weights.
        carried: special token IDs and generation settings of the source model; None: derived from the tokenizer.
        check: called with the complete temporary folder before it is moved to `out`; if it raises, nothing is written.
        progress: called after each tensor with the numbers of tensors done and in total.
        facts: facts for the model card in addition to the lineage; None: only the folder's name.

    Returns:
        The size of the weights, before and after.

    Raises:
        UserError: `out` exists, the group size does not divide a layer's inputs, the layers have different dtypes, the
            device does not support the scheme, torchao is not installed, or the disk is full.
    """
    out = local_path("out", out)
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
    for name, weight in _model_weights(config, weights, progress):
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
    """Return the scheme of a checkpoint's quantization-aware training (`QuantizationAware`); None: there was none."""
    if not (checkpoint / STATE).is_file():
        return None
    state = read_state(checkpoint, mmap=True).get("callbacks", {}).get(CALLBACK)
    return None if state is None or not state["rounds"] else Quantization(state["method"], state["group_size"])


def _model_weights(
    config: GPTConfig, weights: Mapping[str, Tensor], progress: Callable[[int, int], None] | None
) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights of the exported model one by one: tied ones once, training-only ones not at all."""
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
    """The description of a quantized bundle."""

    path: Path
    config: GPTConfig
    scheme: Quantization
    dtype: torch.dtype
    """Dtype of the original weights, and of the computation."""
    source: str
    """Name of the original model."""
    carried: Carried
    tokenizer_path: Path | None

    def refuse_plain_weights(self) -> Mapping[str, Tensor]:
        """Raise an error; replaces the function that reads unquantized weights.

        Raises:
            UserError: always, because training, merging and exporting need the original weights.
        """
        raise UserError(
            f"{self.path} is quantized ({self.scheme}): it can generate, be served and be evaluated, but not be "
            f"trained, merged or exported; use the original model ({self.source})"
        )

    def load_weights(self, device: torch.device) -> dict[str, Any]:
        """Read the weights; those of quantized layers become torchao tensors.

        Args:
            device: device to load them to.

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
            raise UserError(f"{path} is damaged or missing: {error}; quantize the model again") from error
        return found

    def _check(self, name: str, tensor: Tensor, like: Tensor) -> None:
        """Check shape and dtype of a plain tensor; it may be float32 in a 16-bit model (`models/precision.py`)."""
        types = {self.dtype, torch.float32} if like.is_floating_point() else {like.dtype}
        if tensor.shape != like.shape or tensor.dtype not in types:
            raise UserError(
                f"{self.path / WEIGHTS} has {name} as {tensor.dtype} {tuple(tensor.shape)}, but the model has "
                f"{' or '.join(sorted(map(str, types)))} {tuple(like.shape)}"
            )


def is_quantized_bundle(path: Path) -> bool:
    """Return whether a folder is a quantized bundle, intact or not."""
    return (path / QUANTIZED).is_file()


def read_quantized_bundle(path: Path) -> QuantizedBundle:
    """Read the description of a verified quantized bundle.

    Raises:
        UserError: the bundle has another format, or its description is damaged or does not match the model.
    """
    about = read_json(path / QUANTIZED)
    if about.get("format") != FORMAT:
        raise UserError(f"{path / QUANTIZED} has format {about.get('format')!r}; this version reads {FORMAT!r}")
    config = read_bundle_config(path)
    try:
        scheme = Quantization(about["method"], about["group_size"])
        dtype, source, ids = torch_dtype(about["dtype"]), str(about["source"]), dict(about["token_ids"])
        check_scheme(config, scheme)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path / QUANTIZED} is damaged ({error}); quantize the model again") from error
    carried = Carried(ids, read_json(path / GENERATION_CONFIG))
    return QuantizedBundle(path, config, scheme, dtype, source, carried, tokenizer_in(path))


def _plain_tensors(config: GPTConfig, layers: set[str]) -> dict[str, Tensor]:
    """Return a model's tensors that are not quantized, on the meta device; tied ones once."""
    with torch.device("meta"):
        state = GPT(replace(config, multi_token=0)).state_dict()
    elsewhere = layers | {"lm_head"} if config.tie_embeddings else layers
    return {name: value for name, value in state.items() if name.removesuffix(".weight") not in elsewhere}
