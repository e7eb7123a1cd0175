"""Expert parallelism on CPU processes (gloo) against one process."""

import pytest
import torch
import torch.distributed as dist
from processes import Collectives, spawn

from lit_gpt.batch import IGNORE_INDEX
from lit_gpt.errors import UserError
from lit_gpt.models import GPT, GPTConfig
from lit_gpt.models.moe import Routing
from lit_gpt.objectives import expert_loads, linear_cross_entropy, routing_loss
from lit_gpt.optim import MuonAdamW, parameter_groups
from lit_gpt.parallel import Layout, check_model, parallelize
from lit_gpt.parallel.gradients import clip_gradients, sum_partial_gradients, total_norm

MOE = {
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "intermediate_size": 16,
    "shared_intermediate_size": 8,
    "scores": "sigmoid",
    "selection_bias": True,
    "balance_loss_weight": 0.05,
    "z_loss_weight": 0.01,
}
SHAPE = {
    "n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 16, "vocab_size": 61, "init_std": 0.1, "positions": "rope",
    "norm": "rmsnorm", "mlp": "swiglu", "bias": False, "intermediate_size": 48,
}  # fmt: skip
CONFIG = GPTConfig.from_dict(SHAPE | {"moe": MOE})
BIASES = GPTConfig.from_dict(SHAPE | {"moe": MOE | {"router_bias": True}, "mlp_bias": True, "multi_token": 0})


@pytest.mark.parametrize(
    ("changes", "axes", "words"),
    [
        ({}, {"data": 2, "expert": 2}, ["expert is 2", "set expert to 1"]),
        ({"moe": MOE | {"num_experts": 6}}, {"data": 4, "expert": 4}, ["num_experts 6", "4", "set expert"]),
    ],
)
def test_experts_that_cannot_be_divided(changes, axes, words):
    with pytest.raises(UserError) as error:
        check_model(GPTConfig.from_dict(SHAPE | changes), Layout(**axes))
    assert all(word in str(error.value) for word in words), error.value


def test_two_processes_follow_one():
    """The smoke test: loss, gradients, loads and updated weights."""
    spawn(_train, Layout(data=2, expert=2), Layout(data=2, expert=2), CONFIG, 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "config"),
    [
        (Layout(data=4, expert=2), CONFIG),
        (Layout(data=2, tensor=2, expert=2), BIASES),
        (Layout(data=2, replicate=2, expert=2), CONFIG),
    ],
    ids=lambda value: "" if isinstance(value, GPTConfig) else None,
)
def test_layouts_follow_one_process(layout, config):
    spawn(_train, layout, layout, config, 3)


ROWS = 8


def _train(mesh, layout, config, steps):
    """Train the same model alone and spread, with gradients of two micro-batches, clipping and Muon."""
    alone = GPT(config)
    alone.init_weights(3)
    with torch.device("meta"):
        spread = GPT(config)
    parallelize(spread, mesh, expert=layout.expert)
    spread.to_empty(device="cpu")
    spread.init_weights(3)
    _check_shards(alone, spread, layout)
    group = mesh.get_group("loss")
    ranks = group.size()
    here = slice(*(ROWS // ranks * (group.rank() + end) for end in (0, 1)))
    generator = torch.Generator().manual_seed(0)
    optimizers = [MuonAdamW(parameter_groups(model), lr=0.02) for model in (alone, spread)]
    for step in range(steps):
        ids, labels = torch.randint(config.vocab_size, (2, ROWS, 16), generator=generator)
        labels[0, 5:] = IGNORE_INDEX
        if step == 1:  # all tokens alike: most experts, and whole processes, get none
            ids[:] = ids[0, :1]
        for optimizer in optimizers:
            optimizer.zero_grad()
        one = _step(alone, ids, labels, 1.0)
        with Collectives() as counter:
            other = _step(spread, ids[here], labels[here], ranks)
        if step == 0:
            # Counts, rows, weights and results forward; the last three backward; per layer and micro-batch.
            assert counter.counts["all_to_all"] == 7 * config.n_layer * 2
        sum_partial_gradients(spread.parameters())
        for value, total in zip(other, one, strict=True):
            dist.all_reduce(value, group=group)
            torch.testing.assert_close(value, total, rtol=2e-6, atol=1e-6)
        norms = [total_norm(model.parameters()) for model in (alone, spread)]
        torch.testing.assert_close(norms[1], norms[0], rtol=1e-5, atol=0)
        for (name, whole), piece in zip(alone.named_parameters(), spread.parameters(), strict=True):
            error = torch.linalg.norm(piece.grad.full_tensor() - whole.grad)
            assert error <= 1e-5 * torch.linalg.norm(whole.grad) + 1e-7 * norms[0], f"{name}: {error:.1e}"
        for model, optimizer in zip((alone, spread), optimizers, strict=True):
            clip_gradients(model.parameters(), float(norms[0]) / 2)
            optimizer.step()
        for (name, whole), piece in zip(alone.named_parameters(), spread.parameters(), strict=True):
            torch.testing.assert_close(piece.full_tensor(), whole, rtol=1e-4, atol=2e-5, msg=lambda m, n=name: n + m)


def _check_shards(alone, spread, layout):
    """Each process holds exactly its part of the experts, and of everything else."""
    for (name, whole), piece in zip(alone.named_parameters(), spread.parameters(), strict=True):
        assert torch.equal(piece.full_tensor(), whole), name
        if ".experts." in name:
            parts = layout.num_shards * (1 if name.endswith("down_bias") else layout.tensor)
            assert piece.to_local().numel() * parts == whole.numel(), name


def _step(model, ids, labels, scale):
    """Accumulate the gradient of two micro-batches; return the loss and the experts' loads."""
    losses, records = [], []
    for rows in (slice(0, len(ids) // 2), slice(len(ids) // 2, None)):
        records.append(Routing())
        y = labels[rows]
        loss = model(ids[rows], head_fn=lambda h, w, b, y=y: linear_cross_entropy(h, w, b, y), routing=records[-1]).loss
        loss = loss + routing_loss(records[-1], model.config.moe, (y != IGNORE_INDEX).sum(1))
        (loss * scale / 64).backward()
        losses.append(loss.detach())
    loads = expert_loads(records)
    return [torch.stack(losses).sum(), *(loads[layer] for layer in sorted(loads))]
