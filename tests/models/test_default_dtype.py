"""Results do not depend on torch's default dtype, which Lightning sets to bfloat16 in steps of `bf16-true`.

A buffer of the wrong dtype that compiled code fills as float32 is half as long as what is written.
"""

import contextlib

import pytest
import torch

from lit_gpt.generation.request import SamplingParams
from lit_gpt.generation.sampler import candidates
from lit_gpt.models import GPTConfig, linear, native, norms, packed, training_kernels
from lit_gpt.models.head import with_new_tokens
from lit_gpt.models.initialization import initial_value
from lit_gpt.models.positions import alibi_slopes


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def numbers(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float32)


def product(make):
    return lambda: make(numbers(64, 96))(numbers(2, 3, 96))


def swiglu():
    with torch.no_grad():
        return native.swiglu(numbers(1, 4, 96), numbers(1, 4, 96))


def attend():
    with torch.no_grad():
        return native.attend(numbers(2, 1, 4, 32), numbers(2, 4, 5, 32), numbers(2, 4, 5, 32), None, 0.2)


def training_attention():
    q = numbers(1, 64, 2, 16).transpose(1, 2).requires_grad_()
    y = training_kernels._Attention.apply(q, q, q, None, 0.25)
    assert y.grad_fn.saved_tensors[-1].dtype == torch.float32  # what each query's weights sum to
    return torch.cat((y, *torch.autograd.grad(y.sum(), q)))


def initial_values():
    config = GPTConfig.from_preset("tiny", vocab_size=8, block_size=8)
    names = {"blocks.0.attn.out_proj.weight": (4, 4), "norm.weight": (4,), "blocks.0.attn.out_proj.bias": (4,)}
    return torch.cat([initial_value(config, 0, name, shape).flatten() for name, shape in names.items()])


needs_native = pytest.mark.skipif(native.library() is None, reason="no C compiler")
needs_kernels = pytest.mark.skipif(training_kernels._library() is None, reason="no C compiler")
CASES = {
    "float32 weights": pytest.param(product(packed.NativeFloatWeight), marks=needs_native),
    "bfloat16 weights": pytest.param(product(packed.NativeBFloat16Weight), marks=needs_native),
    "4-bit weights": pytest.param(product(packed.NativeInt4Weight), marks=needs_native),
    "swiglu": pytest.param(swiglu, marks=needs_native),
    "attention of decoding": pytest.param(attend, marks=needs_native),
    "attention of training": pytest.param(training_attention, marks=needs_kernels),
    "initial values": pytest.param(initial_values),
    "ALiBi": pytest.param(lambda: alibi_slopes(12)),
    "the floor of a norm": pytest.param(lambda: norms._floor.__wrapped__(48, 1e-5)),
    "rows of new tokens": pytest.param(lambda: with_new_tokens(numbers(5, 4), 9)),
    "temperature": pytest.param(lambda: candidates(numbers(1, 50), [SamplingParams(temperature=0.7)])[0]),
}


@pytest.mark.parametrize("compute", CASES.values(), ids=CASES.keys())
def test_the_default_dtype_changes_nothing(compute):
    expected = compute()
    with default_dtype(torch.bfloat16):
        found = compute()
    assert found.dtype == expected.dtype == torch.float32
    assert torch.equal(found, expected)


def test_kernels_are_checked_and_measured_in_float32(monkeypatch):
    seen = []
    monkeypatch.setattr(linear, "_fastest", lambda name, a, b: seen.append((a.dtype, b.dtype)))
    with default_dtype(torch.bfloat16):
        linear.Products(8, 4, 2)
        available = packed.is_available.__wrapped__(packed.BFloat16Weight)
        has_onednn = linear._has_onednn.__wrapped__()
    assert seen == [(torch.float32, torch.float32)] * 3
    assert available == packed.is_available(packed.BFloat16Weight)
    assert has_onednn == linear._has_onednn()
