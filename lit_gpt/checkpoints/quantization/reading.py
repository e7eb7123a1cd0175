"""A quantised bundle read again: what it says of itself, and its weights as torchao's tensors.

The manifest says that the files are those that were written, not who wrote them. So every tensor is compared with the
model of `lit_gpt.json`: name, shape and type, before anything is computed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lit_gpt.checkpoints.bundle import GENERATION_CONFIG, Carried, read_bundle_config, tokenizer_in, torch_dtype
from lit_gpt.checkpoints.huggingface.agreement import agree
from lit_gpt.checkpoints.huggingface.tensors import read_json
from lit_gpt.checkpoints.quantization.layers import Rebuilder, check_scheme, layer_sizes
from lit_gpt.checkpoints.quantization.scheme import Quantization
from lit_gpt.errors import UserError
from lit_gpt.models import GPT, GPTConfig

QUANTIZED = "quantization.json"
WEIGHTS = "quantized.safetensors"
FORMAT = "lit_gpt-quantized-1"
PARTS = ("qdata", "scale")


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
                agree(str(path), missing=needed - names, leftover=names - needed)
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
    """Read what a (verified) quantised bundle says of itself.

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
    """What a finished model holds beside its quantised weights: on the meta device, a tied matrix once."""
    with torch.device("meta"):
        state = GPT(replace(config, multi_token=0)).state_dict()
    elsewhere = layers | {"lm_head"} if config.tie_embeddings else layers
    return {name: value for name, value in state.items() if name.removesuffix(".weight") not in elsewhere}
