"""The LM head: a linear layer whose last step the caller may replace; and rows for new tokens.

A training loss should never hold the whole (B, T, V) logits, and under FSDP2 a head's weight is whole only inside
its own forward. So the function that turns hidden states and the head's weight into logits, or straight into a
loss, is handed in and runs here.

New tokens in a trained model get rows at the mean of the old ones. Hewitt 2021 ("Initializing New Word Embeddings for
Pretrained Language Models") shows why: as a row of the head it cannot take more than its share of probability (the
distribution over old tokens moves by at most log(1 + new / old) nats), where random rows can take nearly all of it. A
little noise, 1 % of each column's spread, makes several new tokens distinct.

B batch, T time, C model width, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HeadFn = Callable[[Tensor, Tensor, Tensor | None], Any]
"""`head_fn(hidden (B, T, C), weight (V, C), bias (V,) or None)` → what the model returns."""


class LMHead(nn.Linear):
    """`Linear(C, V)`, or `head_fn` applied to the hidden states and its weight."""

    def forward(self, hidden: Tensor, head_fn: HeadFn | None = None) -> Any:
        """(B, T, C) → logits (B, T, V), or what `head_fn` returns."""
        weight: Tensor = self.weight
        if hasattr(weight, "to_local"):
            # Replicated over the tensor-parallel devices: each computes the whole head on its own whole copy.
            weight = weight.to_local()
        return (head_fn or F.linear)(hidden, weight, self.bias)


VOCABULARY_WEIGHTS = ("wte.weight", "lm_head.weight", "lm_head.bias")
"""Weights of a GPT with one row a token."""

NOISE = 0.01


@torch.no_grad()
def with_new_tokens(weight: Tensor, vocab_size: int, seed: int = 0) -> Tensor:
    """Return the weight with rows for new tokens at its end.

    Args:
        weight: (old, C) or (old,).
        vocab_size: Rows of the result; no more than there are returns `weight` itself.
        seed: Of the noise.

    Returns:
        (vocab_size, C) or (vocab_size,), of the same dtype and device; old rows to the bit.
    """
    missing = vocab_size - weight.shape[0]
    if missing <= 0:
        return weight
    wide = weight.float()
    mean, spread = wide.mean(dim=0), wide.std(dim=0)
    noise = torch.randn(missing, *weight.shape[1:], generator=torch.Generator().manual_seed(seed))
    rows = mean + NOISE * spread * noise.to(weight.device)
    return torch.cat([weight, rows.to(weight.dtype)])
