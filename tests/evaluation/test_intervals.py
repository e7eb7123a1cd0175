"""Confidence intervals against published values, and the share of simulated repeats in which they hold the truth."""

import numpy as np
import pytest

from lit_gpt.evaluation.intervals import bootstrap_mean, bootstrap_ratio, paired_bootstrap, wilson

REPEATS = 2000
COVERAGE = (0.93, 0.97)


def coverage(draw, truth, interval, repeats=REPEATS):
    generator = np.random.default_rng(1)
    hits = 0
    for number in range(repeats):
        found = interval(draw(generator), number)
        hits += found.low <= truth <= found.high
    return hits / repeats


def test_wilson_equals_published_values():
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3
    for successes, count, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        found = wilson(successes, count)
        assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)


def test_wilson_at_the_ends_and_without_items():
    assert wilson(0, 5).low == 0
    assert wilson(5, 5).high == 1
    assert wilson(5, 5).low > 0.5
    assert wilson(0, 0) is None
    with pytest.raises(ValueError, match="6 successes among 5"):
        wilson(6, 5)


def test_a_mean_of_zeros_and_ones_is_a_share():
    assert bootstrap_mean([0, 1, 1, 1]) == wilson(3, 4)


def test_a_cluster_of_equal_items_counts_once():
    values = list(np.random.default_rng(0).normal(size=12))
    ten_times = [value for value in values for _ in range(10)]
    clusters = [number for number in range(12) for _ in range(10)]
    once, clustered, naive = (
        bootstrap_mean(values),
        bootstrap_mean(ten_times, clusters=clusters),
        bootstrap_mean(ten_times),
    )
    assert (clustered.low, clustered.high) == pytest.approx((once.low, once.high), rel=0.15)
    assert naive.high - naive.low < 0.5 * (once.high - once.low)


def test_a_ratio_is_of_the_sums():
    found = bootstrap_ratio([2.0, 4.0, 6.0, 9.0] * 5, [1.0, 2.0, 3.0, 4.0] * 5)
    assert found.low < 21 / 10 < found.high
    assert bootstrap_ratio([2.0], [1.0]) is None


def test_an_interval_is_a_function_of_the_seed_and_stays_in_its_bounds():
    values = list(np.random.default_rng(0).beta(0.3, 3, size=15))
    assert bootstrap_mean(values, seed=3) == bootstrap_mean(values, seed=3) != bootstrap_mean(values, seed=4)
    assert bootstrap_mean(values, bounds=(0.0, 1.0)).low >= 0


def test_items_that_are_almost_all_equal_have_a_finite_interval():
    found = bootstrap_mean([0.0] * 19 + [2.5])
    assert 0 <= found.low < 0.125 < found.high < 1
    assert bootstrap_mean([1.5, 1.5, 1.5]).high == 1.5


def test_many_items_take_the_normal_interval():
    values = np.random.default_rng(0).normal(size=60_000)
    found = bootstrap_mean(values)
    error = values.std(ddof=1) / 60_000**0.5
    assert (found.low, found.high) == pytest.approx(
        (values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=1e-5
    )


def test_paired_differences_are_sharper_than_two_intervals():
    generator = np.random.default_rng(0)
    hard = generator.normal(size=100)
    first, second = hard + 0.1 * generator.normal(size=100), hard + 0.1 + 0.1 * generator.normal(size=100)
    found = paired_bootstrap(first, second)
    assert 0 < found.low < 0.1 < found.high
    assert paired_bootstrap(second, first).high < 0
    with pytest.raises(ValueError, match="same items"):
        paired_bootstrap([1.0], [1.0, 2.0])


def test_pairs_that_never_disagree_leave_room_for_chance():
    found = paired_bootstrap([0, 1, 1, 0, 1], [0, 1, 1, 0, 1])
    assert found.low < 0 < found.high
    # Bonett and Price 2012: p = (n + 1) / (N + 2) for each kind of disagreement
    found = paired_bootstrap([0] * 20, [1] * 4 + [0] * 16)
    assert (found.low, found.high) == pytest.approx(
        (5 / 22 - 1 / 22 - 1.95996 * ((6 / 22 - (4 / 22) ** 2) / 22) ** 0.5, 0.38639), abs=1e-4
    )


SMALL = {
    "normal, 12": (lambda g: g.normal(size=12), 0.0, lambda v, n: bootstrap_mean(v, n, num_resamples=500)),
    "ratio, 20": (
        lambda g: (size := g.integers(50, 5000, 20).astype(float), size * (1.6 + 0.3 * g.normal(size=20))),
        1.6,
        lambda v, n: bootstrap_ratio(v[1], v[0], n, num_resamples=500),
    ),
}


@pytest.mark.parametrize("name", SMALL)
def test_coverage_of_small_samples(name):
    assert COVERAGE[0] <= coverage(*SMALL[name]) <= COVERAGE[1]


@pytest.mark.parametrize("count", [10, 30, 100])
@pytest.mark.parametrize(("low", "high"), [(0.0, 0.1), (0.9, 1.0), (0.0, 1.0)])
def test_coverage_of_shares_near_and_far_from_the_ends(count, low, high):
    generator = np.random.default_rng(2)
    truths = generator.uniform(low, high, REPEATS)
    found = [wilson(int(n), count) for n in generator.binomial(count, truths)]
    assert (
        COVERAGE[0]
        <= np.mean([one.low <= truth <= one.high for one, truth in zip(found, truths, strict=True)])
        <= COVERAGE[1]
    )


def clustered(generator):
    effects, sizes = generator.normal(size=15), generator.integers(1, 8, 15)
    values = np.concatenate([effect + generator.normal(size=size) for effect, size in zip(effects, sizes, strict=True)])
    return values, np.repeat(np.arange(15), sizes)


def paired(generator):
    hardness = generator.random((60, 1))
    return ((0.6 * generator.random((60, 2)) + 0.4 * hardness) < [[0.5, 0.6]]).astype(float)


MANY = {
    "skewed, 20": (lambda g: g.exponential(size=20), 1.0, lambda v, n: bootstrap_mean(v, n, num_resamples=1000)),
    "skewed, 50": (
        lambda g: g.lognormal(0, 0.7, 50),
        np.exp(0.245),
        lambda v, n: bootstrap_mean(v, n, num_resamples=1000),
    ),
    "normal, 200": (lambda g: g.normal(size=200), 0.0, lambda v, n: bootstrap_mean(v, n, num_resamples=1000)),
    "15 clusters": (clustered, 0.0, lambda v, n: bootstrap_mean(v[0], n, v[1], num_resamples=1000)),
    "60 pairs": (paired, None, lambda v, n: paired_bootstrap(v[:, 0], v[:, 1], n, num_resamples=1000)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MANY)
def test_coverage(name):
    draw, truth, interval = MANY[name]
    if truth is None:
        generator = np.random.default_rng(0)
        means = np.mean([draw(generator).mean(axis=0) for _ in range(20_000)], axis=0)
        truth = means[1] - means[0]
    assert COVERAGE[0] <= coverage(draw, truth, interval) <= COVERAGE[1]
