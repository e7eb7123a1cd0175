"""The chunked loss against torch's plain one and against the formula written in loops."""

import math

import pytest
import torch
from torch.nn import functional as F

from lit_gpt.objectives import linear_cross_entropy, token_cross_entropy


def _inputs(dtype=torch.float64, bias=True):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 7, 6, generator=generator, dtype=dtype, requires_grad=True)
    weight = torch.randn(11, 6, generator=generator, dtype=dtype, requires_grad=True)
    b = torch.randn(11, generator=generator, dtype=dtype, requires_grad=True) if bias else None
    labels = torch.randint(0, 11, (2, 7), generator=generator)
    labels[0, :3] = -100
    return hidden, weight, b, labels


@pytest.mark.parametrize("chunk_size", [1, 4, 5, 100])
@pytest.mark.parametrize("bias", [True, False])
def test_equals_plain_cross_entropy_forward_and_backward(chunk_size, bias):
    hidden, weight, b, labels = _inputs(bias=bias)
    inputs = [x for x in (hidden, weight, b) if x is not None]
    expected = F.cross_entropy(F.linear(hidden, weight, b).flatten(0, 1), labels.flatten(), reduction="sum")
    actual = linear_cross_entropy(hidden, weight, b, labels, chunk_size=chunk_size)
    torch.testing.assert_close(actual.loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(actual.cross_entropy, expected.detach(), rtol=1e-12, atol=0)
    for one, other in zip(
        torch.autograd.grad(3 * actual.loss, inputs), torch.autograd.grad(3 * expected, inputs), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_z_loss_is_palms_formula_and_its_gradient_is_right():
    hidden, weight, b, labels = _inputs()
    zeta = 0.1
    actual = linear_cross_entropy(hidden, weight, b, labels, z_loss=zeta, chunk_size=3)
    expected = 0.0
    for h, y in zip(hidden.detach().flatten(0, 1), labels.flatten().tolist(), strict=True):
        if y == -100:
            continue
        logits = [float(h @ w + o) for w, o in zip(weight.detach(), b.detach(), strict=True)]
        log_z = math.log(sum(math.exp(logit) for logit in logits))
        expected += log_z - logits[y] + zeta * log_z**2
    assert actual.loss.item() == pytest.approx(expected, rel=1e-10)
    assert actual.cross_entropy < actual.loss
    torch.autograd.gradcheck(
        lambda h, w, o: linear_cross_entropy(h, w, o, labels, z_loss=zeta, chunk_size=3).loss, (hidden, weight, b)
    )


def test_nothing_supervised_is_zero_loss_and_zero_gradient():
    hidden, weight, b, labels = _inputs()
    loss = linear_cross_entropy(hidden, weight, b, torch.full_like(labels, -100)).loss
    loss.backward()
    assert loss == 0
    assert not hidden.grad.any()
    assert not weight.grad.any()


def test_large_logits_do_not_overflow():
    hidden = torch.full((1, 4), 1e3)
    loss = linear_cross_entropy(hidden, torch.eye(4) * 1e3, None, torch.tensor([2])).loss
    assert loss.item() == pytest.approx(math.log(4), rel=1e-4)


def test_bfloat16_inputs_keep_a_float32_softmax():
    hidden, weight, _, labels = _inputs(torch.float32, bias=False)
    exact = linear_cross_entropy(hidden, weight, None, labels).loss
    with torch.autocast("cpu", torch.bfloat16):
        mixed = linear_cross_entropy(hidden, weight, None, labels).loss
    assert mixed.dtype == torch.float32
    assert mixed.item() == pytest.approx(exact.item(), rel=2e-2)
    gradient = torch.autograd.grad(mixed, weight)[0]
    torch.testing.assert_close(gradient, torch.autograd.grad(exact, weight)[0], rtol=5e-2, atol=5e-2)


def test_no_gradients_are_made_where_none_are_asked():
    hidden, weight, b, labels = _inputs()
    with torch.no_grad():
        assert not linear_cross_entropy(hidden, weight, b, labels).loss.requires_grad


@pytest.mark.parametrize("chunk_size", [1, 5, None])
def test_token_losses_add_up_to_the_sum(chunk_size):
    hidden, weight, b, labels = _inputs(torch.float32)
    losses = token_cross_entropy(hidden, weight, b, labels, chunk_size)
    assert losses.shape == labels.shape
    assert not losses[labels == -100].any()
    torch.testing.assert_close(losses.sum(), linear_cross_entropy(hidden, weight, b, labels).cross_entropy)
