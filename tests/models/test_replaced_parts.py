"""Parts of a block that are replaced by plain modules are called with what they take, in training and in decoding."""

import copy

import pytest
import torch
from torch import nn

from lit_gpt.generation import Engine, SamplingParams, generate
from lit_gpt.models import GPT, MLP, GPTConfig, MLAConfig

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


class Scaled(nn.Module):
    """A norm from elsewhere: its forward takes x alone, and it has parameters of no common name."""

    def __init__(self):
        super().__init__()
        self.log_gain = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return torch.tanh(x) * self.log_gain.exp()


LATENT = MLAConfig(kv_lora_rank=8, q_lora_rank=8, qk_nope_head_dim=4, qk_rope_head_dim=4, v_head_dim=4)


@pytest.mark.parametrize("make", [Scaled, nn.Identity])
@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"qk_norm": "head"}, ["q_norm", "k_norm"]),
        ({"qk_norm": "projection"}, ["q_norm", "k_norm"]),
        ({"qk_norm": None}, ["q_norm"]),  # a norm where the config has none
        ({"mla": LATENT, "positions": "rope"}, ["q_a_norm", "kv_a_norm"]),
    ],
    ids=["head", "projection", "added", "latent"],
)
def test_a_replaced_norm_of_attention_trains_and_decodes(options, names, make):
    torch.manual_seed(0)
    model = GPT(GPTConfig(**SHAPE | options))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    ids = torch.randint(0, 40, (1, 8))
    before = model(ids)
    for block in model.blocks:
        for name in names:
            setattr(block.attn, name, make())
    logits = model(ids)
    assert logits.equal(before) == (make is nn.Identity and options == {"qk_norm": None})
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    found = Engine(model.requires_grad_(False), None).generate(
        [ids[0].tolist()], SamplingParams(max_new_tokens=6, temperature=0)
    )
    greedy = ids
    for _ in range(6):
        greedy = torch.cat((greedy, model(greedy)[:, -1:].argmax(-1)), dim=1)
    assert found[0].token_ids == greedy[0, 8:].tolist()
