"""The LM head: a linear layer whose last step the caller may replace.

A training loss should never hold the whole (B, T, V) logits, and under FSDP2 a head's weight is whole only inside
its own forward. So the function that turns hidden states and the head's weight into logits, or straight into a
loss, is handed in and runs here.

B batch, T time, C model width, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

HeadFn = Callable[[Tensor, Tensor, Tensor | None], Any]
"""`head_fn(hidden (B, T, C), weight (V, C), bias (V,) or None)` → whatever the model shall return."""


class LMHead(nn.Linear):
    """`Linear(C, V)`, or `head_fn` applied to the hidden states and its weight."""

    def forward(self, hidden: Tensor, head_fn: HeadFn | None = None) -> Any:
        """(B, T, C) → logits (B, T, V), or what `head_fn` returns."""
        weight: Tensor = self.weight
        if hasattr(weight, "to_local"):
            # Replicated over the tensor-parallel devices: each computes the whole head on its own whole copy.
            weight = weight.to_local()
        return (head_fn or F.linear)(hidden, weight, self.bias)
