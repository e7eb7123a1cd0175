"""The feed-forward half of a block: textbook GELU, squared ReLU, or gated SwiGLU.

B batch, T time, C model width, F MLP width.
"""

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from lit_gpt.models.config import GPTConfig


def relu_squared(x: Tensor) -> Tensor:
    """max(x, 0)² (Primer, So et al. 2021, arXiv:2109.08668)."""
    return F.relu(x).square()


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu2": relu_squared,
    "swiglu": F.silu,
}


class MLP(nn.Module):
    """`Linear(C, F) → activation → Linear(F, C) → Dropout`; SwiGLU multiplies in a gate: silu(x G) · (x U)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        C, width, bias = config.n_embd, config.mlp_size, config.has_mlp_bias
        self.gate_proj = nn.Linear(C, width, bias=bias) if config.mlp == "swiglu" else None
        self.up_proj = nn.Linear(C, width, bias=bias)
        self.down_proj = nn.Linear(width, C, bias=bias)
        self.drop = nn.Dropout(config.dropout)
        self.activation = ACTIVATIONS[config.mlp]

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) → (B, T, C)."""
        if self.gate_proj is None:
            hidden = self.activation(self.up_proj(x))  # (B, T, F)
        else:
            hidden = self.activation(self.gate_proj(x)) * self.up_proj(x)
        return self.drop(self.down_proj(hidden))
