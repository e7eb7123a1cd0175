import numpy as np
import pytest

from lit_gpt.data.sampler import WindowSampler, hash_integers, permute
from lit_gpt.errors import UserError


@pytest.mark.parametrize("size", [*range(1, 40), 64, 99, 100, 101, 1000, 1023, 1024, 1025, 65_537])
def test_it_is_a_bijection(size: int) -> None:
    for key in (0, 1, (1 << 64) - 1):
        assert np.array_equal(np.sort(permute(np.arange(size), size, key)), np.arange(size))


def test_single_elements_and_any_order_of_asking_agree() -> None:
    whole = permute(np.arange(1000), 1000, 7)
    asked = np.array([999, 3, 3, 500])
    assert permute(asked, 1000, 7).tolist() == whole[asked].tolist()
    assert [int(permute(np.array([i]), 1000, 7)[0]) for i in range(0, 1000, 101)] == whole[::101].tolist()


def test_a_corpus_of_a_trillion_windows_needs_no_memory() -> None:
    size = 10**12 + 39
    result = permute(np.arange(10_000), size, 3)
    assert len(np.unique(result)) == 10_000
    assert 0 <= result.min() < size / 100
    assert size > result.max() > size * 0.99


def test_it_is_evenly_random() -> None:
    """Over many keys each element meets each place equally often, and neighbours do not stay together."""
    size, keys = 100, 1500
    counts = np.zeros((size, size))
    together = 0
    for key in range(keys):
        order = permute(np.arange(size), size, hash_integers(key))
        counts[np.arange(size), order] += 1
        together += int((np.diff(order) == 1).sum())
    expected = keys / size
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi_square - 99**2) < 4 * np.sqrt(2 * 99**2)  # 99 x 99 degrees of freedom
    assert together / keys == pytest.approx((size - 1) / size, abs=0.1)  # as for a fair shuffle


def test_an_epoch_covers_the_circle_once_and_epochs_differ() -> None:
    sampler = WindowSampler(num_tokens=1003, block_size=10, seed=5)
    assert sampler.num_windows == 100
    epochs = [sampler.starts(np.arange(100 * e, 100 * (e + 1))) for e in range(3)]
    for starts in epochs:
        covered = (starts[:, None] + np.arange(10)) % 1003
        assert len(np.unique(covered)) == 1000  # each window once, none overlapping
    assert not np.array_equal(epochs[0], epochs[1])
    assert len({tuple(sorted(starts)) for starts in epochs}) == 3  # the grid is shifted, too
    across = sampler.starts(np.arange(95, 205))
    assert across.tolist() == [*epochs[0][95:], *epochs[1], *epochs[2][:5]]


def test_the_seed_changes_the_order() -> None:
    orders = {tuple(WindowSampler(1000, 10, seed).starts(np.arange(100))) for seed in range(5)}
    assert len(orders) == 5


def test_pinned_order() -> None:
    """Runs that were started with an older version must go on with the same samples."""
    assert WindowSampler(1003, 10, 5).starts(np.arange(6)).tolist() == [994, 974, 984, 361, 391, 924]


def test_a_stream_shorter_than_a_window() -> None:
    assert WindowSampler(11, 10, 0).num_windows == 1
    with pytest.raises(UserError, match="10 training tokens, fewer than one window of block_size 10"):
        WindowSampler(10, 10, 0)
