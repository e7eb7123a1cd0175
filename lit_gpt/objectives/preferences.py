r"""Preference losses as functions of log-probabilities: one value per pair, or per judged answer.

For a pair, :math:`\Delta = (\log\pi(y_c) - \log\pi_0(y_c)) - (\log\pi(y_r) - \log\pi_0(y_r))` is how much more the
policy favors the chosen answer over the rejected one than the reference does.

B pairs; `chosen` and `rejected` are (B,) log-probabilities of complete answers, in nats.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_gpt.checks import check_above, check_between, check_one_of
from lit_gpt.errors import UserError

PairLoss = Literal["sigmoid", "ipo", "hinge", "robust", "orpo", "simpo"]
REFERENCE_FREE = ("orpo", "simpo")


class LogProbs(NamedTuple):
    """Log-probabilities of the two answers of each pair, and their lengths in tokens."""

    chosen: Tensor
    rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor


@dataclass(frozen=True)
class PreferenceLoss:
    r"""A loss on pairs and its coefficients.

    Args:
        kind: `sigmoid` (DPO, Rafailov et al. 2023, equation 7), `ipo` (Azar et al. 2023, equation 17, on mean
            log-probabilities of tokens, as its authors recommend for texts of different length), `hinge` (SLiC, Zhao
            et al. 2023), `robust` (Chowdhury et al. 2024, equation 12), `orpo` (Hong et al. 2024, equation 6) or
            `simpo` (Meng et al. 2024, equation 6).
        beta: Strength of the pull towards the reference; for `simpo` the scale of its reward (2 to 10), for `orpo` the
            weight of the odds ratio (0.1).
        label_smoothing: Assumed fraction of pairs in the wrong order: with `sigmoid` this is conservative DPO, with
            `robust` the unbiased variant.
        gamma: Target margin of `simpo`, in units of beta times log-probability.

    Raises:
        UserError: if a number is out of bounds.
    """

    kind: PairLoss = "sigmoid"
    beta: float = 0.1
    label_smoothing: float = 0.0
    gamma: float = 1.0

    def __post_init__(self) -> None:
        check_one_of("loss_type", self.kind, get_args(PairLoss))
        check_above("beta", self.beta, 0, "0.1 is usual, 2 for simpo")
        check_between("label_smoothing", self.label_smoothing, 0, 0.5, high_open=True)
        if self.label_smoothing and self.kind not in ("sigmoid", "robust"):
            raise UserError(f"label_smoothing {self.label_smoothing} has no effect for {self.kind}; set it to 0")

    @property
    def needs_reference(self) -> bool:
        """Whether the loss has a term for a reference model."""
        return self.kind not in REFERENCE_FREE

    def __call__(self, policy: LogProbs, reference: LogProbs | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return (loss, reward of the chosen answer, reward of the rejected one), each (B,); rewards are detached."""
        if self.kind == "simpo":
            return _simpo(policy, self.beta, self.gamma)
        if self.kind == "orpo":
            return _orpo(policy, self.beta)
        assert reference is not None, f"{self.kind} needs a reference"
        chosen, rejected = policy.chosen - reference.chosen, policy.rejected - reference.rejected
        rewards = (self.beta * chosen.detach(), self.beta * rejected.detach())
        if self.kind == "ipo":
            difference = chosen / policy.chosen_tokens - rejected / policy.rejected_tokens
            return ((difference - 1 / (2 * self.beta)).square(), *rewards)
        scaled = self.beta * (chosen - rejected)
        if self.kind == "hinge":
            return (F.relu(1 - scaled), *rewards)
        epsilon = self.label_smoothing
        right, wrong = -F.logsigmoid(scaled), -F.logsigmoid(-scaled)
        if self.kind == "robust":
            return (((1 - epsilon) * right - epsilon * wrong) / (1 - 2 * epsilon), *rewards)
        return ((1 - epsilon) * right + epsilon * wrong, *rewards)


def _simpo(policy: LogProbs, beta: float, gamma: float) -> tuple[Tensor, Tensor, Tensor]:
    chosen = beta * policy.chosen / policy.chosen_tokens
    rejected = beta * policy.rejected / policy.rejected_tokens
    return -F.logsigmoid(chosen - rejected - gamma), chosen.detach(), rejected.detach()


def _orpo(policy: LogProbs, weight: float) -> tuple[Tensor, Tensor, Tensor]:
    # p(y|x) is the geometric mean over tokens, as in the paper (equation 3); odds(y) = p / (1 - p).
    chosen, rejected = policy.chosen / policy.chosen_tokens, policy.rejected / policy.rejected_tokens
    log_odds = (chosen - rejected) - (_log1mexp(chosen) - _log1mexp(rejected))
    loss = -chosen - weight * F.logsigmoid(log_odds)
    return loss, weight * chosen.detach(), weight * rejected.detach()


def _log1mexp(x: Tensor) -> Tensor:
    """Return log(1 - exp(x)) for x < 0, without losing precision near 0 (Mächler 2012)."""
    x = x.clamp(max=-1e-7)  # an answer with probability 1 has infinite odds
    return torch.where(x > -math.log(2), torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))


def kto_loss(
    policy: Tensor,
    reference: Tensor,
    desirable: Tensor,
    divergence: Tensor,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> tuple[Tensor, Tensor]:
    r"""Return the KTO loss (Ethayarajh et al. 2024, equation 8) of individually judged answers.

    :math:`\lambda_D (1 - \sigma(\beta(r - z_0)))` for a desirable answer, :math:`\lambda_U (1 - \sigma(\beta(z_0 -
    r)))` for another, where r is the log-ratio of policy and reference.

    Args:
        policy: (B,) log-probabilities of the answers.
        reference: (B,) log-probabilities under the reference.
        desirable: (B,) bool.
        divergence: () z_0 >= 0: mean log-ratio of answers to other prompts, over the whole step; no gradient.
        beta: Strength of the pull towards the reference.
        desirable_weight: Weight lambda_D of desirable answers.
        undesirable_weight: Weight lambda_U of undesirable answers.

    Returns:
        (loss, reward), each (B,); the reward is detached.
    """
    ratio = policy - reference
    advantage = beta * torch.where(desirable, ratio - divergence, divergence - ratio)
    weights = torch.where(desirable, desirable_weight, undesirable_weight)
    return weights * (1 - torch.sigmoid(advantage)), beta * ratio.detach()
