"""FSDP2, HSDP and tensor parallelism on CPU processes (gloo) against one process."""

import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from processes import spawn

from lit_gpt.adapters import AdapterConfig, adapters_disabled, add_adapter, init_adapter
from lit_gpt.errors import UserError
from lit_gpt.models import GPT, GPTConfig
from lit_gpt.objectives import linear_log_probs
from lit_gpt.parallel import Layout, parallelize
from lit_gpt.parallel.gradients import sum_partial_gradients

SMALL = {"n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 16, "vocab_size": 64}
TEXTBOOK = GPTConfig(**SMALL)
MODERN = GPTConfig.from_preset("tiny", **SMALL, n_kv_head=2, intermediate_size=48, tie_embeddings=False)


def test_another_mesh_is_refused():
    class Mesh:
        mesh_dim_names = ("data_parallel", "tensor_parallel")

    with pytest.raises(UserError, match=r"data_parallel.*ParallelStrategy"):
        parallelize(GPT(TEXTBOOK), Mesh())


@pytest.mark.slow
@pytest.mark.parametrize("config", [TEXTBOOK, MODERN], ids=["textbook tied", "modern untied"])
@pytest.mark.parametrize(
    "layout",
    [
        Layout(data=2),
        Layout(tensor=2),
        Layout(data=2, tensor=2),
        Layout(replicate=2),
        Layout(replicate=2, data=2),
        Layout(replicate=2, tensor=2),
    ],
    ids=str,
)
def test_sharded_training_follows_the_single_process(config, layout):
    spawn(train, layout, config, layout)


def train(mesh, config: GPTConfig, layout: Layout) -> None:
    alone = GPT(config)
    alone.init_weights(3)
    with torch.device("meta"):
        sharded = GPT(config)
    parallelize(sharded, mesh)
    sharded.to_empty(device="cpu")
    sharded.init_weights(3)
    assert (sharded.lm_head.weight is sharded.wte.weight) == config.tie_embeddings
    for (name, whole), piece in zip(alone.named_parameters(), sharded.parameters(), strict=True):
        assert torch.equal(piece.full_tensor(), whole), name
    assert sharded.wte.weight.to_local().shape[0] == 64 // (layout.data * layout.tensor)

    generator = torch.Generator().manual_seed(0)
    ids, labels = torch.randint(64, (2, 4, 16), generator=generator)
    rank, rows = mesh.get_group("batch").rank(), 4 // layout.num_batch_ranks
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in (alone, sharded)]
    for _ in range(3):
        norms = []
        shares = (slice(None), slice(rows * rank, rows * (rank + 1)))
        for model, optimizer, share in zip((alone, sharded), optimizers, shares, strict=True):
            loss = model(ids[share], head_fn=lambda h, w, b, y=labels[share]: F.cross_entropy((h @ w.T).mT, y))
            optimizer.zero_grad()
            loss.backward()
            norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5))
            optimizer.step()
        torch.testing.assert_close(norms[1].full_tensor(), norms[0], rtol=1e-5, atol=0)
        for (name, whole), piece in zip(alone.named_parameters(), sharded.parameters(), strict=True):
            torch.testing.assert_close(piece.full_tensor(), whole, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("layout", [Layout(data=2), Layout(tensor=2)], ids=str)
def test_an_adapter_whose_base_ran_first_gets_the_gradients_of_one_process(layout):
    spawn(train_adapter, layout, layout)


def train_adapter(mesh, layout: Layout) -> None:
    """The base alone, as a reference, then the adapter: FSDP2 keeps what it finds at its first forward."""
    alone, adapter = GPT(MODERN), AdapterConfig(rank=4)
    alone.init_weights(3)
    with torch.device("meta"):
        sharded = GPT(MODERN)
        add_adapter(sharded, adapter)
    parallelize(sharded, mesh)
    sharded.to_empty(device="cpu")
    sharded.init_weights(3)
    init_adapter(sharded, 5)
    add_adapter(alone, adapter, seed=5)
    values = {name: value.full_tensor() for name, value in sharded.named_parameters()}
    base = {name: value for name, value in values.items() if "lora_" not in name}
    for name, value in alone.named_parameters():  # (the base is drawn by name, and the names differ)
        if "lora_" in name:
            assert torch.equal(values[name], value), name
        elif ".base_layer." in name:
            value.data.copy_(base[name])
    ids = torch.randint(64, (4, 16), generator=torch.Generator().manual_seed(0))
    rank, rows = mesh.get_group("batch").rank(), 4 // layout.num_batch_ranks
    losses = []
    for model, share in ((alone, slice(None)), (sharded, slice(rows * rank, rows * (rank + 1)))):
        fn = partial(linear_log_probs, labels=ids[share])
        with torch.no_grad(), adapters_disabled(model):
            reference = model(ids[share], head_fn=fn)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # FSDP2 warns of a view
            scores = model(ids[share], head_fn=fn)
        loss = -(2 * scores - reference).mean()
        loss.backward()
        losses.append(loss.detach())
    sum_partial_gradients(sharded.parameters())
    assert sum(p.requires_grad for p in sharded.parameters()) == sum(p.requires_grad for p in alone.parameters()) > 0
    if layout.num_batch_ranks == 1:
        torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=0)
    for (name, one), piece in zip(alone.named_parameters(), sharded.parameters(), strict=True):
        assert (one.grad is None) == (piece.grad is None), name
        if one.grad is not None:
            torch.testing.assert_close(piece.grad.full_tensor(), one.grad, rtol=1e-4, atol=1e-7, msg=name)
