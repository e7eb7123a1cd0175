"""The products of a step are known by their sizes, and a CPU's time is theirs; times here are made by hand."""

from types import SimpleNamespace

import pytest
import torch

from lit_gpt.modules import PretrainModule
from lit_gpt.planning import cpu_speed
from lit_gpt.planning.cpu_speed import other_seconds, product_seconds
from lit_gpt.planning.simulation import simulate_step
from lit_gpt.planning.tracker import Product, Work

B, T, V, C = 4, 32, 96, 32
SHAPE = {"n_layer": 2, "n_head": 4, "n_embd": C, "intermediate_size": 64}


def step(documents=False, precision="32-true"):
    ids = torch.randint(0, V, (B, T))
    batch = {"input_ids": ids, "labels": ids.clone(), "position_ids": torch.arange(T).expand(B, T).clone()}
    if documents:
        batch["document_ids"] = (torch.arange(T) // 10).expand(B, T).clone()
    module = PretrainModule(preset="tiny", vocab_size=V, block_size=T, overrides=SHAPE)
    return simulate_step(module, [batch], precision).work


@pytest.mark.parametrize("documents", [False, True])
def test_products_are_the_flops_of_a_step_by_size(documents):
    work = step(documents)
    for kind, flops in work.flops.items():
        assert sum(value for product, value in work.products.items() if product.kind == kind) == flops
    attention = [product for product in work.products if product.kind == "attention"]
    assert {product.shape for product in attention} == {(B, 4, T, C // 4)}
    assert {product.backward for product in attention} == {False, True}
    assert {product.causal for product in attention} == {not documents}
    forward = work.products[Product("linear", "float32", (1, B * T, C, 64))]
    assert forward % (2 * B * T * C * 64) == 0


def test_products_under_autocast_are_of_its_dtype():
    work = step(precision="bf16-mixed")
    dtypes = {product.dtype for product in work.products if product.shape[1:] == (B * T, C, 64)}
    assert dtypes == {"bfloat16"}


def test_micro_batches_add_their_products():
    work = step()
    twice = work.plus(work)
    assert twice.products == {product: 2 * flops for product, flops in work.products.items()}


def test_seconds_are_flops_over_the_speed_of_each_product(monkeypatch):
    fast, slow, rare = (Product("linear", "float32", (1, n, n, n)) for n in (64, 128, 256))
    other = Product("attention", "float32", (1, 1, 8, 8))
    speeds = {fast: 100.0, slow: 10.0, other: 50.0}
    monkeypatch.setattr(cpu_speed, "_known_speeds", speeds)
    monkeypatch.setattr(cpu_speed, "_call", None)  # nothing else is timed, `rare` neither
    seconds = product_seconds(Work(products={fast: 1000.0, slow: 500.0, other: 500.0, rare: 4.0}))
    assert seconds["attention"] == 10.0
    assert seconds["linear"] == pytest.approx(10.0 + 50.0 + 4.0 * 70 / 2000)
    assert product_seconds(Work()) == {}
    monkeypatch.setattr(cpu_speed, "_addition_seconds", lambda elements: 12e-9 * elements)
    work = Work(moved_bytes=1e9, num_operations=100)
    assert other_seconds(work) == pytest.approx(1.0 + 100 * cpu_speed.OPERATION_SECONDS)
    assert other_seconds(Work()) == 0.0


@pytest.mark.parametrize(
    "product",
    [
        Product("linear", "float32", (1, 2048, 64, 4096)),
        Product("linear", "bfloat16", (16, 64, 64, 64)),
        Product("attention", "float32", (2, 2, 32, 8), False, True),
        Product("attention", "float32", (2, 2, 32, 8), True, False),
    ],
)
def test_every_kind_of_product_is_timed_once(product, monkeypatch):
    monkeypatch.setattr(cpu_speed, "_known_speeds", {})
    first = product_seconds(Work(products={product: 1e9}))[product.kind]
    assert 1e9 / 1e14 < first < 1e9 / 1e6
    assert product_seconds(Work(products={product: 2e9}))[product.kind] == 2 * first


def test_attention_is_timed_with_the_kernel_of_training(monkeypatch):
    called = []

    def compiled(query, key, value, mask, scale):
        called.append((query.shape, mask is None))
        return query + key + value

    monkeypatch.setattr(cpu_speed, "_known_speeds", {})
    monkeypatch.setattr(cpu_speed, "causal_attention", compiled)
    for backward in (False, True):
        product_seconds(Work(products={Product("attention", "float32", (2, 2, 32, 8), backward, True): 1e6}))
    assert set(called) == {((2, 2, 32, 8), True)}


def test_large_linear_products_are_timed_as_a_step_computes_them(monkeypatch):
    monkeypatch.setattr(cpu_speed, "_known_speeds", {})
    shapes = []

    def multiply(x, weight, bias):
        shapes.append((x.shape, weight.shape))
        return x @ weight.T

    monkeypatch.setattr(cpu_speed, "products_of", lambda x, weight: SimpleNamespace(output=multiply))
    product_seconds(Work(products={Product("linear", "float32", (1, 96, 32, 64)): 1e6}))
    assert set(shapes) == {((96, 32), (64, 32))}
