"""Drawing from a model that is trained leaves optimizers that go by address, such as fused AdamW, what they need."""

import copy

import pytest
import torch
from torch.nn import functional as F

from lit_gpt.generation import Engine, SamplingParams, generate
from lit_gpt.models import GPT, GPTConfig
from lit_gpt.models.fused import prepare_for_decoding

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
