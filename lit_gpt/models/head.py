"""The LM head, a linear layer whose last step the caller may replace, and the rows of new tokens.

A training loss should never hold the full (B, T, V) logits, and under FSDP2 a head's weight is unsharded only inside
its own forward. So the function that turns hidden states and the head's weight into logits, or directly into a loss,
is passed in and runs here.

Under tensor parallelism the head's rows are spread over processes (`lit_gpt.parallel.tensor`). A function marked with
`accepts_shards` gets the rows of this process and how to combine results (`VocabularyShard`); every other function gets
the complete weight, which is gathered for it.

The rows of new tokens in a trained model are initialized to the mean of the old ones. Hewitt 2021 ("Initializing New
Word Embeddings for Pretrained Language Models") shows why: such a row of the head changes the distribution over old
tokens by at most log(1 + new / old) nats, whereas random rows can take nearly all of the probability. A little noise,
1 % of each column's standard deviation, makes several new tokens distinct.

B batch, T time, C model width, V vocabulary.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from lit_gpt.models.linear import linear

HeadFn = Callable[[Tensor, Tensor, Tensor | None], Any]
"""`head_fn(hidden (B, T, C), weight (V, C), bias (V,) or None)` → the model's output."""


class LMHead(nn.Linear):
    """`Linear(C, V)`, or `head_fn` applied to the hidden states and the head's weight."""

    def forward(self, hidden: Tensor, head_fn: HeadFn | None = None) -> Any:
        """Return logits (B, T, V) of hidden states (B, T, C), or the result of `head_fn`."""
        return (head_fn or linear)(hidden, self.weight, self.bias)


class VocabularyShard(NamedTuple):
    """The rows of the head's weight that this process holds, in place of the complete weight.

    Every process calls the same functions on the same hidden states. The gradient of the hidden states through these
    rows is this process's summand of the whole gradient; the head adds the summands up. S processes.
    """

    weight: Tensor
    """(rows, C): rows `first` to `first + rows` of the complete weight."""
    first: int
    group: Any
    """torch process group of the processes that hold the other rows."""

    def local(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return the row of each token among those held here, and whether it is held here.

        Args:
            tokens: (n,) int64.

        Returns:
            (n,) int64, 0 for the tokens of other processes; (n,) bool.
        """
        row = tokens - self.first
        held = (row >= 0) & (row < self.weight.shape[0])
        return torch.where(held, row, 0), held

    def gather(self, values: Tensor) -> Tensor:
        """Return the values of all processes, without gradients: (n, ...) of any kind → (S, n, ...)."""
        parts = [torch.empty_like(values) for _ in range(self.group.size())]
        torch.distributed.all_gather(parts, values.contiguous(), group=self.group)
        return torch.stack(parts)


Fn = TypeVar("Fn", bound=Callable[..., Any])


def accepts_shards(head_fn: Fn) -> Fn:
    """Mark a `HeadFn` that accepts a `VocabularyShard` as weight; it must not use the hidden states otherwise."""
    head_fn.accepts_shards = True  # type: ignore[attr-defined]
    return head_fn


def takes_shards(head_fn: HeadFn | None) -> bool:
    """Return whether a `HeadFn`, or the function that it calls with some arguments fixed, is so marked."""
    while isinstance(head_fn, partial):
        head_fn = head_fn.func
    return getattr(head_fn, "accepts_shards", False)


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
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(missing, *weight.shape[1:], generator=generator, dtype=torch.float32)
    rows = mean + NOISE * spread * noise.to(weight.device)
    return torch.cat([weight, rows.to(weight.dtype)])
