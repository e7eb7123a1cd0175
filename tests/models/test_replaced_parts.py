"""Parts of a block that are replaced by plain modules are called with what they take, in training and in decoding."""

import copy

import pytest
import torch
from torch import nn

from lit_gpt.generation import Engine, SamplingParams, generate
from lit_gpt.models import GPT, MLP, GPTConfig

SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 32, "vocab_size": 40, "norm": "rmsnorm"}
PLACEMENTS = [
    *({"norm_placement": place} for place in ("pre", "post", "output", "sandwich")),
    {"parallel_residual": True},
]


class Doubled(MLP):
    """A subclass of ours whose forward takes x alone."""

    def forward(self, x):
        return 2 * super().forward(x)


class WithContext(nn.Linear):
    def forward(self, x, context):
        assert context.position_ids is not None
        return super().forward(x)


MLPS = {
    "sequential": lambda config: nn.Sequential(nn.Linear(16, 8), nn.GELU(), nn.Linear(8, 16)),
    "subclass": Doubled,
    "context": lambda config: WithContext(16, 16),
    "identity": lambda config: nn.Identity(),
}


@pytest.mark.parametrize("placement", PLACEMENTS, ids=lambda options: str(*options.values()))
def test_a_replaced_part_trains_and_decodes(placement):
    config = GPTConfig(**SHAPE | placement)
    for make in MLPS.values():
        model = GPT(config)
        for block in model.blocks:
            block.mlp = make(config)
            block.ln1 = nn.LayerNorm(16)
        model.ln_f = nn.LayerNorm(16)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
        ids = torch.randint(0, 40, (2, 8))
        logits = model(ids)
        logits.sum().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        assert copy.deepcopy(model)(ids).equal(logits)
        found = Engine(model.requires_grad_(False), None).generate(
            [ids[0].tolist()], SamplingParams(max_new_tokens=6, temperature=0)
        )
        assert found[0].token_ids == generate(model, ids[:1], 6, temperature=0)[0, 8:].tolist()


def test_what_replaces_an_mlp_is_what_runs():
    model = GPT(GPTConfig(**SHAPE))
    before = model(torch.arange(8)[None])
    original = model.blocks[0].mlp
    model.blocks[0].mlp = nn.Identity()
    assert not model(torch.arange(8)[None]).equal(before)
    model.blocks[0].mlp = original
    assert model(torch.arange(8)[None]).equal(before)
