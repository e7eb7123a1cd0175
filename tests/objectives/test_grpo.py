"""The clipped objective against the papers' formulas in plain loops."""

import itertools
import math
import random

import pytest
import torch

from lit_gpt.errors import UserError
from lit_gpt.objectives import PolicyLoss, group_advantages, linear_entropy


def advantages_by_hand(rewards):
    mean = sum(rewards) / len(rewards)
    std = math.sqrt(sum((r - mean) ** 2 for r in rewards) / (len(rewards) - 1))
    return [(r - mean) / (std + 1e-4) for r in rewards]


@pytest.mark.parametrize("seed", range(3))
def test_advantages(seed):
    rng = random.Random(seed)
    rewards = [rng.choice([0, 1, 0.5, -2]) + rng.random() for _ in range(8)]
    assert group_advantages(rewards) == pytest.approx(advantages_by_hand(rewards))
    mean = sum(rewards) / 8
    assert group_advantages(rewards, scale_by_std=False) == pytest.approx([r - mean for r in rewards])
    assert sum(group_advantages(rewards)) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, -7.7, 1e9])
@pytest.mark.parametrize("scale", [True, False])
def test_a_constant_reward_has_no_advantage_to_the_bit(value, scale):
    assert group_advantages([value] * 7, scale) == [0.0] * 7


AVERAGES = ("token", "completion", "constant")
MAX_TOKENS = 9


def loss_by_hand(policy, old, reference, advantages, lengths, low, high, beta, average):
    """Equation 3 of the GRPO paper with the averages of DAPO (equation 8) and Dr. GRPO, token by token."""
    total, start = 0.0, 0
    per_completion = []
    for advantage, length in zip(advantages, lengths, strict=True):
        own = 0.0
        for t in range(start, start + length):
            ratio = math.exp(policy[t] - old[t])
            clipped = min(max(ratio, 1 - low), 1 + high)
            surrogate = min(ratio * advantage, clipped * advantage)
            other = math.exp(reference[t] - policy[t])
            kl = other - math.log(other) - 1
            own += -(surrogate - beta * kl)
        per_completion.append(own)
        start += length
    if average == "token":
        total = sum(per_completion) / sum(lengths)
    elif average == "completion":
        total = sum(own / length for own, length in zip(per_completion, lengths, strict=True)) / len(lengths)
    else:
        total = sum(per_completion) / (len(lengths) * MAX_TOKENS)
    return total


@pytest.mark.parametrize(("average", "high", "beta"), list(itertools.product(AVERAGES, (None, 0.28), (0.0, 0.04))))
def test_loss_against_loops(average, high, beta):
    generator = torch.Generator().manual_seed(1)
    lengths = [3, 7, 1, 5]
    n = sum(lengths)
    old = -3 * torch.rand(n, generator=generator, dtype=torch.float64)
    policy = (old + 0.5 * torch.randn(n, generator=generator, dtype=torch.float64)).requires_grad_()
    reference = old + 0.3 * torch.randn(n, generator=generator, dtype=torch.float64)
    advantages = [1.5, -0.5, 0.0, -1.0]
    loss = PolicyLoss(clip_high=high, kl_coefficient=beta, average=average)
    each = torch.tensor(advantages, dtype=torch.float64).repeat_interleave(torch.tensor(lengths))
    terms = loss(policy, old, each, reference)
    weights = torch.tensor([loss.token_weight(length) for length in lengths]).repeat_interleave(torch.tensor(lengths))
    mean = (terms.loss * weights).sum() / sum(loss.units(length, MAX_TOKENS) for length in lengths)
    expected = loss_by_hand(
        policy.tolist(), old.tolist(), reference.tolist(), advantages, lengths, 0.2, high or 0.2, beta, average
    )
    assert mean.item() == pytest.approx(expected, rel=1e-6)
    (gradient,) = torch.autograd.grad(terms.loss.sum(), policy)
    if beta == 0:  # where the bound is in force, and only there, a token with an advantage gives no gradient
        assert torch.equal(gradient == 0, (terms.clipped == 1) | (each == 0))
    assert 0 < terms.clipped.sum() < n


def test_first_step_is_the_policy_gradient():
    """At a ratio of 1 the gradient is that of -A log pi (REINFORCE with the group as baseline)."""
    policy = torch.tensor([-1.0, -2.0, -0.5], requires_grad=True)
    advantages = torch.tensor([2.0, -1.0, 0.5])
    terms = PolicyLoss()(policy, policy.detach(), advantages)
    (gradient,) = torch.autograd.grad(terms.loss.sum(), policy)
    torch.testing.assert_close(gradient, -advantages)
    assert terms.clipped.sum() == 0


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_entropy(softcap):
    hidden, weight, bias = torch.randn(70, 8), torch.randn(11, 8), torch.randn(11)
    logits = hidden @ weight.T + bias
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    expected = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(linear_entropy(hidden, weight, bias, softcap), expected)


@pytest.mark.parametrize(
    "wrong", [{"clip_low": 0}, {"clip_low": 2}, {"clip_high": -1}, {"kl_coefficient": -1}, {"average": "sum"}]
)
def test_mistakes(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        PolicyLoss(**wrong)


def test_an_unbiased_kl_has_the_gradient_of_the_reverse_kl():
    """On-policy, its mean over all tokens, weighed by their probability, is d KL(policy || reference) (by autograd)."""
    torch.manual_seed(0)
    logits = torch.randn(7, dtype=torch.float64, requires_grad=True)
    reference = torch.randn(7, dtype=torch.float64).log_softmax(0)
    policy = logits.log_softmax(0)
    loss = PolicyLoss(kl_coefficient=1.0, unbiased_kl=True)
    terms = loss(policy, policy.detach(), torch.zeros(7, dtype=torch.float64), reference)
    (ours,) = torch.autograd.grad((policy.detach().exp() * terms.loss).sum(), logits, retain_graph=True)
    (exact,) = torch.autograd.grad((policy.exp() * (policy - reference)).sum(), logits)
    torch.testing.assert_close(ours, exact)
