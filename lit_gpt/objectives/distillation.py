r"""Divergence of a student's next-token distribution from a teacher's, summed over tokens, in chunks of logits.

With p the teacher's and q the student's distribution at temperature :math:`\tau`:

- `forward`: :math:`KL(p \Vert q)` (Hinton et al. 2015), which covers every mode of the teacher;
- `reverse`: :math:`KL(q \Vert p)` (Gu et al. 2023, MiniLLM), which concentrates on the teacher's likely tokens;
- `jsd`: the generalized Jensen–Shannon divergence :math:`\beta KL(p \Vert m) + (1 - \beta) KL(q \Vert m)` with
  :math:`m = \beta p + (1 - \beta) q` (Agarwal et al. 2023, GKD, equation 1).

All are multiplied by :math:`\tau^2`, so that the gradients' scale does not depend on the temperature.

N tokens, C_s and C_t widths of student and teacher, V vocabulary.
"""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lit_gpt.models.linear import linear
from lit_gpt.objectives.cross_entropy import default_chunk_size

Divergence = Literal["forward", "reverse", "jsd"]


def divergence(
    student: Tensor, teacher: Tensor, kind: Divergence = "forward", temperature: float = 1.0, beta: float = 0.5
) -> Tensor:
    """Return the divergence of each token.

    Args:
        student: (N, V) logits.
        teacher: (N, V) logits.
        kind: `forward`, `reverse` or `jsd`.
        temperature: Divides both logits.
        beta: Interpolation coefficient of `jsd`, between 0 and 1.

    Returns:
        (N,) nats, multiplied by the temperature squared; at least 0.
    """
    q = F.log_softmax(student.float() / temperature, dim=-1)
    p = F.log_softmax(teacher.float() / temperature, dim=-1)
    if kind == "forward":
        result = _kl(p, q)
    elif kind == "reverse":
        result = _kl(q, p)
    else:
        m = torch.logaddexp(p + math.log(beta), q + math.log1p(-beta))
        result = beta * _kl(p, m) + (1 - beta) * _kl(q, m)
    return result * temperature**2


def linear_divergence(
    hidden: Tensor,
    weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    kind: Divergence = "forward",
    temperature: float = 1.0,
    beta: float = 0.5,
    softcaps: tuple[float | None, float | None] = (None, None),
    chunk_size: int | None = None,
) -> Tensor:
    """Return the divergence summed over tokens; the backward pass recomputes each chunk's logits.

    Args:
        hidden: (N, C_s) the student's hidden states, the input of its head.
        weight: (V, C_s) weight of the student's head.
        teacher_hidden: (N, C_t).
        teacher_weight: (V, C_t).
        kind: See `divergence`.
        temperature: See `divergence`.
        beta: See `divergence`.
        softcaps: Soft-caps of the student's and the teacher's logits; None: no cap.
        chunk_size: Number of tokens whose logits exist at a time.

    Returns:
        () float32.
    """
    size = chunk_size or default_chunk_size(hidden, weight)

    def chunk(h: Tensor, w: Tensor, t: Tensor) -> Tensor:
        logits = _capped(linear(h, w), softcaps[0])  # (n, V)
        teacher_logits = _capped(F.linear(t, teacher_weight), softcaps[1])
        common = min(logits.shape[-1], teacher_logits.shape[-1])  # vocabularies may be padded differently
        return divergence(logits[:, :common], teacher_logits[:, :common], kind, temperature, beta).sum()

    total = hidden.new_zeros((), dtype=torch.float32)
    for h, t in zip(hidden.split(size), teacher_hidden.split(size), strict=True):
        total = total + checkpoint(chunk, h, weight, t, use_reentrant=False)
    return total


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """Return KL(p || q) of log-probabilities (N, V) → (N,)."""
    return F.kl_div(q, p, reduction="none", log_target=True).sum(-1)


def _capped(logits: Tensor, softcap: float | None) -> Tensor:
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)
