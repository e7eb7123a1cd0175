"""Each preference loss against its paper's formula, in plain loops of floats; log-probabilities against torch."""

import math

import pytest
import torch
from torch.nn import functional as F

from lit_gpt.errors import UserError
from lit_gpt.objectives import LogProbs, PreferenceLoss, kto_loss, linear_log_probs


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def oracle(kind, c, r, c0, r0, nc, nr, beta, epsilon, gamma):
    """The loss of one pair, as the papers write it."""
    h = (c - c0) - (r - r0)
    match kind:
        case "sigmoid":
            return -(1 - epsilon) * math.log(sigmoid(beta * h)) - epsilon * math.log(sigmoid(-beta * h))
        case "robust":
            right, wrong = -math.log(sigmoid(beta * h)), -math.log(sigmoid(-beta * h))
            return ((1 - epsilon) * right - epsilon * wrong) / (1 - 2 * epsilon)
        case "hinge":
            return max(0.0, 1 - beta * h)
        case "ipo":
            return ((c - c0) / nc - (r - r0) / nr - 1 / (2 * beta)) ** 2
        case "simpo":
            return -math.log(sigmoid(beta / nc * c - beta / nr * r - gamma))
        case "orpo":
            p, q = math.exp(c / nc), math.exp(r / nr)
            return -math.log(p) - beta * math.log(sigmoid(math.log((p / (1 - p)) / (q / (1 - q)))))


@pytest.mark.parametrize(
    ("kind", "epsilon"),
    [("sigmoid", 0.0), ("sigmoid", 0.1), ("ipo", 0.0), ("hinge", 0.0), ("robust", 0.2), ("orpo", 0.0), ("simpo", 0.0)],
)
def test_against_the_papers(kind, epsilon):
    generator = torch.Generator().manual_seed(0)
    lengths = [torch.randint(1, 20, (16,), generator=generator) for _ in range(2)]
    draws = [-(torch.rand(16, generator=generator, dtype=torch.float64) + 0.1) * lengths[i % 2] for i in range(4)]
    c, r, c0, r0 = draws
    beta, gamma = 0.3, 0.7
    loss, chosen, rejected = PreferenceLoss(kind, beta, epsilon, gamma)(
        LogProbs(c, r, *lengths), LogProbs(c0, r0, *lengths)
    )
    for i in range(16):
        values = [float(part[i]) for part in (c, r, c0, r0, *lengths)]
        assert float(loss[i]) == pytest.approx(oracle(kind, *values, beta, epsilon, gamma), rel=1e-9)
    if kind in ("sigmoid", "hinge", "robust", "ipo"):
        torch.testing.assert_close(chosen - rejected, beta * ((c - c0) - (r - r0)))


def test_the_first_step_is_ln_2():
    scores = LogProbs(torch.randn(5), torch.randn(5), torch.ones(5), torch.ones(5))
    loss = PreferenceLoss("sigmoid", 0.1, 0.1)(scores, scores)[0]
    torch.testing.assert_close(loss, torch.full((5,), math.log(2)))


def test_orpo_survives_certain_answers():
    scores = LogProbs(torch.tensor([0.0, -1e-9]), torch.tensor([-200.0, 0.0]), torch.ones(2), torch.ones(2))
    assert torch.isfinite(PreferenceLoss("orpo")(scores)[0]).all()


def test_kto():
    policy, reference = torch.tensor([-3.0, -5.0]).double(), torch.tensor([-4.0, -4.5]).double()
    loss, reward = kto_loss(policy, reference, torch.tensor([True, False]), torch.tensor(0.4).double(), 0.5, 1.5, 2.0)
    assert loss.tolist() == pytest.approx(
        [1.5 * (1 - sigmoid(0.5 * (1.0 - 0.4))), 2 * (1 - sigmoid(0.5 * (0.4 + 0.5)))]
    )
    assert reward.tolist() == pytest.approx([0.5, -0.25])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "ppo"}, "ppo"),
        ({"beta": 0.0}, "beta is 0"),
        ({"label_smoothing": 0.5}, "label_smoothing is 0.5"),
        ({"kind": "ipo", "label_smoothing": 0.1}, "no effect"),
    ],
)
def test_mistakes(fields, message):
    with pytest.raises(UserError, match=message):
        PreferenceLoss(**fields)


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("chunk_size", [1, 5, 100])
def test_log_probs_and_their_gradients(softcap, chunk_size):
    hidden = torch.randn(3, 7, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 8, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(11, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 11, (3, 7))
    labels[0, 3:] = -100
    logits = F.linear(hidden, weight, bias)
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    expected = -F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(3, 7)
    actual = linear_log_probs(hidden, weight, bias, labels, chunk_size, softcap)
    torch.testing.assert_close(actual, expected)
    upstream = torch.randn(3, 7, dtype=torch.float64)
    theirs = torch.autograd.grad((expected * upstream).sum(), [hidden, weight, bias])
    ours = torch.autograd.grad((actual * upstream).sum(), [hidden, weight, bias])
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)
