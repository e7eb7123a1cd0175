"""Insert an adapter into a model: `peft` replaces linear layers by its own; the model's class does not change.

Names: peft's layer at `blocks.0.attn.q_proj` contains `base_layer.weight` (frozen) and `lora_A.default.weight`,
`lora_B.default.weight` (trained). In files, as in peft's, the adapter's tensors are called
`blocks.0.attn.q_proj.lora_A.weight` and so on.
"""

import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lit_gpt.adapters.config import AdapterConfig
from lit_gpt.adapters.quantize import quantized_linear
from lit_gpt.errors import UserError
from lit_gpt.extras import need
from lit_gpt.models.head import VOCABULARY_WEIGHTS
from lit_gpt.models.initialization import fill, named_generator
from lit_gpt.models.linear import is_plain_linear

NAME = "default"


def add_adapter(model: nn.Module, config: AdapterConfig, seed: int = 0, train_embeddings: bool = False) -> None:
    """Freeze a model and insert an adapter. Its matrix B starts at zero, so the output does not change at first.

    Args:
        model: The model with its weights, on its device; or on the meta device, and `init_adapter` is called once the
            weights exist.
        config: The adapter's configuration.
        seed: Seed of A's initial values.
        train_embeddings: Whether to also train embedding and head in full; `adapters_disabled` restores their values
            from before.

    Raises:
        UserError: if a target does not exist, or the libraries are not installed.
    """
    peft = need("peft", "adapters", "an adapter")
    targets = target_names(model, config)
    model.requires_grad_(False)
    if config.quantize is not None:
        for name in target_names(model, AdapterConfig()):
            parent, _, last = name.rpartition(".")
            linear: Any = model.get_submodule(name)
            setattr(model.get_submodule(parent), last, quantized_linear(linear, config.quantize))
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=targets,
        use_dora=config.dora,
        use_rslora=config.rslora,
    )
    with torch.random.fork_rng(devices=_devices(model)):  # peft draws values, which `init_adapter` replaces
        # peft warns that it cannot merge into a torchao base; we merge into the plain one (`merge.py`).
        warnings.filterwarnings("ignore", message="TorchaoLoraLinear was instantiated without")
        peft.inject_adapter_in_model(settings, model, adapter_name=NAME)
    if train_embeddings:  # a tied head is the embedding
        for name, parameter in model.named_parameters():
            if name in VOCABULARY_WEIGHTS:
                parameter.requires_grad_(True)
    if not next(model.parameters()).is_meta:
        init_adapter(model, seed)
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad and name in VOCABULARY_WEIGHTS}
        model._embeddings_before = {name: p.detach().clone() for name, p in trained.items()}  # type: ignore[assignment]


@torch.no_grad()
def init_adapter(model: nn.Module, seed: int) -> None:
    """Fill the adapter of a model, whose base has its weights: the same values on any device, sharding and resume.

    A is drawn as in LoRA's reference code, by seed and name; B is zero.
    """
    for name, parameter in model.named_parameters():
        if ".lora_A." in name:
            bound = 1 / math.sqrt(parameter.shape[1])
            value = torch.empty(parameter.shape, dtype=torch.float32, device="cpu").uniform_(
                -bound, bound, generator=named_generator(seed, name)
            )
            fill(parameter, value)
        elif ".lora_B." in name:
            parameter.zero_()


def target_names(model: nn.Module, config: AdapterConfig) -> list[str]:
    """Return the full names of the linear layers in the blocks that the config selects.

    Raises:
        UserError: if one of `targets` matches no layer.
    """
    # Plain linear layers, no subclasses: not the head, which computes losses, or routers, which choose experts.
    linears = [name for name, module in model.named_modules() if is_plain_linear(module) and name.startswith("blocks.")]
    kinds = sorted({name.rpartition(".")[2] for name in linears})
    if config.targets == "all-linear":
        return linears
    unknown = sorted(set(config.targets) - set(kinds))
    if unknown:
        raise UserError(
            f"adapter.targets contains {', '.join(unknown)}; the blocks' linear layers are {', '.join(kinds)}"
        )
    return [name for name in linears if name.rpartition(".")[2] in config.targets]


def adapter_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return the trained tensors under their names in files: `<layer>.lora_A.weight`, ..., `wte.weight`."""
    return {
        plain_name(name): parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad
    }


def trained_names(model: nn.Module) -> list[str]:
    """Return the names of the trained parameters, as in `model.named_parameters()`."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def plain_name(name: str) -> str:
    """Return a parameter's name without peft's adapter name."""
    name = re.sub(r"\.(lora_[AB])\.default\.weight$", r".\1.weight", name)
    return re.sub(r"\.lora_magnitude_vector\.default\.weight$", ".lora_magnitude_vector", name)


def base_name(name: str) -> str | None:
    """Return the name that a parameter has in the model without the adapter; None: it belongs to the adapter."""
    return None if ".lora_" in name else name.replace(".base_layer.", ".")


def trainable_counts(model: nn.Module) -> tuple[int, int]:
    """Return the numbers of (trained, all) parameters; a 4-bit weight counts its values, not its bytes."""
    trained = total = 0
    for parameter in model.parameters():
        shape = getattr(getattr(parameter, "quant_state", None), "shape", None)
        count = parameter.numel() if shape is None else int(torch.Size(shape).numel())
        total += count
        trained += count if parameter.requires_grad else 0
    return trained, total


@contextmanager
def adapters_disabled(model: nn.Module) -> Iterator[None]:
    """Restore the base model's outputs bit for bit within the context; a model without an adapter is not affected."""
    # Found by their attributes, so that a model without an adapter does not need peft.
    layers: list[Any] = [m for m in model.modules() if hasattr(m, "base_layer") and hasattr(m, "enable_adapters")]
    originals: dict[str, Tensor] = getattr(model, "_embeddings_before", {})
    # Not peft's `enable_adapters`, which also freezes parameters: FSDP2 keeps what it finds at its first forward.
    for layer in layers:
        layer._disable_adapters = True
    _swap(model, originals)
    try:
        yield
    finally:
        _swap(model, originals)
        for layer in layers:
            layer._disable_adapters = False


def _swap(model: nn.Module, originals: dict[str, Tensor]) -> None:
    for name, other in list(originals.items()):
        parameter = model.get_parameter(name)
        other = other.to(parameter.device)
        originals[name] = parameter.data
        parameter.data = other


def _devices(model: nn.Module) -> list[torch.device]:
    device = next(model.parameters()).device
    return [device] if device.type == "cuda" else []
