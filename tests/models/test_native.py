"""Compiled kernels: each against torch's operations, rows alone and together, and machines that cannot compile."""

import pytest
import torch
import torch.nn.functional as F

from lit_gpt import compiled
from lit_gpt.generation import Engine, SamplingParams
from lit_gpt.models import GPT, GPTConfig, native, packed
from lit_gpt.models.native import NativeMatrix, NativeRMSNorm, quantized_groups
from lit_gpt.models.positions import apply_rope, build_rotations

needs_compiler = pytest.mark.skipif(native.library() is None, reason="no C compiler")


@needs_compiler
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("rows", [1, 4, 6])
def test_a_product_is_that_of_the_quantized_matrix_and_of_each_row_alone(bits, rows):
    torch.manual_seed(0)
    weight, x = torch.randn(48, 96) * 3 + 1, torch.randn(rows, 96)
    x[0, :32] = 0  # a group without a scale
    codes, scale, minimum = quantized_groups(weight, bits)
    wide = codes.unflatten(1, (-1, 32)) * scale[..., None] + minimum[..., None]
    assert (wide.flatten(1) - weight).abs().max() <= 0.501 * scale.max(), "the range contains the whole group"
    matrix = NativeMatrix(codes, scale, minimum, bits)
    # The kernel rounds each group of inputs to 255 values.
    largest = x.unflatten(1, (-1, 32)).abs().amax(2, keepdim=True)
    rounded = (torch.round(x.unflatten(1, (-1, 32)) / largest.clamp(min=1e-30) * 127) / 127 * largest).flatten(1)
    found = matrix(x)
    torch.testing.assert_close(found, rounded @ wide.flatten(1).t(), rtol=1e-4, atol=2e-3)
    assert all(torch.equal(matrix(x[row]), found[row]) for row in range(rows))


@needs_compiler
@pytest.mark.parametrize(("dtype", "bits", "bound"), [(torch.bfloat16, 16, 5e-3), (torch.float32, 32, 1e-6)])
@pytest.mark.parametrize("rows", [1, 5, 15])
def test_a_product_with_a_float_matrix_is_that_of_each_row_alone(dtype, bits, bound, rows):
    torch.manual_seed(0)
    weight, x = torch.randn(48, 96).to(dtype), torch.randn(rows, 2, 96)
    matrix = NativeMatrix(weight, bits=bits)
    found, wanted = matrix(x), x @ weight.float().t()
    assert (found - wanted).norm() < bound * wanted.norm()
    assert all(torch.equal(matrix(x[row]), found[row]) for row in range(rows))
    assert torch.equal(matrix(x.transpose(0, 1)), found.transpose(0, 1))


@needs_compiler
@torch.inference_mode()
@pytest.mark.parametrize("D", [16, 48, 64, 128])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_of_single_queries(D, masked):
    torch.manual_seed(0)
    stored_keys, stored_values = torch.randn(2, 4, 3, 40, D)  # of which 3 rows and 29 keys are visible
    keys, values = stored_keys[:3, :, 4:33], stored_values[:3, :, 4:33]
    q = torch.randn(3, 1, 12, D)[:, :, :6]
    mask = torch.zeros(3, 1, 1, 29).masked_fill(torch.rand(3, 1, 1, 29) < 0.5, -float("inf")) if masked else None
    if mask is not None:
        mask[..., 0] = 0
    wanted = F.scaled_dot_product_attention(
        q.transpose(1, 2), keys, values, attn_mask=mask, scale=0.3, enable_gqa=True
    ).transpose(1, 2)
    found = native.attend(q, keys, values, mask, 0.3)
    torch.testing.assert_close(found, wanted)
    alone = native.attend(q[1:2], keys[1:2], values[1:2], None if mask is None else mask[1:2], 0.3)
    assert torch.equal(alone, found[1:2])
    if masked:  # draft tokens of one row: each like a single query that does not see the last keys
        few = torch.randn(1, 4, 6, D)
        hidden = torch.full((1, 1, 4, 29), -float("inf")).triu(26)
        together = native.attend(few, keys[:1], values[:1], hidden, 0.3)
        for number in range(4):
            seen = 26 + number
            mask_one = torch.zeros(1, 1, 1, seen)
            single = native.attend(few[:, [number]], keys[:1, :, :seen], values[:1, :, :seen], mask_one, 0.3)
            assert torch.equal(single, together[:, [number]])
    assert native.attend(q[..., : D - 1], keys, values, mask, 0.3) is None
    assert native.attend(q, keys, values, torch.zeros(1, 6, 1, 29), 0.3) is None, "ALiBi's, one per head"


@needs_compiler
@torch.inference_mode()
def test_a_key_and_a_value_of_each_row_are_stored():
    torch.manual_seed(0)
    stored, (k, v) = torch.zeros(2, 4, 3, 10, 16), torch.randn(2, 3, 1, 5, 16)[:, :, :, :3]
    entries = torch.tensor([7, 0, 9])
    wanted = stored.clone()
    for row, entry in enumerate(entries.tolist()):
        wanted[0, row, :, entry], wanted[1, row, :, entry] = k[row, 0], v[row, 0]
    assert native.store(k, v, *stored, entries)
    assert torch.equal(stored, wanted)
    assert not native.store(k.double(), v.double(), *stored, entries)
    assert torch.equal(stored, wanted)


@needs_compiler
@torch.inference_mode()
def test_norms_gates_and_rotations():
    torch.manual_seed(0)
    x = torch.randn(2, 5, 64) * 4
    norm = NativeRMSNorm(torch.rand(64), 1e-5)
    torch.testing.assert_close(norm(x), F.rms_norm(x, (64,), norm.weight, 1e-5))
    torch.testing.assert_close(norm(x.transpose(0, 1)), F.rms_norm(x.transpose(0, 1), (64,), norm.weight, 1e-5))
    both = torch.cat((torch.tensor([-1e4, -90.0, -87.5, 0.0, 88.5, 1e4, 3.0, -3.0]), torch.randn(8))).repeat(2, 3, 1)
    gate, up = both.split(8, dim=-1)
    for g, u in ((gate, up), (gate.transpose(0, 1), up.transpose(0, 1)), (gate.double(), up.double())):
        torch.testing.assert_close(native.swiglu(g, u), F.silu(g) * u)
    config = GPTConfig(n_layer=1, n_head=2, n_embd=32, vocab_size=8, block_size=16, positions="rope", bias=False)
    rotation = build_rotations(config, torch.tensor([[3, 0, 9]])).full
    for heads in (torch.randn(1, 3, 7, 16)[:, :, :4], torch.randn(2, 3, 4, 16), torch.randn(1, 3, 4, 24)):
        wanted = apply_rope(heads, rotation)
        torch.testing.assert_close(native.rotate(heads, rotation), wanted)


@needs_compiler
@pytest.mark.parametrize("weights", ["int4", "int8", "bfloat16", "float32"])
def test_a_model_decodes_with_them(weights, monkeypatch):
    kernels = {"int4": (packed.NativeInt4Weight,), "int8": (packed.NativeInt8Weight,)}
    kernels |= {"bfloat16": (packed.NativeBFloat16Weight,), "float32": (packed.NativeFloatWeight,)}
    monkeypatch.setattr(packed, "_KINDS", kernels)
    monkeypatch.setattr(packed, "_HEADS", {"int4": kernels["int8"]})
    base = {"n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_embd": 64, "block_size": 64, "vocab_size": 96, "bias": False}
    base |= {"norm": "rmsnorm", "positions": "rope", "mlp": "swiglu", "intermediate_size": 96}
    torch.manual_seed(0)
    plain, prepared = (GPT(GPTConfig(**base)).eval().requires_grad_(False) for _ in range(2))
    for model in (plain, prepared):
        for number, parameter in enumerate(model.parameters()):
            torch.manual_seed(number)
            parameter.add_(torch.randn(parameter.shape), alpha=0.1)
    assert "compiled" in packed.prepare_for_inference(prepared, weights)
    assert isinstance(prepared.blocks[1].ln2, NativeRMSNorm)
    ids = torch.arange(40).reshape(2, 20)
    with torch.inference_mode():
        wanted, found = plain(ids), prepared(ids)
    assert (found - wanted).norm() < {"int8": 0.03, "int4": 0.5, "bfloat16": 0.03, "float32": 1e-5}[
        weights
    ] * wanted.norm()
    prompts, params = [[1, 2, 3], [5, 6], [7]], SamplingParams(12, 0.0, logprobs=0)
    engine = Engine(prepared, None, max_batch_size=3, max_length=48)
    many = engine.generate(prompts, params)
    for prompt, one in zip(prompts, many, strict=True):
        alone = engine.generate([prompt], params)[0]
        assert alone.token_ids == one.token_ids
        torch.testing.assert_close(alone.logprobs, one.logprobs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "variables", [{"LIT_GPT_NATIVE": "0"}, {"CC": "/nowhere/cc"}, {"CC": "false"}], ids=["off", "absent", "failing"]
)
def test_machines_without_a_compiler_use_torch(variables, tmp_path, monkeypatch):
    for name, value in ({"LIT_GPT_CACHE": str(tmp_path)} | variables).items():
        monkeypatch.setenv(name, value)
    native.library.cache_clear()
    assert native.library() is None
    assert list(tmp_path.iterdir()) == []
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=32, vocab_size=8, block_size=16, norm="rmsnorm", bias=False))
    assert native.replace_small_operations(model) is False
    assert not isinstance(model.ln_f, NativeRMSNorm)
    native.library.cache_clear()


@needs_compiler
def test_the_compiled_file_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("LIT_GPT_CACHE", str(tmp_path))
    native.library.cache_clear()
    assert native.library() is not None
    (kept,) = tmp_path.iterdir()
    monkeypatch.setattr(compiled, "_compile", lambda *_: pytest.fail("compiled again"))
    native.library.cache_clear()
    assert native.library() is not None
    assert kept.suffix == ".so"
    native.library.cache_clear()
