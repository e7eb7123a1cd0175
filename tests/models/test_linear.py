"""Linear layers of training on a CPU: every kernel gives the gradients of `F.linear`, and only where it may be used."""

import contextlib
import json
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lit_gpt.models import GPT, GPTConfig, kernel_choice
from lit_gpt.models import linear as linear_module
from lit_gpt.models.linear import Linear, chosen_products, linear, products_of
from lit_gpt.objectives import linear_cross_entropy


@pytest.fixture
def choices(tmp_path, monkeypatch):
    """Make every product large enough to be chosen, and each choice by the seconds of this dict."""
    seconds = {"torch": 2.0, "oneDNN": 1.0}
    monkeypatch.setenv("LIT_GPT_KERNELS", str(tmp_path / "kernels.json"))
    monkeypatch.setattr(linear_module, "_LARGE", 1)
    monkeypatch.setattr(kernel_choice, "_used", {})
    monkeypatch.setattr(kernel_choice, "_restored", {})

    def measure(runs, *_):
        function = runs[0].__closure__[-1].cell_contents
        return seconds["torch" if function is F.linear else "oneDNN"]

    monkeypatch.setattr(linear_module, "best_time", measure)
    linear_module._products.cache_clear()
    yield seconds
    linear_module._products.cache_clear()


def gradients(function, *tensors):
    leaves = [t.detach().clone().requires_grad_(t.requires_grad) for t in tensors]
    y = function(*leaves)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(1)))
    return [y.detach(), *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize("shape", [(5, 8), (2, 3, 8), (2, 3, 4, 8)])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("frozen", [None, "x", "weight"])
def test_outputs_and_gradients_are_those_of_f_linear(choices, shape, with_bias, frozen):
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(s, generator=generator) for s in (shape, (6, 8), (6,))][: 3 if with_bias else 2]
    for name, tensor in zip(("x", "weight", "bias"), tensors, strict=False):
        tensor.requires_grad_(name != frozen)
    assert products_of(tensors[0], tensors[1]).output is linear_module.onednn
    for got, expected in zip(gradients(linear, *tensors), gradients(F.linear, *tensors), strict=True):
        assert (got is None) == (expected is None)
        if got is not None:
            torch.testing.assert_close(got, expected)
            assert got.stride() == expected.stride(), "a gradient has the memory order of its parameter"


def test_a_second_derivative_is_that_of_f_linear(choices):
    def penalty(function, x, weight):
        (grad,) = torch.autograd.grad(function(x, weight).square().sum(), x, create_graph=True)
        return grad.square().sum()

    x, weight = torch.randn(3, 8, requires_grad=True), torch.randn(6, 8, requires_grad=True)
    torch.testing.assert_close(
        *(gradients(partial(penalty, f), x, weight) for f in (linear, F.linear)), rtol=1e-4, atol=1e-4
    )


class Sharded(torch.Tensor):
    pass


@pytest.mark.parametrize(
    ("x", "weight", "context"),
    [
        (torch.ones(4, 8).bfloat16(), torch.ones(6, 8).bfloat16(), contextlib.nullcontext()),
        (torch.ones(4, 8).double(), torch.ones(6, 8).double(), contextlib.nullcontext()),
        (torch.ones(4, 8), torch.ones(6, 8).as_subclass(Sharded), contextlib.nullcontext()),
        (torch.ones(4, 8, device="meta"), torch.ones(6, 8, device="meta"), contextlib.nullcontext()),
        (torch.ones(4, 8), torch.ones(6, 8), torch.autocast("cpu", torch.bfloat16)),
    ],
    ids=["bfloat16", "float64", "sharded", "meta", "autocast"],
)
def test_everything_else_is_multiplied_by_torch(choices, x, weight, context):
    with context:
        assert products_of(x, weight) is None
    assert chosen_products() is None


def test_torch_compile_and_functional_transforms_use_torch(choices):
    layer = Linear(8, 6)
    assert torch.func.vmap(layer)(torch.ones(2, 3, 8)).shape == (2, 3, 6)
    explained = torch._dynamo.explain(layer)(torch.ones(3, 8))
    assert explained.graph_break_count == 0
    assert chosen_products() is None


def test_small_products_and_slower_kernels_use_torch(choices, monkeypatch):
    choices["oneDNN"] = 2.0
    assert products_of(torch.ones(4, 8), torch.ones(6, 8)) is None
    assert "torch for 3" in chosen_products()
    monkeypatch.setattr(linear_module, "_LARGE", 4 * 8 * 6 + 1)
    choices["oneDNN"] = 1.0
    linear_module._products.cache_clear()
    assert products_of(torch.ones(4, 8), torch.ones(6, 8)) is None


def test_a_choice_that_cannot_be_kept_is_torch(choices, tmp_path, monkeypatch):
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("LIT_GPT_KERNELS", str(tmp_path / "a file" / "kernels.json"))
    assert products_of(torch.ones(4, 8), torch.ones(6, 8)) is None


def test_a_resumed_run_computes_with_the_same_kernels_although_the_file_is_lost(choices, tmp_path):
    assert products_of(torch.ones(4, 8), torch.ones(6, 8)) is not None
    saved = json.loads(json.dumps(kernel_choice.own_choices()))
    (tmp_path / "kernels.json").unlink()
    choices["oneDNN"] = 3.0  # another measurement would choose torch
    kernel_choice.restore_choices(saved)
    assert kernel_choice.own_choices() == saved, "also in a checkpoint that is saved before they are used"
    assert products_of(torch.ones(4, 8), torch.ones(6, 8)).output is linear_module.onednn
    assert products_of(torch.ones(4, 8), torch.ones(7, 8)) is None, "another size is measured"


def test_a_model_and_its_chunked_loss_have_the_same_gradients(choices):
    config = GPTConfig(n_layer=1, n_head=2, n_embd=32, vocab_size=64, block_size=16, mlp="swiglu", norm="rmsnorm")
    tokens = torch.randint(0, 64, (2, 16), generator=torch.Generator().manual_seed(0))
    runs = []
    for seconds in (1.0, 3.0):
        choices["oneDNN"] = seconds
        linear_module._products.cache_clear()
        kernel_choice.choices_file().unlink(missing_ok=True)
        model = GPT(config)
        model.init_weights(0)
        loss = model(tokens, head_fn=partial(linear_cross_entropy, labels=tokens, chunk_size=7)).loss
        loss.backward()
        runs.append([loss.detach(), *(p.grad for p in model.parameters())])
        assert set(kernel_choice._used.values()) == {"oneDNN" if seconds < 2 else "torch"}
        kernel_choice._used.clear()
    torch.testing.assert_close(*runs, rtol=1e-4, atol=1e-5)
    assert all(type(m) is not nn.Linear for m in GPT(config).blocks.modules())
