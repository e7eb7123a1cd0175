"""The LM head, a linear layer whose last step the caller may replace, and the rows of new tokens.

A training loss should never hold the full (B, T, V) logits, and under FSDP2 a head's weight is unsharded only inside
its own forward. So the function that turns hidden states and the head's weight into logits, or directly into a loss,
is passed in and runs here.

The rows of new tokens in a trained model are initialized to the mean of the old ones. Hewitt 2021 ("Initializing New
Word Embeddings for Pretrained Language Models") shows why: such a row of the head changes the distribution over old
tokens by at most log(1 + new / old) nats, whereas random rows can take nearly all of the probability. A little noise,
1 % of each column's standard deviation, makes several new tokens distinct.

B batch, T time, C model width, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HeadFn = Callable[[Tensor, Tensor, Tensor | None], Any]
"""`head_fn(hidden (B, T, C), weight (V, C), bias (V,) or None)` → the model's output."""


class LMHead(nn.Linear):
    """`Linear(C, V)`, or `head_fn` applied to the hidden states and the head's weight."""

    def forward(self, hidden: Tensor, head_fn: HeadFn | None = None) -> Any:
        """Return logits (B, T, V) of hidden states (B, T, C), or the result of `head_fn`."""
        weight: Tensor = self.weight
        if hasattr(weight, "to_local"):
            # Replicated over the tensor-parallel devices: each computes the full head with its own full copy.
            weight = weight.to_local()
        return (head_fn or F.linear)(hidden, weight, self.bias)


VOCABULARY_WEIGHTS = ("wte.weight", "lm_head.weight", "lm_head.bias")
"""Weights of a GPT with one row per token."""

NOISE = 0.01


@torch.no_grad()
def with_new_tokens(weight: Tensor, vocab_size: int, seed: int = 0) -> Tensor:
    """Return the weight with rows for new tokens appended.

    Args:
        weight: (old, C) or (old,).
        vocab_size: Number of rows of the result; `weight` itself is returned if it has at least this many.
        seed: Seed of the noise.

    Returns:
        (vocab_size, C) or (vocab_size,), of the same dtype and device; the old rows are unchanged.
    """
    missing = vocab_size - weight.shape[0]
    if missing <= 0:
        return weight
    wide = weight.float()
    mean, spread = wide.mean(dim=0), wide.std(dim=0)
    noise = torch.randn(missing, *weight.shape[1:], generator=torch.Generator().manual_seed(seed))
    rows = mean + NOISE * spread * noise.to(weight.device)
    return torch.cat([weight, rows.to(weight.dtype)])
