"""The feed-forward half of a block: with GELU, squared ReLU, or gated activations (Shazeer 2020, arXiv:2002.05202).

B batch, T time, C model width, F MLP width.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_gpt.models.choices import GATED
from lit_gpt.models.config import GPTConfig
from lit_gpt.models.fused import FusedLinears
from lit_gpt.models.linear import Linear
from lit_gpt.models.mixers import Context
from lit_gpt.models.training_kernels import gelu_tanh


def relu_squared(x: Tensor) -> Tensor:
    """Return max(x, 0)² (Primer, So et al. 2021, arXiv:2109.08668)."""
    return F.relu(x).square()


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Return silu(gate) · up."""
    return F.silu(gate) * up


def geglu(gate: Tensor, up: Tensor) -> Tensor:
    """Return gelu(gate) · up."""
    return F.gelu(gate) * up


def geglu_tanh(gate: Tensor, up: Tensor) -> Tensor:
    """Return gelu(gate) · up with the tanh approximation of GELU."""
    return F.gelu(gate, approximate="tanh") * up


def swiglu_clamped(gate: Tensor, up: Tensor, limit: float = 7.0, alpha: float = 1.702) -> Tensor:
    """Return GPT-OSS's g · sigmoid(1.702 g) · (u + 1), with g at most 7 and u within ±7 (arXiv:2508.10925)."""
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return gate * torch.sigmoid(alpha * gate) * (up + 1)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": gelu_tanh,
    "relu2": relu_squared,
}
GATES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "swiglu": swiglu,
    "geglu": geglu,
    "geglu_tanh": geglu_tanh,
    "swiglu_clamped": swiglu_clamped,
}
"""Gated activations, (gate, up) → hidden, all (..., F)."""


class MLP(nn.Module):
    """`Linear(C, F) → activation → Linear(F, C) → Dropout`; gated activations compute act(x G) · (x U).

    Args:
        config: The model's architecture.
        width: F; None = the config's `mlp_size`.
    """

    def __init__(self, config: GPTConfig, width: int | None = None) -> None:
        super().__init__()
        C, width, bias = config.n_embd, config.mlp_size if width is None else width, config.has_mlp_bias
        self.gate_proj = Linear(C, width, bias=bias) if config.mlp in GATED else None
        self.up_proj = Linear(C, width, bias=bias)
        self.down_proj = Linear(width, C, bias=bias)
        self.drop = nn.Dropout(config.dropout)
        self.activation: Callable[..., Tensor] = GATES[config.mlp] if config.mlp in GATED else ACTIVATIONS[config.mlp]
        self.fused: FusedLinears | None = None

    def fusable(self) -> list[nn.Linear]:
        """Return the linear layers that share an input (see `prepare_for_decoding`)."""
        return [self.up_proj] if self.gate_proj is None else [self.gate_proj, self.up_proj]

    def forward(self, x: Tensor, context: Context | None = None) -> Tensor:
        """Apply the MLP: (B, T, C) → (B, T, C)."""
        if self.gate_proj is None:
            hidden = self.activation(self.up_proj(x))  # (B, T, F)
        elif self.fused is not None and (
            (context is not None and context.prepared) or self.fused.serves((self.gate_proj, self.up_proj))
        ):
            hidden = self.activation(*self.fused(x))
        else:
            hidden = self.activation(self.gate_proj(x), self.up_proj(x))
        y = self.down_proj(hidden)
        return self.drop(y) if self.training else y
