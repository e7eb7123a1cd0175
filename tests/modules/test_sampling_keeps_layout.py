"""Drawing from a model that is trained leaves optimizers that go by address, such as fused AdamW, what they need."""

import copy

import pytest
import torch
from torch.nn import functional as F

from lit_gpt.generation import Engine, SamplingParams, generate
from lit_gpt.models import GPT, GPTConfig
from lit_gpt.models.fused import prepare_for_decoding
from lit_gpt.modules.sampling import _packed_copy

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


def test_a_copy_for_sampling_shares_what_it_does_not_pack():
    model = GPT(GPTConfig.from_preset("tiny", **SHAPE | {"tie_embeddings": True})).train()
    model.init_weights(0)
    seen, before = [], {name: (p.data_ptr(), p.stride(), p.clone()) for name, p in model.named_parameters()}
    handle = model.blocks[0].register_forward_hook(Watcher(seen).watch)
    params = SamplingParams(max_new_tokens=8, temperature=0)
    found = Engine(_packed_copy(model, 2), None).generate([[1, 2, 3], [5]], params)
    assert len(seen) == 8, "a hook is kept"
    handle.remove()
    assert model.training
    for name, parameter in model.named_parameters():
        address, stride, value = before[name]
        assert (parameter.data_ptr(), parameter.stride()) == (address, stride), name
        assert torch.equal(parameter, value), name
        assert parameter.requires_grad, name
    assert _packed_copy(model, 2).wte.weight.data_ptr() == model.wte.weight.data_ptr()
    plain = Engine(copy.deepcopy(model).requires_grad_(False).eval(), None).generate([[1, 2, 3], [5]], params)
    assert [one.token_ids for one in found] == [one.token_ids for one in plain]
    with torch.no_grad():
        model.blocks[1].mlp.down_proj.weight.normal_()
    changed = Engine(_packed_copy(model, 2), None).generate([[1, 2, 3], [5]], params)
    assert [one.token_ids for one in changed] != [one.token_ids for one in found], "each copy has the current weights"


class Watcher:
    """Its method is a hook; it must not be copied with the model."""

    def __init__(self, seen):
        self.seen = seen

    def watch(self, *_):
        self.seen.append(1)

    def __deepcopy__(self, memo):
        raise AssertionError("copied")


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
