"""FSDP2 and tensor parallelism on CPU processes (gloo) against one process."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import multiprocessing

from lit_gpt.errors import UserError
from lit_gpt.models import GPT, GPTConfig
from lit_gpt.models.parallel import check_tensor_parallel, parallelize

SMALL = {"n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 16, "vocab_size": 64}
TEXTBOOK = GPTConfig(**SMALL)
MODERN = GPTConfig.from_preset("tiny", **SMALL, n_kv_head=2, intermediate_size=48, tie_embeddings=False)


@pytest.mark.parametrize(
    ("changes", "size", "message"),
    [
        ({}, 3, "n_head 4 is not divisible by the 3"),
        ({"n_kv_head": 2}, 4, "n_kv_head 2 is not divisible by the 4"),
        ({"intermediate_size": 50}, 4, "intermediate_size 50 is not divisible by the 4"),
    ],
)
def test_heads_that_cannot_be_divided(changes, size, message):
    with pytest.raises(UserError, match=message):
        check_tensor_parallel(GPTConfig(**SMALL | changes), size)


@pytest.mark.slow
@pytest.mark.parametrize("config", [TEXTBOOK, MODERN], ids=["textbook tied", "modern untied"])
@pytest.mark.parametrize(("data", "tensor"), [(2, 1), (1, 2), (2, 2)])
def test_sharded_training_follows_the_single_process(config, data, tensor, tmp_path):
    multiprocessing.spawn(_train, (config, data, tensor, str(tmp_path / "store")), nprocs=data * tensor)


def _train(rank: int, config: GPTConfig, data: int, tensor: int, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=data * tensor)
    mesh = dist.init_device_mesh("cpu", (data, tensor), mesh_dim_names=("data_parallel", "tensor_parallel"))
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
    if data > 1:
        assert sharded.wte.weight.to_local().shape[0] == 64 // data

    generator = torch.Generator().manual_seed(0)
    ids, labels = torch.randint(64, (2, 4, 16), generator=generator)
    share = slice(*(4 // data * (mesh["data_parallel"].get_local_rank() + end) for end in (0, 1)))
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in (alone, sharded)]
    for _ in range(3):
        norms = []
        for model, optimizer, rows in zip((alone, sharded), optimizers, (slice(None), share), strict=True):
            loss = model(ids[rows], head_fn=lambda h, w, b, y=labels[rows]: F.cross_entropy((h @ w.T).mT, y))
            optimizer.zero_grad()
            loss.backward()
            norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5))
            optimizer.step()
        torch.testing.assert_close(norms[1].full_tensor(), norms[0], rtol=1e-5, atol=0)
        for (name, whole), piece in zip(alone.named_parameters(), sharded.parameters(), strict=True):
            torch.testing.assert_close(piece.full_tensor(), whole, rtol=1e-5, atol=1e-6, msg=name)
    dist.barrier()  # gloo aborts a process whose peer leaves while it still talks
    dist.destroy_process_group()
