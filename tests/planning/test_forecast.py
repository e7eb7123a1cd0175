"""The model of time on a GPU, against sums by hand."""

import pytest

from lit_gpt.planning.devices import find_device
from lit_gpt.planning.forecast import step_parts
from lit_gpt.planning.tracker import Collective, Product, Work


def seconds(kind, work, device="h100"):
    return step_parts(work, find_device(device), "bf16-mixed", compiled=False)[kind]


def test_a_product_takes_its_arithmetic_and_its_bytes():
    flops = 2 * 1024**3
    work = Work(products={Product("linear", "bfloat16", (1, 1024, 1024, 1024)): 3 * flops})
    arithmetic, moved = flops / (0.7 * 989.4e12), 3 * 1024**2 * 2 / (0.75 * 3.35e12)
    assert seconds("linear", work) == pytest.approx(3 * (arithmetic + moved))


@pytest.mark.parametrize(("device", "peak"), [("h100", 0.34 * 989.4e12), ("a100-80gb", 0.62 * 312e12)])
def test_attention_is_half_as_fast_on_a_short_sequence(device, peak):
    work = Work(products={Product("attention", "bfloat16", (1, 8, 350, 128), causal=True): 1e12})
    assert seconds("attention", work, device=device) == pytest.approx(2 * 1e12 / peak)


@pytest.mark.parametrize(
    ("ranks", "stride", "speed"),
    [
        (8, 1, 450e9),  # within a node: NVLink
        (32, 1, 400e9),  # over nodes with all eight adapters of each
        (4, 8, 50e9),  # one process of each node: its own adapter
        (8, 2, 200e9),  # four processes of each node
    ],
)
def test_a_collective_uses_the_adapters_of_all_its_processes_in_a_node(ranks, stride, speed):
    work = Work(collectives=[Collective("all_gather", ranks, 0, 10**12, stride)])
    assert seconds("collectives", work) == pytest.approx(1e12 * (ranks - 1) / ranks / speed)


@pytest.mark.parametrize(("ranks", "took"), [(8, 7 / 8 / 450), (64, 56 / 64 / 50)])
def test_a_layer_waits_for_the_exchange_with_its_experts(ranks, took):
    """Unlike gathered weights, tokens cannot travel ahead; those for other nodes go through one's own adapter."""
    work = Work(moved_bytes=1e15, collectives=[Collective("all_to_all_single", ranks, 0, 10**12, 1, waits=True)])
    assert seconds("collectives", work) == pytest.approx(1e12 * took / 1e9)


def test_a_stage_waits_for_the_others_but_not_for_what_it_sends():
    work = Work(moved_bytes=1e12, collectives=[Collective("send", 4, 0, 10**12, 16)], idle_share=0.25)
    computing = 1e12 / (0.75 * 3.35e12)
    assert seconds("pipeline bubble", work) == pytest.approx(0.25 * computing)
    assert seconds("collectives", work) == pytest.approx(20 - 0.7 * computing)  # 1 TB over an adapter of 50 GB/s
