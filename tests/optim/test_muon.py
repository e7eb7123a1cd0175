"""MuonAdamW against the algorithm written out with an exact SVD, and against torch's AdamW."""

import copy

import pytest
import torch
from torch import nn

from lit_gpt.errors import UserError
from lit_gpt.models import GPT, GPTConfig
from lit_gpt.optim import MuonAdamW, orthogonalize, parameter_groups


@pytest.mark.parametrize("shape", [(2, 16, 64), (64, 16), (24, 24)])
def test_orthogonalize_approaches_the_polar_factor(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    torch.testing.assert_close(orthogonalize(matrices, 12), u @ vh, rtol=0, atol=1e-3)


def test_zero_gradient_gives_zero_update():
    assert not orthogonalize(torch.zeros(3, 4)).any()


def test_follows_the_algorithm_with_an_exact_svd():
    generator = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.randn(8, 32, generator=generator))
    expected = weight.detach().clone()
    buffer = torch.zeros_like(expected)
    optimizer = MuonAdamW(
        [{"name": "matrices", "params": [weight]}], lr=0.1, momentum=0.9, weight_decay=0.5, num_iterations=15
    )
    for _ in range(3):
        gradient = torch.randn(8, 32, generator=generator)
        weight.grad = gradient.clone()
        optimizer.step()
        buffer = 0.9 * buffer + 0.1 * gradient
        u, _, vh = torch.linalg.svd(0.1 * gradient + 0.9 * buffer, full_matrices=False)
        expected = expected * (1 - 0.1 * 0.5) - 0.1 * 0.2 * 32**0.5 * (u @ vh)
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-3, atol=1e-4)


def test_the_other_groups_are_torchs_adamw():
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (nn.Parameter(torch.ones(5)) for _ in range(2))
    matrix = nn.Parameter(torch.ones(2, 2))
    muon = MuonAdamW(
        [{"name": "matrices", "params": [matrix]}, {"name": "vectors", "params": [ours], "weight_decay": 0.0}],
        adamw_lr=0.01,
    )
    adamw = torch.optim.AdamW([theirs], lr=0.01, betas=(0.9, 0.95), weight_decay=0.0)
    for _ in range(4):
        ours.grad = torch.randn(5, generator=generator)
        theirs.grad = ours.grad.clone()
        muon.step()
        adamw.step()
    torch.testing.assert_close(ours, theirs)
    assert torch.equal(matrix, torch.ones(2, 2)), "without a gradient nothing moves, and nothing decays"


def test_state_goes_on_bit_for_bit():
    def make():
        model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, vocab_size=20, block_size=8))
        model.init_weights(0)
        return model, MuonAdamW(parameter_groups(model))

    def step(model, optimizer, seed):
        optimizer.zero_grad()
        tokens = torch.randint(0, 20, (2, 8), generator=torch.Generator().manual_seed(seed))
        model(tokens).square().mean().backward()
        optimizer.step()

    model, optimizer = make()
    step(model, optimizer, 1)
    other, other_optimizer = make()
    other.load_state_dict(model.state_dict())
    other_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for m, o in ((model, optimizer), (other, other_optimizer)):
        step(m, o, 2)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("arguments", [{"momentum": 1.0}, {"lr": -1.0}, {"num_iterations": 0}])
def test_bad_values_are_refused(arguments):
    with pytest.raises(UserError):
        MuonAdamW([{"name": "matrices", "params": [nn.Parameter(torch.ones(2, 2))]}], **arguments)


def test_groups_without_matrices_are_refused():
    with pytest.raises(UserError, match="matrices"):
        MuonAdamW([{"params": [nn.Parameter(torch.ones(2, 2))]}])


def test_every_parameter_is_in_one_group_and_decay_is_where_it_belongs():
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, vocab_size=20, block_size=8, tie_embeddings=False))
    groups = {group["name"]: group for group in parameter_groups(model)}
    counted = sum(p.numel() for group in groups.values() for p in group["params"])
    assert counted == sum(p.numel() for p in model.parameters())
    assert {name for name, group in groups.items() if "weight_decay" not in group} == {"matrices", "head"}
    assert groups["head"]["params"] == [model.lm_head.weight]
    assert len(groups["embeddings"]["params"]) == 2
    assert all(p.ndim == 2 for p in groups["matrices"]["params"])
    tied = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, vocab_size=20, block_size=8))
    assert "head" not in [group["name"] for group in parameter_groups(tied)]
