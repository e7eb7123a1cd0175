"""Exposure and AUC against values by hand, loops from the papers, and simulation."""

import itertools
import math
import random

import pytest

from lit_gpt.evaluation.safety.canaries import (
    EXPECTED_WITHOUT_TRAINING,
    SkewNormal,
    exposure_by_fit,
    exposure_by_sampling,
    rank_of,
)
from lit_gpt.evaluation.safety.membership import auc, auc_interval, true_positive_rate


def test_rank_counts_those_at_least_as_likely():
    assert rank_of(2.0, [1.0, 2.0, 3.0]) == 3
    assert rank_of(0.5, [1.0, 2.0, 3.0]) == 1
    assert exposure_by_sampling(0.5, [1.0, 2.0, 3.0]) == 2  # first of four
    assert exposure_by_sampling(9.0, [1.0, 2.0, 3.0]) == 0


def test_unseen_secrets_have_the_expected_exposure_by_all_estimates():
    draw = random.Random(1)
    by_sampling, by_fit = [], []
    candidates = [draw.gauss(50, 4) for _ in range(2000)]
    for _ in range(2000):
        own = draw.gauss(50, 4)
        by_sampling.append(exposure_by_sampling(own, candidates))
        by_fit.append(exposure_by_fit(own, candidates, 1e12))
    assert sum(by_sampling) / 2000 == pytest.approx(EXPECTED_WITHOUT_TRAINING, abs=0.1)
    assert sum(by_fit) / 2000 == pytest.approx(EXPECTED_WITHOUT_TRAINING, abs=0.1)


def test_a_normal_distribution_is_the_skew_normal_of_shape_0():
    normal = SkewNormal(0.0, 1.0, 0.0)
    for z in (-3.0, -1.0, 0.0, 0.5, 2.0):
        assert math.exp(normal.log_cdf(z)) == pytest.approx(0.5 * math.erfc(-z / math.sqrt(2)), rel=1e-5)
    # Mills: the tail at -20 is about phi(20)/20 (1 - 1/400), e^-203.9: far below what 1 - cdf could tell.
    tail = -200 - 0.5 * math.log(2 * math.pi) - math.log(20) + math.log(1 - 1 / 400)
    assert normal.log_cdf(-20.0) == pytest.approx(tail, abs=1e-3)
    assert normal.log_cdf(60.0) == pytest.approx(0.0, abs=1e-6)


def test_shape_1_is_the_larger_of_two_normals():
    """The maximum of two independent normals is skew-normal with shape 1: its distribution is Φ²."""
    largest = SkewNormal(0.0, 1.0, 1.0)
    for z in (-4.0, -1.0, 0.0, 1.5):
        assert math.exp(largest.log_cdf(z)) == pytest.approx((0.5 * math.erfc(-z / math.sqrt(2))) ** 2, rel=1e-4)


def test_the_fit_finds_the_distribution_again():
    draw = random.Random(3)
    values = [10 + 3 * max(draw.gauss(0, 1), draw.gauss(0, 1)) for _ in range(20_000)]
    fitted = SkewNormal.fitted(values)
    assert fitted.distance(values[:500]) < 0.05
    assert math.exp(fitted.log_cdf(10.0)) == pytest.approx(0.25, abs=0.01)
    mirrored = SkewNormal.fitted([-value for value in values])
    assert math.exp(mirrored.log_cdf(-10.0)) == pytest.approx(0.75, abs=0.01)


def test_exposure_by_fit_goes_beyond_the_sample_and_stops_at_the_space():
    draw = random.Random(5)
    candidates = [draw.gauss(50, 4) for _ in range(1000)]
    assert exposure_by_sampling(10.0, candidates) == pytest.approx(math.log2(1001))
    assert exposure_by_fit(30.0, candidates, 1e12) == pytest.approx(
        -math.log2(0.5 * math.erfc(5 / math.sqrt(2))), abs=5
    )
    assert exposure_by_fit(-500.0, candidates, 10**9) == pytest.approx(math.log2(10**9))
    assert exposure_by_fit(3.0, [3.0] * 10, 1e9) == 0  # a model that makes no difference


def test_auc_is_the_share_of_pairs():
    draw = random.Random(0)
    members = [draw.choice([1, 2, 3, 4, 5]) for _ in range(40)]
    others = [draw.choice([0, 1, 2, 3, 4]) for _ in range(30)]
    pairs = [(a > b) + 0.5 * (a == b) for a, b in itertools.product(members, others)]
    assert auc(members, others) == pytest.approx(sum(pairs) / len(pairs))
    assert auc([2.0, 3.0], [0.0, 1.0]) == 1
    assert auc([1.0], [1.0]) == 0.5


def test_the_interval_of_a_perfect_attack_has_a_width_and_mirrors():
    perfect, useless = auc_interval(1.0, 10, 10), auc_interval(0.0, 10, 10)
    assert perfect.high == 1
    assert perfect.low == pytest.approx(0.8, abs=0.01)  # by hand: 0.2 = 1.96 sqrt(variance) there
    assert (useless.low, useless.high) == pytest.approx((0.0, 1 - perfect.low), abs=1e-9)
    narrow = auc_interval(0.7, 500, 500)
    assert 0.66 < narrow.low < 0.7 < narrow.high < 0.74


@pytest.mark.parametrize(("shift", "sizes"), [(0.0, (20, 20)), (0.8, (60, 30)), (2.0, (15, 15)), (3.0, (10, 40))])
def test_the_interval_covers(shift, sizes):
    """Over 2,000 repeats the 95 % interval holds the truth in 93 to 98 %."""
    truth = 0.5 * math.erfc(-shift / 2)  # P(X > Y) of two normals a shift apart
    draw = random.Random(11)
    held = 0
    for _ in range(2000):
        members = [draw.gauss(shift, 1) for _ in range(sizes[0])]
        others = [draw.gauss(0, 1) for _ in range(sizes[1])]
        interval = auc_interval(auc(members, others), *sizes)
        held += interval.low <= truth <= interval.high
    assert 0.93 <= held / 2000 <= 0.985


def test_true_positive_rate_by_hand():
    others = [float(i) for i in range(100)]
    assert true_positive_rate([98.5, 99.5, 97.0, 200.0], others, 0.01) == 0.75  # one of the others may lie above
    assert true_positive_rate([98.5, 99.5], others, 0.0) == 0.5
