"""New tokens in a model that is trained: rows for the embedding and the head.

Hewitt 2021 ("Initializing New Word Embeddings for Pretrained Language Models") shows why the mean of the old rows is
sound: as a row of the head it cannot take more than its share of probability (the distribution over old tokens moves
by at most log(1 + new / old) nats), where random rows can take nearly all of it. A little noise, 1 % of each column's
spread, tells several new tokens apart.
"""

import torch
from torch import Tensor

VOCABULARY_WEIGHTS = ("wte.weight", "lm_head.weight", "lm_head.bias")
"""Weights of a GPT with one row a token."""

NOISE = 0.01


@torch.no_grad()
def with_new_tokens(weight: Tensor, vocab_size: int, seed: int = 0) -> Tensor:
    """Returns the weight with rows for new tokens at its end.

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
