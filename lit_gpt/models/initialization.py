"""Initial weights as a pure function of (seed, parameter name).

Each parameter is sampled in full, on CPU, in float32, from its own generator, and then copied to its device and shards.
Whether on one process or eight, sharded or not, on CPU or GPU, training starts from the same numbers (bit for bit
between hosts with the same CPU instructions; otherwise up to the last bit of a logarithm).

The scheme is GPT-2's (Radford et al. 2019, section 2.3): normal with standard deviation `init_std`, divided by
√(2 n_layer) for the 2 n_layer projections that write into the residual stream; biases 0, norm gains 1. Most later
families omit the division (`scale_residual_init: false`; each preset names its source).
"""

import hashlib
import math

import torch
from torch import Tensor

from lit_gpt.models.config import GPTConfig

RESIDUAL_PROJECTIONS = ("o_proj.weight", "down_proj.weight", "experts.down_proj")
"""Name endings of the weights that write into the residual stream."""


def initial_value(config: GPTConfig, seed: int, name: str, shape: torch.Size) -> Tensor:
    """Return the complete initial value of a parameter.

    Args:
        config: Provides `init_std`, `scale_residual_init` and `n_layer`.
        seed: The model's seed.
        name: Name of the parameter, as in `model.named_parameters()`.
        shape: Shape of the complete (unsharded) parameter.

    Returns:
        A float32 CPU tensor.
    """
    if name.endswith(("bias", "attn.sinks")):
        return torch.zeros(shape, dtype=torch.float32, device="cpu")
    if len(shape) == 1:  # the gain of a norm
        return torch.full(shape, 0.0 if config.norm_offset else 1.0, dtype=torch.float32, device="cpu")
    std = config.init_std
    if config.scale_residual_init and name.endswith(RESIDUAL_PROJECTIONS):
        std /= math.sqrt(2 * config.n_layer)
    generator = named_generator(seed, name)
    return torch.normal(0.0, std, shape, generator=generator, dtype=torch.float32, device="cpu")


def named_generator(seed: int, name: str) -> torch.Generator:
    """Return the generator of a parameter's initial value."""
    # Use hashlib because Python's hash() of a string differs between processes.
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little", signed=True))


@torch.no_grad()
def fill(parameter: Tensor, value: Tensor) -> None:
    """Copy a complete value into a parameter that may have another device or dtype or be a DTensor shard."""
    if hasattr(parameter, "device_mesh"):
        from torch.distributed.tensor import distribute_tensor

        # Every process has generated the same value, so each keeps its own shard without communication.
        value = distribute_tensor(
            value.to(parameter.device, parameter.dtype),
            parameter.device_mesh,
            parameter.placements,  # type: ignore[attr-defined]
            src_data_rank=None,
        )
    parameter.copy_(value)
