"""Compiled kernels of training: values and gradients against torch's in float64, and everything else left to torch."""

import pytest
import torch
import torch.nn.functional as F

from lit_gpt.models import GPT, GPTConfig, training_kernels
from lit_gpt.models.training_kernels import causal_attention, gelu_tanh

pytestmark = pytest.mark.skipif(training_kernels._library() is None, reason="no C compiler")


@pytest.fixture(autouse=True)
def always(monkeypatch):
    """Take the compiled kernels, however small the tensors."""
    monkeypatch.setattr(training_kernels, "_FEW", 1)
    monkeypatch.setattr(training_kernels, "_attention_is_faster", lambda *_: True)
    monkeypatch.setattr(training_kernels, "_gelu_is_faster", lambda *_: True)


def mask_of(kind, B, T):
    """Each query's keys: from the start of its document, or the nearest five."""
    query, key = torch.arange(T)[:, None], torch.arange(T)[None]
    causal = key <= query
    if kind == "documents":
        ids = torch.stack([torch.arange(T) // (5 + row) for row in range(B)])
        return (causal & (ids[:, :, None] == ids[:, None, :]))[:, None]
    return None if kind == "causal" else (causal & (query - key < 5))[None, None]


@pytest.mark.parametrize("kind", ["causal", "documents", "window"])
@pytest.mark.parametrize(
    ("B", "H", "K", "T", "D"), [(2, 2, 2, 96, 16), (1, 4, 2, 49, 64), (2, 2, 1, 7, 48), (1, 1, 1, 1, 16)]
)
def test_attention_and_its_gradients(kind, B, H, K, T, D):
    torch.manual_seed(0)
    leaves = [torch.randn(B, T, heads, D).requires_grad_() for heads in (H, K, K)]
    q, k, v = (x.transpose(1, 2) for x in leaves)
    mask, scale = mask_of(kind, B, T), 0.3
    y = causal_attention(q, k, v, mask, scale)
    wide = (x.double() for x in (q, k, v))
    expected = F.scaled_dot_product_attention(
        *wide, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=True
    )
    grad = torch.randn(B, H, T, D)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
    got, reference = torch.autograd.grad(y, leaves, grad), torch.autograd.grad(expected, leaves, grad.double())
    torch.testing.assert_close(got, reference, rtol=1e-4, atol=1e-5)


def test_attention_in_bfloat16_is_as_good_as_its_inputs():
    torch.manual_seed(0)
    leaves = [torch.randn(1, 40, 2, 16, dtype=torch.bfloat16).requires_grad_() for _ in range(3)]
    q, k, v = (x.transpose(1, 2) for x in leaves)
    y = causal_attention(q, k, v, None, 0.25)
    expected = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), is_causal=True, scale=0.25)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), expected, rtol=1e-2, atol=1e-3)
    grads = torch.autograd.grad(y, leaves, torch.ones_like(y))
    torch.testing.assert_close(grads, torch.autograd.grad(expected.sum(), leaves), rtol=2e-2, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gelu_and_its_derivatives(dtype):
    x = torch.cat([torch.linspace(-12, 12, 5000), torch.tensor([0.0, -100.0, 100.0])]).to(dtype).requires_grad_()
    wide = x.detach().double().requires_grad_()
    expected = F.gelu(wide, approximate="tanh")
    tolerance = {"rtol": 1e-2, "atol": 1e-2} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}
    y = gelu_tanh(x)
    assert type(y.grad_fn).__name__ == "_GELUBackward"
    torch.testing.assert_close(y.double(), expected, **tolerance)
    slopes = torch.autograd.grad(y.sum(), x, create_graph=True)[0]
    wide_slopes = torch.autograd.grad(expected.sum(), wide, create_graph=True)[0]
    torch.testing.assert_close(slopes.double(), wide_slopes, **tolerance)
    torch.testing.assert_close(torch.autograd.grad(gelu_tanh(x).sum(), x)[0].double(), wide_slopes, **tolerance)
    if dtype == torch.float32:
        second = torch.autograd.grad(slopes.sum(), x)[0].double()
        torch.testing.assert_close(second, torch.autograd.grad(wide_slopes.sum(), wide)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("threads", [1, 2])
def test_results_depend_neither_on_threads_nor_on_other_rows(threads):
    torch.manual_seed(0)
    q, k, v = (torch.randn(3, 2, 33, 16) for _ in range(3))
    before = torch.get_num_threads()

    def run(rows):
        leaves = [x[rows].clone().requires_grad_() for x in (q, k, v)]
        y = causal_attention(*leaves, None, 0.25)
        return [y.detach(), *torch.autograd.grad(y.square().sum(), leaves)]

    alone = run(slice(1, 2))
    try:
        torch.set_num_threads(threads)
        together = run(slice(None))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b[1:2]) for a, b in zip(alone, together, strict=True))


def test_what_the_kernel_does_not_compute_is_left_to_torch():
    q = torch.randn(1, 2, 8, 16, requires_grad=True)
    holes = torch.ones(8, 8, dtype=torch.bool).tril()
    holes[5, 3] = False
    refused = {
        "no gradients": (q.detach(), q.detach(), None),
        "float64": (q.double(), q.double(), None),
        "other heads' size": (q[..., :8], q[..., :8], None),
        "fewer keys": (q, q[:, :, :4], None),
        "a mask with holes": (q, q, holes[None, None]),
        "a mask of scores": (q, q, torch.zeros(1, 1, 8, 8)),
        "sees the future": (q, q, torch.ones(1, 1, 8, 8, dtype=torch.bool)),
    }
    for reason, (query, key, mask) in refused.items():
        assert causal_attention(query, key, key, mask, 0.25) is None, reason
    assert causal_attention(q, q, q, None, 0.25) is not None
    assert gelu_tanh(q.double()).dtype == torch.float64


def test_a_model_trains_as_with_torch(monkeypatch):
    config = GPTConfig(n_layer=2, n_head=2, n_embd=32, vocab_size=64, block_size=24, mlp="gelu_tanh")
    tokens = torch.randint(0, 64, (2, 24), generator=torch.Generator().manual_seed(0))
    documents = torch.arange(24).expand(2, 24) // 10
    gradients = []
    for few in (1, 1 << 30):
        monkeypatch.setattr(training_kernels, "_FEW", few)
        model = GPT(config)
        model.init_weights(0)
        model(tokens, document_ids=documents).square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)
