"""Divergences against sums over the vocabulary in plain loops; chunks change nothing."""

import math

import pytest
import torch

from lit_gpt.objectives import divergence, linear_divergence


def oracle(student, teacher, kind, temperature, beta):
    """One token's divergence in floats."""
    q = [math.exp(x / temperature) for x in student]
    p = [math.exp(x / temperature) for x in teacher]
    q, p = [x / sum(q) for x in q], [x / sum(p) for x in p]

    def kl(a, b):
        return sum(x * math.log(x / y) for x, y in zip(a, b, strict=True))

    m = [beta * x + (1 - beta) * y for x, y in zip(p, q, strict=True)]
    by_kind = {"forward": kl(p, q), "reverse": kl(q, p), "jsd": beta * kl(p, m) + (1 - beta) * kl(q, m)}
    return by_kind[kind] * temperature**2


@pytest.mark.parametrize("kind", ["forward", "reverse", "jsd"])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_against_the_papers(kind, temperature):
    student, teacher = torch.randn(5, 7), torch.randn(5, 7)
    actual = divergence(student, teacher, kind, temperature, 0.3)
    expected = [oracle(s, t, kind, temperature, 0.3) for s, t in zip(student.tolist(), teacher.tolist(), strict=True)]
    assert actual.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-6)
    torch.testing.assert_close(divergence(student, student, kind), torch.zeros(5))


@pytest.mark.parametrize("kind", ["forward", "reverse", "jsd"])
def test_chunks_and_gradients(kind):
    hidden, weight = torch.randn(9, 4, requires_grad=True), torch.randn(11, 4, requires_grad=True)
    theirs, head = torch.randn(9, 6), torch.randn(13, 6)  # padded to another size
    whole = divergence(hidden @ weight.T, (theirs @ head.T)[:, :11], kind, 2.0).sum()
    cut = linear_divergence(hidden, weight, theirs, head, kind, 2.0, chunk_size=2)
    torch.testing.assert_close(cut, whole)
    expected, actual = (torch.autograd.grad(loss, [hidden, weight]) for loss in (whole, cut))
    for one, other in zip(expected, actual, strict=True):
        torch.testing.assert_close(one, other)


def test_softcaps_are_applied():
    hidden, weight = 5 * torch.randn(3, 4), torch.randn(11, 4)
    capped = 2.0 * torch.tanh(hidden @ weight.T / 2.0)
    expected = divergence(hidden @ weight.T, capped).sum()
    torch.testing.assert_close(linear_divergence(hidden, weight, hidden, weight, softcaps=(None, 2.0)), expected)
