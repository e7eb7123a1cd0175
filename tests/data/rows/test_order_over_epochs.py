"""Copies of a row, one of either epoch, are not in one step because they are equally long."""

import itertools

import numpy as np
import pytest

from lit_gpt.data.sampler import RowSampler


@pytest.mark.parametrize(("num_samples", "size"), [(1100, 16), (333, 8)])
def test_copies_of_a_row_do_not_meet_where_epochs_do(num_samples, size):
    lengths = np.random.default_rng(0).integers(10, 200, num_samples)
    order = RowSampler(num_samples, size, seed=0, lengths=lengths)
    steps = 10 * num_samples // size
    chosen = [order.step(step) for step in range(steps)]
    # Those that are left are chance: the end of one epoch and the beginning of the next in one step.
    assert sum(size - len(set(step.tolist())) for step in chosen) <= 3
    whole = np.concatenate(chosen)
    counts = np.bincount(whole, minlength=num_samples)
    assert counts.min() >= 9
    assert counts.max() <= 11  # ten epochs, but for the last group's order


def test_a_group_within_an_epoch_is_sorted_as_one():
    lengths = np.random.default_rng(1).integers(10, 200, 512)
    order = RowSampler(512, 8, seed=3, lengths=lengths)
    spans = sorted(((s := lengths[order.step(step)]).max(), s.min()) for step in range(32))
    assert all(shorter[0] <= longer[1] for shorter, longer in itertools.pairwise(spans))
