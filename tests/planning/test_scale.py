"""Runs on a thousand and on sixteen thousand processes: the real modules of published size, against sums by hand."""

from math import ceil
from types import SimpleNamespace

import pytest
import torch

from lit_gpt.modules import PretrainModule
from lit_gpt.parallel import Layout
from lit_gpt.planning.simulation import simulate_step

FLOAT, HALF, LONG = 4, 2, 8
"""Bytes of a number: weights, gradients and moments are float32; what is gathered and computed is bfloat16."""


def simulated(preset, T, layout, rows=1, **overrides):
    module = PretrainModule(preset=preset, block_size=T, overrides=overrides, activation_checkpointing=True)
    ids = torch.zeros(rows, T, dtype=torch.int64)
    batch = {"input_ids": ids, "labels": ids, "position_ids": torch.arange(T).expand(rows, T)}
    return simulate_step(module, [batch], "bf16-mixed", layout, True, "cuda", all_gather_dtype="bfloat16")


def sent(step, name, ranks):
    """Return (calls, bytes) of a collective over a number of processes."""
    found = [c for c in step.work.collectives if (c.name, c.num_ranks) == (name, ranks)]
    return (found[0].num_calls, found[0].num_bytes) if found else (0, 0)


def check_memory(step, local, num_tensors):
    """Parameters, two moments of AdamW, one step count a tensor: nothing else rests between two steps."""
    assert step.num_parameters == step.num_trained == local
    assert step.memory["parameters"] == FLOAT * local
    assert step.memory["optimizer"] == 2 * FLOAT * local + FLOAT * num_tensors


# ---- Llama 3.1 70B ----------------------------------------------------------------------------------------------

LLAMA = SimpleNamespace(L=80, C=8192, K=1024, F=28672, V=128256)
"""Layers, width, width of keys, width of the MLP, vocabulary."""


def llama_shards(shards, tensor):
    """Return the numbers of a block and of the rest that process 0 holds: of each matrix, its part of the rows."""
    m = LLAMA
    by_rows = [(m.C, m.C), (m.K, m.C), (m.K, m.C), (m.F, m.C), (m.F, m.C)]  # q, k, v, gate, up: columns of xW
    by_columns = [(m.C, m.C), (m.C, m.F)]  # o, down
    norm = ceil(m.C / shards)  # complete on each tensor-parallel process
    block = sum(ceil(out // tensor / shards) * inner for out, inner in by_rows)
    block += sum(ceil(out / shards) * inner // tensor for out, inner in by_columns) + 2 * norm
    vocabulary = ceil(ceil(m.V / tensor) / shards) * m.C
    return block, 2 * vocabulary + norm


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [1, 16], ids=["1024", "16384"])
def test_a_dense_70b(replicas):
    m, T, shards, tensor = LLAMA, 8192, 128, 8
    step = simulated("llama-3.1-70b", T, Layout(replicate=replicas, data=shards, tensor=tensor))
    block, rest = llama_shards(shards, tensor)
    local = m.L * block + rest
    matrices = 2 * m.C * m.C + 2 * m.C * m.K + 3 * m.C * m.F
    assert block == matrices // (shards * tensor) + 2 * m.C // shards, "total / ranks of their axes, exactly"
    check_memory(step, local, 9 * m.L + 3)
    # FSDP2: a block is gathered for its forward pass and for its backward pass, the rest once; reduced once.
    assert sent(step, "all_gather", shards) == (2 * m.L + 1, HALF * shards * (2 * m.L * block + rest))
    assert sent(step, "reduce_scatter", shards) == (m.L + 1, FLOAT * shards * local)
    if replicas > 1:  # HSDP: the copies add up their shards of the gradients
        assert sent(step, "all_reduce", replicas)[1] == FLOAT * local


# ---- DeepSeek-V3 ------------------------------------------------------------------------------------------------

V3 = SimpleNamespace(L=61, DENSE=3, C=7168, F=18432, E=256, k=8, INNER=2048, H=128, Q=1536, KV=512, V=129280)
"""Layers, dense ones of them, width, width of an MLP, experts, chosen ones, their width, heads, latents, vocabulary."""


def v3_shards(shards, expert):
    """Return the numbers that process 0 holds of a dense block, a block without experts, its experts, the rest."""
    m = V3
    attention = [(m.Q, m.C), (m.Q, 1), (m.H * 192, m.Q), (m.KV + 64, m.C), (m.KV, 1), (m.H * 256, m.KV)]
    attention += [(m.C, m.H * 128), (m.C, 1), (m.C, 1)]  # the output, and the block's two norms

    def held(matrices):
        return sum(ceil(out / shards) * inner for out, inner in matrices)

    def mlp(width):
        return [(width, m.C), (width, m.C), (m.C, width)]

    dense = held(attention + mlp(m.F))
    sparse = held([*attention, (m.E, m.C), *mlp(m.INNER)])  # a router and a shared expert
    experts, left = divmod(3 * m.E * m.INNER * m.C, shards)  # by expert, then by FSDP2 over shards / expert processes
    assert left == 0
    assert shards % expert == 0
    return dense, sparse, experts, held([(m.V, m.C), (m.V, m.C), (m.C, 1)])


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [1, 16], ids=["1024", "16384"])
def test_a_mixture_of_671b(replicas):
    m, T, shards, expert = V3, 4096, 1024, 64
    step = simulated("deepseek-v3", T, Layout(replicate=replicas, data=shards, expert=expert))
    dense, sparse, experts, rest = v3_shards(shards, expert)
    mixtures = m.L - m.DENSE
    blocks = m.DENSE * dense + mixtures * sparse
    local = blocks + mixtures * experts + rest
    check_memory(step, local, 12 * m.DENSE + 16 * mixtures + 3)
    assert sent(step, "all_gather", shards) == (2 * m.L + 1, HALF * shards * (2 * blocks + rest))
    assert sent(step, "reduce_scatter", shards) == (m.L + 1, FLOAT * shards * (blocks + rest))
    copies = shards // expert
    assert sent(step, "all_gather", copies) == (2 * mixtures, HALF * copies * 2 * mixtures * experts)
    assert sent(step, "reduce_scatter", copies) == (mixtures, FLOAT * copies * mixtures * experts)
    if replicas > 1:
        assert sent(step, "all_reduce", replicas)[1] == FLOAT * local
