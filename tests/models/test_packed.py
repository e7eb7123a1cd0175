"""Packed weights: each kernel against the matrix it stands for, whole models, and what is left alone."""

import pytest
import torch
import torch.nn.functional as F

from lit_gpt.checkpoints.quantization import Quantization, quantizable_layers, quantize_weight
from lit_gpt.errors import UserError
from lit_gpt.generation import Engine, SamplingParams
from lit_gpt.models import GPT, GPTConfig, native, packed
from lit_gpt.models.linear import is_plain_linear
from lit_gpt.models.packed import (
    BFloat16Weight,
    BlasWeight,
    Int4Weight,
    Int8Weight,
    NativeBFloat16Weight,
    NativeFloatWeight,
    NativeInt4Weight,
    NativeInt8Weight,
    OneDNNWeight,
)

KERNELS = {
    BlasWeight: 1e-5,
    OneDNNWeight: 1e-5,
    NativeFloatWeight: 1e-5,
    BFloat16Weight: 1e-2,
    NativeBFloat16Weight: 1e-2,
    Int8Weight: 2e-2,
    Int4Weight: 0.12,
    NativeInt8Weight: 1.5e-2,
    NativeInt4Weight: 0.12,
}
"""Each kernel, and how far its products are from the matrix's own on random numbers, relative to their size."""


def small(**fields):
    base = {"n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_embd": 64, "block_size": 64, "vocab_size": 96, "bias": False}
    base |= {"norm": "rmsnorm", "positions": "rope", "mlp": "swiglu", "intermediate_size": 96}
    torch.manual_seed(0)
    model = GPT(GPTConfig(**base | fields)).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.mul_(6)
    return model


@pytest.mark.parametrize("make", [make for make in KERNELS if packed.is_available(make)])
@pytest.mark.parametrize("shape", [(48, 64), (64, 160)])
@pytest.mark.parametrize("tokens", [1, 5, 70])
def test_a_kernel_multiplies_by_its_matrix(make, shape, tokens):
    torch.manual_seed(0)
    weight, x, bias = torch.randn(*shape), torch.randn(2, tokens, shape[1]), torch.randn(shape[0])
    one = make(weight)
    wanted = F.linear(x, weight)
    found = one(x)
    assert found.shape == wanted.shape
    assert (found - wanted).norm() < KERNELS[make] * wanted.norm()
    with_bias = F.linear(x, one, bias)
    assert with_bias.dtype == torch.float32
    torch.testing.assert_close(with_bias, found.float() + bias)


@pytest.mark.skipif(not packed.is_available(Int4Weight), reason="no int4 kernel")
@pytest.mark.parametrize("group", [32, 64])
def test_int4_of_a_matrix_with_sixteen_levels_a_group_is_exact(group):
    """A matrix that was already in groups of sixteen levels (GGUF's Q4_1) loses nothing but bfloat16's digits."""
    torch.manual_seed(0)
    levels = torch.randint(0, 16, (32, 4, group))
    levels[..., 0], levels[..., 1] = 0, 15  # the whole range occurs, as after rounding by smallest and largest
    scale, low = torch.rand(32, 4, 1).bfloat16().float() + 0.5, torch.randn(32, 4, 1)
    weight = (levels * scale + low).flatten(1)
    matrix = Int4Weight(weight, group_size=group).dequantized().float()
    assert (matrix - weight).abs().max() < 0.01 * weight.abs().max()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tie_embeddings": False, "bias": True},
        {"norm": "layernorm", "mlp": "gelu", "positions": "learned", "n_kv_head": None},
        {"qk_norm": "head", "norm_placement": "sandwich", "logit_softcap": 5.0, "sliding_window": 8},
    ],
)
@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8", "int4"])
def test_a_whole_model_computes_the_same(fields, weights):
    model, prepared = small(**fields), small(**fields)
    said = packed.prepare_for_inference(prepared, weights)
    assert weights in said
    ids = torch.arange(40).reshape(2, 20)
    wanted, found = model(ids), prepared(ids)
    bound = {"float32": 1e-4, "bfloat16": 0.03, "int8": 0.05, "int4": 0.5}[weights]
    assert (found - wanted).norm() < bound * wanted.norm()
    engine = Engine(prepared, None, max_batch_size=3, max_length=48)
    one = engine.generate([[1, 2, 3]], SamplingParams(8, 0.0))[0]
    many = engine.generate([[1, 2, 3], [5, 6], [7]], SamplingParams(8, 0.0))[0]
    assert one.token_ids == many.token_ids
    if weights == "float32":
        plain = Engine(model, None, max_length=48).generate([[1, 2, 3]], SamplingParams(8, 0.0))[0]
        assert plain.token_ids == one.token_ids


@pytest.mark.parametrize(("method", "group_size"), [("int8", None), ("int4", 32)])
def test_layers_of_a_quantized_bundle_keep_their_integers(method, group_size):
    scheme = Quantization(method, group_size)
    rounded, prepared = small(), small()
    for model in (rounded, prepared):
        for layer in quantizable_layers(model).values():
            layer.weight = torch.nn.Parameter(quantize_weight(layer.weight, scheme), requires_grad=False)
    assert method in packed.prepare_for_inference(prepared, "auto")
    ids = torch.arange(40).reshape(2, 20)
    wanted, found = rounded(ids), prepared(ids)
    assert (found - wanted).norm() < 0.03 * wanted.norm()
    dynamic = small()
    for layer in quantizable_layers(dynamic).values():
        layer.weight = torch.nn.Parameter(quantize_weight(layer.weight, Quantization("int8_dynamic")))
    packed.prepare_for_inference(dynamic.requires_grad_(False), "auto")
    assert is_plain_linear(dynamic.blocks[0].attn.o_proj), "activations are rounded too: no such kernel"


def test_half_precision_decodes_in_float32_states():
    model = small().bfloat16()
    assert "bfloat16" in packed.prepare_for_inference(model, "bfloat16")
    assert {state.keys.dtype for state in model.new_states(1, 8)} == {torch.float32}
    assert model(torch.zeros(1, 4, dtype=torch.int64)).dtype == torch.float32
    assert model.wte.weight.dtype == torch.bfloat16, "the table is only looked up"


@pytest.mark.parametrize("blas_time", [1, 3])
@pytest.mark.parametrize("weights", ["auto", "float32", "bfloat16", "int8", "int4"])
def test_a_vocabulary_of_any_size(weights, blas_time, tmp_path, monkeypatch):
    """A kernel for multiples of 16 outputs is not even measured for other sizes, such as GPT-2's 50,257 tokens."""
    monkeypatch.setattr(packed, "_SMALL", 0)
    monkeypatch.setattr(packed, "best_time", lambda runs, x: blas_time if isinstance(runs[0], BlasWeight) else 2)
    monkeypatch.setenv("LIT_GPT_KERNELS", str(tmp_path / "kernels.json"))
    for measured in (packed.fastest, packed.integer_dtype):
        measured.cache_clear()
    model, prepared = small(vocab_size=309), small(vocab_size=309)
    changed = packed.prepare_for_inference(prepared, weights)
    assert (changed is None) == (weights == "auto" and blas_time == 1)
    ids = torch.arange(40).reshape(2, 20)
    wanted, found = model(ids), prepared(ids)
    bound = {"bfloat16": 0.03, "int8": 0.05, "int4": 0.5}.get(weights, 1e-4)
    assert (found - wanted).norm() < bound * wanted.norm()
    for measured in (packed.fastest, packed.integer_dtype):
        measured.cache_clear()


def test_what_is_left_alone():
    trained = small().requires_grad_(True)
    assert packed.prepare_for_inference(trained, "auto") is None
    assert is_plain_linear(trained.blocks[0].attn.o_proj)
    with pytest.raises(UserError, match="int4"):
        packed.prepare_for_inference(trained, "int4")
    model = small()
    assert packed.prepare_for_inference(model, "plain") is None
    with pytest.raises(UserError, match="int5.*bfloat16"):
        packed.prepare_for_inference(model, "int5")


def test_a_machine_without_a_kernel_falls_back(monkeypatch):
    def absent(*_):
        raise RuntimeError("not compiled")

    for name in ("is_available", "fastest"):
        getattr(packed, name).cache_clear()
    monkeypatch.setattr(OneDNNWeight, "__init__", absent)
    monkeypatch.setattr(Int4Weight, "__init__", absent)
    monkeypatch.setattr(packed, "library", lambda: None)
    monkeypatch.setattr(native, "library", lambda: None)
    model = small()
    with pytest.raises(UserError, match="int4"):
        packed.prepare_for_inference(model, "int4")
    assert packed.prepare_for_inference(model, "auto") is None, "as the engine lays them out anyway"
    assert "BLAS" in packed.prepare_for_inference(model, "float32")
    for name in ("is_available", "fastest"):
        getattr(packed, name).cache_clear()
