r"""Group-relative policy optimization: advantages within a prompt's group of completions, and the clipped objective.

For completions :math:`o_1 ... o_G` of one prompt with rewards :math:`r_i`, the advantage of every token of completion i
is :math:`\hat A_i = (r_i - \mathrm{mean}(r)) / \mathrm{std}(r)` (Shao et al. 2024, DeepSeekMath, arXiv:2402.03300,
section 4.1.2), and a token's loss is, with the ratio :math:`\rho = \pi(o_t) / \pi_{old}(o_t)`,

.. math:: -\min(\rho \hat A, \mathrm{clip}(\rho, 1 - \epsilon_{low}, 1 + \epsilon_{high}) \hat A) + \beta D_t

(equation 3; DAPO, arXiv:2503.14476, equation 8, for the two bounds), where :math:`D_t = \pi_{ref}/\pi - \log
(\pi_{ref}/\pi) - 1` estimates the KL divergence from the reference (equation 4).

n tokens of completions, G completions per group.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_gpt.checks import check_above, check_at_least, check_between, check_one_of
from lit_gpt.objectives.cross_entropy import default_chunk_size

Average = Literal["token", "completion", "constant"]
STD_EPSILON = 1e-4


def group_advantages(rewards: Sequence[float], scale_by_std: bool = True) -> list[float]:
    """Return the advantages of the completions of one prompt.

    Args:
        rewards: Rewards of the G completions.
        scale_by_std: Divide by the group's standard deviation (with G - 1, plus 1e-4), as in the GRPO paper. Dr. GRPO
            (Liu et al. 2025, arXiv:2503.20783) omits this, because it favors prompts whose rewards hardly differ.

    Returns:
        G numbers that sum to 0; all exactly 0 if all rewards are equal.
    """
    if max(rewards) == min(rewards):  # because of rounding, the mean of equal numbers may differ from them
        return [0.0] * len(rewards)
    mean = math.fsum(rewards) / len(rewards)
    differences = [reward - mean for reward in rewards]
    if not scale_by_std:
        return differences
    std = math.sqrt(math.fsum(d * d for d in differences) / (len(rewards) - 1))
    return [d / (std + STD_EPSILON) for d in differences]


class PolicyTerms(NamedTuple):
    """Terms of each token, (n,)."""

    loss: Tensor
    """The loss, including the KL term."""
    clipped: Tensor
    """Detached, 0 or 1: whether the bound is active, so that the token has no gradient except that of the KL."""
    kl: Tensor
    """The KL estimate, detached; 0 without a reference."""


@dataclass(frozen=True)
class PolicyLoss:
    """The clipped objective, and how a step's tokens are averaged.

    Args:
        clip_low: Distance from 1 to the lower bound of the ratio.
        clip_high: Distance from 1 to the upper bound; None: same as `clip_low`. DAPO's "clip-higher" uses 0.28 with
            0.2, so that unlikely tokens can gain more probability.
        kl_coefficient: Weight of the KL to the reference; 0 needs no reference (0.04 in the GRPO paper).
        average: `token`: the mean over all completion tokens of the step (DAPO); `completion`: over the tokens of each
            completion first (GRPO), where tokens of long completions weigh less; `constant`: the sum over tokens
            divided by the number of completions times the maximum length (Dr. GRPO).
        unbiased_kl: Multiply the KL term by the ratio, which makes its gradient that of the reverse KL without bias
            (DeepSeek-V3.2, arXiv:2512.02556, section 3.1).

    Raises:
        UserError: if a number is out of bounds.
    """

    clip_low: float = 0.2
    clip_high: float | None = None
    kl_coefficient: float = 0.0
    average: Average = "token"
    unbiased_kl: bool = False

    def __post_init__(self) -> None:
        check_between("clip_low", self.clip_low, 0, 1, "0.2 is usual", low_open=True)
        check_above("clip_high", self.clip_high, 0, "0.28 in DAPO; null uses clip_low")
        check_at_least("kl_coefficient", self.kl_coefficient, 0, "at 0 there is no reference")
        check_one_of("average", self.average, get_args(Average))

    def __call__(
        self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, reference_log_probs: Tensor | None = None
    ) -> PolicyTerms:
        """Return each token's loss.

        Args:
            log_probs: (n,) of the tokens under the policy, with gradients.
            old_log_probs: (n,) under the policy that sampled them.
            advantages: (n,) advantage of the completion that each token belongs to.
            reference_log_probs: (n,) under the reference, if there is a KL term.
        """
        ratio = torch.exp(log_probs - old_log_probs)
        high = self.clip_low if self.clip_high is None else self.clip_high
        bounded = ratio.clamp(1 - self.clip_low, 1 + high)
        loss = -torch.minimum(ratio * advantages, bounded * advantages)
        clipped = (bounded * advantages < ratio * advantages).to(loss.dtype).detach()
        kl = torch.zeros_like(loss).detach()
        if self.kl_coefficient and reference_log_probs is not None:
            log_ratio = reference_log_probs - log_probs
            divergence = torch.exp(log_ratio) - log_ratio - 1
            loss = loss + self.kl_coefficient * (ratio * divergence if self.unbiased_kl else divergence)
            kl = divergence.detach()
        return PolicyTerms(loss, clipped, kl)

    def token_weight(self, num_tokens: int) -> float:
        """Return the weight, in the step's sum, of each token of a completion with this many tokens."""
        return 1 / max(num_tokens, 1) if self.average == "completion" else 1.0

    def units(self, num_tokens: int, max_tokens: int) -> int:
        """Return a completion's contribution to the denominator of the step's mean."""
        return {"token": num_tokens, "completion": 1, "constant": max_tokens}[self.average]


@torch.no_grad()
def linear_entropy(hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None = None) -> Tensor:
    """Return the entropy of the next token at each position, without materializing all logits.

    Args:
        hidden: (n, C) hidden states that enter the head.
        weight: (V, C) head weight.
        bias: (V,) head bias, or None.
        softcap: Soft-cap of the logits, as in `linear_log_probs`.

    Returns:
        (n,) float32, nats.
    """
    parts = []
    for rows in hidden.split(default_chunk_size(hidden, weight)):
        logits = F.linear(rows, weight, bias).float()
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        normalized = logits.log_softmax(-1)
        parts.append(-(normalized.exp() * normalized).sum(-1))
    return torch.cat(parts)
