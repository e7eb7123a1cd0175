"""Initial weights as a pure function of (seed, parameter name).

Each parameter is drawn whole, on CPU, in float32, from a generator of its own, and then copied to wherever and in
whatever pieces it lives. One process or eight, sharded or not, CPU or GPU: all start from the same numbers (bit for
bit between hosts with the same CPU instructions; else up to the last bit of a logarithm).

The scheme is GPT-2's (Radford et al. 2019, section 2.3): normal with standard deviation `init_std`, and the
projections that write into the residual stream divided by the root of their number, 2 n_layer; biases 0, norms 1.
Most later families leave out the division (`scale_residual_init: false`; each preset names its source).
"""

import hashlib
import math

import torch
from torch import Tensor

from lit_gpt.models.config import GPTConfig

RESIDUAL_PROJECTIONS = ("o_proj.weight", "down_proj.weight", "experts.down_proj")
"""Endings of the names of what writes into the residual stream."""


def initial_value(config: GPTConfig, seed: int, name: str, shape: torch.Size) -> Tensor:
    """Return the whole initial value of one parameter.

    Args:
        config: Says `init_std`, `scale_residual_init` and `n_layer`.
        seed: Of the model.
        name: Of the parameter, as in `model.named_parameters()`.
        shape: Of the whole parameter.

    Returns:
        A float32 CPU tensor.
    """
    if name.endswith(("bias", "attn.sinks")):
        return torch.zeros(shape, device="cpu")
    if len(shape) == 1:  # the gain of a norm
        return torch.zeros(shape, device="cpu") if config.norm_offset else torch.ones(shape, device="cpu")
    std = config.init_std
    if config.scale_residual_init and name.endswith(RESIDUAL_PROJECTIONS):
        std /= math.sqrt(2 * config.n_layer)
    # hashlib, because Python's own hash() of a string changes from one process to the next.
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    return torch.normal(0.0, std, shape, generator=generator, dtype=torch.float32, device="cpu")


@torch.no_grad()
def fill(parameter: Tensor, value: Tensor) -> None:
    """Copy a whole value into a parameter that may be on another device, of another dtype, or a DTensor shard."""
    if hasattr(parameter, "device_mesh"):
        from torch.distributed.tensor import distribute_tensor

        # Every process has drawn the same value, so each cuts out its own piece: nothing is sent.
        value = distribute_tensor(
            value.to(parameter.device, parameter.dtype),
            parameter.device_mesh,
            parameter.placements,  # type: ignore[attr-defined]
            src_data_rank=None,
        )
    parameter.copy_(value)
