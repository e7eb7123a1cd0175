"""The head, on the positions that predict something, and what it says of the tokens that are asked for.

N tokens of a forward, M asked tokens, C model width, V vocabulary.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lit_gpt.objectives.cross_entropy import default_chunk_size


def read_tokens(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, places: np.ndarray, targets: np.ndarray, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target at its place (M,) float32, and whether it is the likeliest token there (M,).

    Args:
        hidden: (N, C).
        weight: (V, C).
        bias: (V,) or None.
        places: (M,) rows of `hidden`. Branches ask one place for several tokens; the head runs on it once.
        targets: (M,) tokens.
        softcap: Logits z become cap · tanh(z / cap).
    """
    unique, which = np.unique(places, return_inverse=True)
    rows, of_row, wanted = (torch.from_numpy(x).to(hidden.device) for x in (unique, which, targets))
    order = np.argsort(which, kind="stable")
    size = default_chunk_size(hidden, weight)
    begins = np.arange(0, len(unique), size)
    logprobs = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
    greedy = torch.empty(len(targets), dtype=torch.bool, device=hidden.device)
    asking = np.split(order, np.searchsorted(which[order], begins[1:]))
    for begin, numbers in zip(begins.tolist(), asking, strict=True):
        logits = F.linear(hidden[rows[begin : begin + size]], weight, bias).float()
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        mine = torch.from_numpy(numbers).to(hidden.device)
        row, token = of_row[mine] - begin, wanted[mine]
        chosen = logits[row, token]
        highest, likeliest = logits.max(1, keepdim=True)
        # log Σ exp z in place: the logits are most of what is read and written here.
        total = highest + logits.sub_(highest).exp_().sum(1, keepdim=True).log_()
        logprobs[mine] = chosen - total[row, 0]
        greedy[mine] = likeliest[row, 0] == token
    return logprobs, greedy
