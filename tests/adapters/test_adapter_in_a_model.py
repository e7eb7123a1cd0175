"""An adapter changes nothing at first, everything when it is trained, nothing when it is off; merging keeps it."""

import copy

import peft
import pytest
import torch

from lit_gpt.adapters import (
    AdapterConfig,
    adapter_state_dict,
    adapters_disabled,
    add_adapter,
    merged_weights,
    trainable_counts,
    trained_names,
)
from lit_gpt.adapters.quantize import rounded_weight
from lit_gpt.errors import UserError
from lit_gpt.models import GPT, GPTConfig
from lit_gpt.models.linear import is_plain_linear

SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 64, "intermediate_size": 128, "vocab_size": 101, "block_size": 16}
KINDS = {
    "lora": {},
    "some layers": {"targets": ["q_proj", "v_proj"]},
    "dora": {"dora": True},
    "rslora": {"rslora": True},
    "nf4": {"quantize": "nf4"},
    "nf4 dora": {"quantize": "nf4", "dora": True},
    "int8": {"quantize": "int8"},
}


def make(tie=False):
    model = GPT(GPTConfig.from_preset("tiny", **SHAPE, tie_embeddings=tie))
    model.init_weights(1)
    return model


def disturb(model):
    """Moves everything that is trained, as training would."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("train_embeddings", [False, True])
def test_start_train_disable_merge(kind, train_embeddings):
    model = make(tie=train_embeddings)
    base = {name: value.clone() for name, value in model.state_dict().items()}
    linears = [name for name, module in model.named_modules() if is_plain_linear(module)]
    config = AdapterConfig(rank=4, alpha=8, **KINDS[kind])
    x = torch.randint(0, 101, (2, 16))
    plain = model(x)
    state = torch.get_rng_state()
    add_adapter(model, config, 3, train_embeddings)
    assert torch.equal(torch.get_rng_state(), state), "the global generator is left alone"
    start = model(x)
    if config.quantize is None and not config.dora:
        assert torch.equal(start, plain), "B is zero"
    elif config.quantize is None:
        torch.testing.assert_close(start, plain)
    disturb(model)
    trained, names = model(x), trained_names(model)
    assert (trained - start).abs().max() > 0.1
    with adapters_disabled(model):
        off = model(x)
    if config.quantize is None:
        assert torch.equal(off, plain), "the base, to the bit"
    assert torch.equal(model(x), trained), "and on again"
    assert trained_names(model) == names
    model(x).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is not None] == names
    merged = make(tie=train_embeddings)
    merged.load_state_dict(merged_weights(base, adapter_state_dict(model), config, linears))
    torch.testing.assert_close(merged(x), trained, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["lora", "some layers", "dora", "rslora"])
def test_merging_is_pefts(kind):
    model = make()
    base = {name: value.clone() for name, value in model.state_dict().items()}
    config = AdapterConfig(rank=4, alpha=8, **KINDS[kind])
    add_adapter(model, config)
    disturb(model)
    ours = merged_weights(base, adapter_state_dict(model), config, [])
    theirs = copy.deepcopy(model)
    layers = [m for m in theirs.modules() if isinstance(m, peft.tuners.tuners_utils.BaseTunerLayer)]
    assert layers
    for layer in layers:
        layer.merge()
    for name, weight in theirs.state_dict().items():
        if "lora_" not in name:
            torch.testing.assert_close(ours[name.replace(".base_layer", "")], weight)


def test_names_and_counts_are_pefts():
    model = make()
    add_adapter(model, AdapterConfig(rank=4, dora=True))
    theirs = peft.get_peft_model_state_dict(model)
    ours = adapter_state_dict(model)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    trained, total = trainable_counts(model)
    assert trained == sum(value.numel() for value in ours.values())
    assert total == trained + sum(p.numel() for p in make().parameters())


def test_a_4_bit_weight_counts_its_values_and_takes_less_memory():
    model = make()
    whole = sum(p.numel() for p in model.parameters())
    add_adapter(model, AdapterConfig(rank=1, quantize="nf4"))
    trained, total = trainable_counts(model)
    assert total - trained == whole
    weight = model.blocks[0].mlp.up_proj.base_layer.weight
    assert weight.numel() * weight.element_size() * 8 == 64 * 128 * 4


@pytest.mark.parametrize(("kind", "error"), [("nf4", 0.12), ("int8", 0.01)])
def test_rounding(kind, error):
    weight = torch.randn(32, 64)
    rounded = rounded_weight(weight, kind)
    assert 0 < torch.linalg.norm(rounded - weight) / torch.linalg.norm(weight) < error
    assert torch.equal(rounded_weight(weight, kind), rounded)


def test_the_same_seed_gives_the_same_adapter():
    one, other, third = make(), make(), make()
    add_adapter(one, AdapterConfig(rank=2), seed=5)
    torch.manual_seed(123)
    add_adapter(other, AdapterConfig(rank=2), seed=5)
    add_adapter(third, AdapterConfig(rank=2), seed=6)
    a, b, c = map(adapter_state_dict, (one, other, third))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(not torch.equal(a[name], c[name]) for name in a)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"alpha": 0.0}, "alpha is 0"),
        ({"dropout": 1.0}, "dropout is 1"),
        ({"quantize": "int3"}, "int3"),
        ({"targets": "q_proj"}, "give a list"),
        ({"targets": []}, "give a list"),
    ],
)
def test_mistakes(fields, message):
    with pytest.raises(UserError, match=message):
        AdapterConfig(**fields)


def test_an_unknown_target_is_answered_with_the_known_ones():
    with pytest.raises(UserError, match=r"query; .* down_proj, .* q_proj"):
        add_adapter(make(), AdapterConfig(targets=["query"]))


def test_a_model_without_an_adapter_is_left_alone():
    model = make()
    x = torch.randint(0, 101, (1, 4))
    with adapters_disabled(model):
        off = model(x)
    assert torch.equal(off, model(x))
    assert all(parameter.requires_grad for parameter in model.parameters())
