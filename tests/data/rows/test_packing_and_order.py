"""Packing puts every row into one bin and wastes little; the order is a permutation and a pure function."""

import numpy as np
import pytest

from lit_gpt.data.rows.loader import pack
from lit_gpt.data.sampler import RowSampler


def best_fit_decreasing(lengths, capacity):
    """The paper's algorithm as written: longest first, into the fullest bin with room. Returns the number of bins."""
    room = []
    for length in sorted(lengths, reverse=True):
        fitting = [index for index, free in enumerate(room) if free >= length]
        if fitting:
            room[min(fitting, key=lambda index: room[index])] -= length
        else:
            room.append(capacity - length)
    return len(room)


@pytest.mark.parametrize(("count", "capacity", "longest"), [(1, 5, 5), (50, 64, 64), (500, 128, 40), (300, 17, 17)])
def test_pack(count, capacity, longest):
    lengths = np.random.default_rng(count).integers(1, longest + 1, count)
    bins = pack(lengths, capacity, key=3)
    assert sorted(np.concatenate(bins).tolist()) == list(range(count))
    assert max(lengths[rows].sum() for rows in bins) <= capacity
    assert len(bins) == best_fit_decreasing(lengths, capacity)


def test_pack_nothing():
    assert pack(np.empty(0, np.int64), 8) == []


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("size", [1, 4, 7])
def test_every_sample_once_an_epoch(size, grouped):
    lengths = np.arange(100) % 13
    order = RowSampler(100, size, seed=5, lengths=lengths if grouped else None)
    # Whole epochs end together with whole groups of steps after so many samples.
    steps = int(np.lcm(100, order.group_steps * size)) // size
    seen = np.concatenate([order.step(step) for step in range(steps)])
    assert (np.bincount(seen, minlength=100) == len(seen) // 100).all()
    again = RowSampler(100, size, seed=5, lengths=lengths if grouped else None)
    for step in (steps - 1, 3, 40, 0):
        assert (again.step(step) == order.step(step)).all()
    assert any((RowSampler(100, size, seed=6).step(s) != RowSampler(100, size, seed=5).step(s)).any() for s in range(5))


def test_like_lengths_meet():
    lengths = np.random.default_rng(0).integers(1, 1000, 2000)
    grouped, plain = RowSampler(2000, 8, 0, lengths), RowSampler(2000, 8, 0)

    def padding(order):
        rows = [lengths[order.step(step)] for step in range(100)]
        return 1 - sum(map(sum, rows)) / sum(8 * max(row) for row in rows)

    assert padding(grouped) < 0.05 < 0.3 < padding(plain)


def test_a_step_larger_than_the_data():
    order = RowSampler(3, 8, seed=0)
    assert sorted(np.concatenate([order.step(0), order.step(1), order.step(2)]).tolist()) == sorted([0, 1, 2] * 8)
