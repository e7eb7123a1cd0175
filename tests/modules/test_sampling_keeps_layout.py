"""Drawing from a model that is trained leaves optimizers that go by address, such as fused AdamW, what they need."""

import copy

import pytest
import torch
from torch.nn import functional as F

from lit_gpt.generation import Engine, SamplingParams, generate
from lit_gpt.models import GPT, GPTConfig, packed
from lit_gpt.models.fused import prepare_for_decoding
from lit_gpt.modules.sampling import _packed_copy, _samples_from_copy

SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 32, "intermediate_size": 64, "block_size": 64, "vocab_size": 96}


def trained(model, fused, prepared_at, steps=4):
    """Weights after some steps, the model prepared for decoding before one of them."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=fused)
    for step in range(steps):
        if step == prepared_at:
            prepare_for_decoding(model)
        ids = torch.randint(0, 96, (4, 20), generator=torch.Generator().manual_seed(step))
        F.cross_entropy(model(ids).flatten(0, 1), ids.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return dict(model.named_parameters())


@pytest.mark.parametrize("preset", ["tiny", "gpt2"])
@pytest.mark.parametrize("prepared_at", [0, 2])
def test_a_fused_optimizer_learns_what_a_plain_one_does(preset, prepared_at):
    model = GPT(GPTConfig.from_preset(preset, **SHAPE))
    model.init_weights(0)
    plain = trained(copy.deepcopy(model), fused=False, prepared_at=None)
    for fused in (False, True):
        for name, weight in trained(copy.deepcopy(model), fused, prepared_at).items():
            assert torch.allclose(weight, plain[name], atol=2e-5), (name, fused)


@pytest.fixture
def packs(monkeypatch):
    """Matrices of any size are packed."""
    monkeypatch.setattr(packed, "_SMALL", 0)
    monkeypatch.setattr(packed, "choose", lambda _, options, measure: list(options.values())[-1])
    packed.fastest.cache_clear()
    yield
    packed.fastest.cache_clear()


def test_a_copy_for_sampling_shares_what_it_does_not_pack(packs):
    model = GPT(GPTConfig.from_preset("tiny", **SHAPE | {"tie_embeddings": True})).train()
    model.init_weights(0)
    before = {name: (p.data_ptr(), p.stride(), p.clone()) for name, p in model.named_parameters()}
    params = SamplingParams(max_new_tokens=8, temperature=0)
    copied = _packed_copy(model, 2)
    assert isinstance(copied.lm_head, packed.PackedHead)
    assert isinstance(copied.blocks[1].mlp.down_proj, packed.PackedLinear)
    found = Engine(copied, None).generate([[1, 2, 3], [5]], params)
    assert model.training
    for name, parameter in model.named_parameters():
        address, stride, value = before[name]
        assert (parameter.data_ptr(), parameter.stride()) == (address, stride), name
        assert torch.equal(parameter, value), name
        assert parameter.requires_grad, name
    assert copied.wte.weight.data_ptr() == model.wte.weight.data_ptr()
    plain = Engine(copy.deepcopy(model).requires_grad_(False).eval(), None).generate([[1, 2, 3], [5]], params)
    assert [one.token_ids for one in found] == [one.token_ids for one in plain]
    with torch.no_grad():
        model.blocks[1].mlp.down_proj.weight.normal_()
    changed = Engine(_packed_copy(model, 2), None).generate([[1, 2, 3], [5]], params)
    assert [one.token_ids for one in changed] != [one.token_ids for one in found], "each copy has the current weights"


def test_models_with_foreign_layers_or_hooks_are_not_copied(tmp_path, monkeypatch):
    class Own(torch.nn.Linear):
        """A layer of another package."""

    class Module:
        device, _adapter = torch.device("cpu"), None
        model = GPT(GPTConfig.from_preset("tiny", **SHAPE))

    assert _samples_from_copy(Module)
    handle = Module.model.ln_f.register_forward_hook(lambda *_: None)
    assert not _samples_from_copy(Module)
    handle.remove()
    assert _samples_from_copy(Module)
    Module.model.blocks[0].mlp.down_proj = Own(64, 32)
    assert not _samples_from_copy(Module)
    Module.model = GPT(GPTConfig.from_preset("tiny", **SHAPE))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LIT_GPT_KERNELS", str(tmp_path / "file" / "kernels.json"))
    assert not _samples_from_copy(Module), "another process could choose other kernels"


def test_an_engine_follows_layers_that_are_replaced():
    model = GPT(GPTConfig.from_preset("tiny", **SHAPE)).eval()
    engine = Engine(model, None)
    params = SamplingParams(max_new_tokens=8, temperature=0)
    before = engine.generate([[1, 2, 3]], params)[0].token_ids
    with torch.no_grad():
        for block in model.blocks:  # as an adapter does: another kind of module in place of some of the fused ones
            block.attn.q_proj = torch.nn.Sequential(torch.nn.Linear(32, 32, bias=False))
            block.mlp.gate_proj = torch.nn.Sequential(torch.nn.Linear(32, 64, bias=False))
            block.attn.q_proj[0].weight.normal_()
            block.mlp.gate_proj[0].weight.normal_()
    after = engine.generate([[1, 2, 3]], params)[0].token_ids
    assert before != after == generate(model, torch.tensor([[1, 2, 3]]), 8, temperature=0)[0, 3:].tolist()


def test_frozen_matrices_are_still_laid_out():
    model = GPT(GPTConfig.from_preset("tiny", **SHAPE)).eval()
    prepare_for_decoding(model)
    attn = model.blocks[0].attn
    assert attn.fused is not None, "trained projections are one product"
    assert attn.q_proj.weight.is_contiguous()
    frozen = GPT(GPTConfig.from_preset("tiny", **SHAPE)).eval().requires_grad_(False)
    prepare_for_decoding(frozen)
    assert frozen.blocks[0].attn.fused.weight.stride() == (1, 96)
