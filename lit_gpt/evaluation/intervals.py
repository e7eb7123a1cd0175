"""Confidence intervals of scores, and the scores that most measures report: shares and means over items.

- A share of successes: Wilson's score interval (Wilson 1927, JASA 22), which stays inside [0, 1] and has a width even
  at 0 and 1.
- A mean, a ratio of sums, or a mean over items that come in clusters (questions about one document): the studentized
 bootstrap (Efron and Tibshirani 1993, ch. 12.5), which yields asymmetric intervals for skewed data; the percentile
  bootstrap is too narrow for few items (Hesterberg 2015, The American Statistician 69). With two to four items the
  bootstrap cannot exceed the observed range and has only 50-88 % coverage, so Student's t interval is used for those.
- Two models on the same items: the bootstrap of the per-item differences.

n items, R resamples.
"""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import replace
from statistics import NormalDist
from typing import TypeVar

import numpy as np

from lit_gpt.evaluation.result import Better, Interval, Score

RESAMPLES = 2000
LEVEL = 0.95
MAX_BOOTSTRAPPED = 50_000
"""With more items the mean is normally distributed for practical purposes, and resampling would only cost time."""
FEW_DISCORDANT = 10
FEW_UNITS = 5
"""Below this number of units, use a Student's t interval instead of the bootstrap."""
MIN_CLUSTERS = 10
"""Below this number of documents, resample passages instead of documents (the interval then says nothing about
others)."""
_MAX_RESAMPLED_ITEMS_IN_MEMORY = 4_000_000
"""Number of resampled items in memory at once."""


C = TypeVar("C", bound=Hashable)


def resampled_clusters(clusters: Sequence[C] | None) -> Sequence[C] | None:
    """Return the clusters to resample; None to resample items, because each is a cluster or there are too few."""
    if clusters is None or len(set(clusters)) == len(clusters) or len(set(clusters)) < MIN_CLUSTERS:
        return None
    return clusters


def wilson(successes: float, count: int, level: float = LEVEL) -> Interval | None:
    """Return Wilson's interval of a share.

    Args:
        successes: Number of items that succeeded.
        count: n, number of items.
        level: Probability with which the interval covers the true value.

    Returns:
        None for no items.

    Raises:
        ValueError: If fewer than 0 or more than `count` successes.

    Example:
        >>> interval = wilson(8, 10)
        >>> round(interval.low, 4), round(interval.high, 4)
        (0.4902, 0.9433)
    """
    if not 0 <= successes <= count:
        raise ValueError(f"{successes} successes among {count} items")
    if count == 0:
        return None
    z = NormalDist().inv_cdf(0.5 + level / 2)
    share = successes / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    low = 0.0 if successes == 0 else max(0.0, centre - half)  # exactly 0, which rounding would miss
    return Interval(low, 1.0 if successes == count else min(1.0, centre + half), "Wilson", level)


def bootstrap_mean(
    values: Sequence[float],
    seed: int = 0,
    clusters: Sequence[Hashable] | None = None,
    num_resamples: int = RESAMPLES,
    level: float = LEVEL,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Interval | None:
    """Return the interval of a mean; for a share (all values 0 or 1, no clusters) it is Wilson's.

    Args:
        values: The items' values.
        seed: Seed of the resamples.
        clusters: Cluster of each item, if items of one document are correlated; whole clusters are then resampled.
            None: items are independent.
        num_resamples: R, number of resamples.
        level: Probability with which the interval covers the true value.
        bounds: Smallest and largest possible mean.

    Returns:
        None for fewer than two items or clusters.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if clusters is None:
        may_be_share = bounds[1] in (1.0, math.inf)  # counts that happen to be 0 or 1 are not a share
        if may_be_share and len(numbers) and np.isin(numbers, (0.0, 1.0)).all():
            return wilson(float(numbers.sum()), len(numbers), level)
        return _studentised(numbers, np.ones_like(numbers), seed, num_resamples, level, bounds, "bootstrap over items")
    if len(clusters) != len(numbers):
        raise ValueError(f"{len(numbers)} values and {len(clusters)} clusters; each item belongs to one")
    _, positions = np.unique([str(cluster) for cluster in clusters], return_inverse=True)
    sums, sizes = np.bincount(positions, numbers), np.bincount(positions).astype(np.float64)
    return _studentised(sums, sizes, seed, num_resamples, level, bounds, "bootstrap over clusters")


def bootstrap_ratio(
    numerators: Sequence[float],
    denominators: Sequence[float],
    seed: int = 0,
    unit: str = "items",
    num_resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Interval | None:
    """Return the interval of a ratio of two sums over the same items, such as bits per byte over documents.

    Args:
        numerators: Numerator of each item.
        denominators: Denominator of each item, at least 0.
        seed: Seed of the resamples.
        unit: Name of the items ("documents"), for the description of the method.
        num_resamples: R, number of resamples.
        level: Probability with which the interval covers the true value.

    Returns:
        None for fewer than two items.
    """
    above, below = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    bounds = (0.0 if (above >= 0).all() else -math.inf, math.inf)
    return _studentised(above, below, seed, num_resamples, level, bounds, f"bootstrap over {unit}")


def paired_bootstrap(
    first: Sequence[float],
    second: Sequence[float],
    seed: int = 0,
    clusters: Sequence[Hashable] | None = None,
    num_resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Interval | None:
    """Return the interval of mean(second) - mean(first) over the same items in the same order.

    If all values are 0 or 1 and the two disagree on fewer than ten items, resampling is uninformative; the interval is
    then the adjusted Wald interval for paired shares (Bonett and Price 2012, J. Educ. Behav. Stat. 37).

    Args:
        first: The first model's values, one per item.
        second: The other model's values.
        seed: Seed of the resamples.
        clusters: As in `bootstrap_mean`.
        num_resamples: R, number of resamples.
        level: Probability with which the interval covers the true value.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} values; both models need the same items")
    difference = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    both = np.concatenate([np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)])
    if clusters is None and len(difference) and np.isin(both, (0.0, 1.0)).all():
        won, lost, count = int((difference > 0).sum()), int((difference < 0).sum()), len(difference)
        if won + lost < FEW_DISCORDANT:
            return _paired_wald(won, lost, count, level)
        # The differences are -1, 0 and 1, which is not a share: the bootstrap below.
    if clusters is not None:
        if np.isin(both, (0.0, 1.0)).all() and not difference.any():
            return _paired_wald(0, 0, len(set(clusters)), level)  # no more certain than the number of clusters allows
        found = bootstrap_mean(difference.tolist(), seed, clusters, num_resamples, level)
        return None if found is None else Interval(found.low, found.high, f"paired {found.method}", level)
    ones = np.ones_like(difference)
    return _studentised(difference, ones, seed, num_resamples, level, (-math.inf, math.inf), "paired bootstrap")


def _paired_wald(won: int, lost: int, count: int, level: float) -> Interval:
    up, down = (won + 1) / (count + 2), (lost + 1) / (count + 2)
    half = NormalDist().inv_cdf(0.5 + level / 2) * math.sqrt((up + down - (up - down) ** 2) / (count + 2))
    return Interval(max(-1.0, up - down - half), min(1.0, up - down + half), "paired Wald, adjusted", level)


def _studentised(
    sums: np.ndarray,
    sizes: np.ndarray,
    seed: int,
    num_resamples: int,
    level: float,
    bounds: tuple[float, float],
    method: str,
) -> Interval | None:
    """Return the interval of Σ sums / Σ sizes over n units, (n,) float64 each.

    The studentized bootstrap divides the deviation of each resample by the standard error of that resample.
    """
    count = len(sums)
    if count < 2 or not sizes.sum():
        return None
    centre, error = (float(value[0]) for value in _ratio(sums[None], sizes[None]))
    tails = np.array([0.5 - level / 2, 0.5 + level / 2])
    if error == 0:
        return Interval(centre, centre, method, level)
    if count < FEW_UNITS:
        half = _student_quantile(0.5 + level / 2, count - 1) * error
        ends = (centre - half, centre + half)
        method = method.replace("bootstrap", "Student's t")
    elif count > MAX_BOOTSTRAPPED:
        z = NormalDist().inv_cdf(float(tails[1]))
        ends = (centre - z * error, centre + z * error)
    else:
        centres, errors = _resampled(sums, sizes, seed, num_resamples)
        usable = errors > 1e-12 * max(abs(centre), error)  # resamples of equal items have no spread to divide by
        if usable.mean() > 0.999:
            low, high = np.quantile((centres[usable] - centre) / errors[usable], tails)
            ends = (centre - float(high) * error, centre - float(low) * error)
        else:
            # Almost all items are equal, so many resamples have no spread to divide by: percentiles, widened as
            # Student's t widens the normal (Hesterberg 2015, section 5.3).
            wide = _normal_tail(count, level)
            low, high = np.quantile(centres, [wide, 1 - wide])
            ends = (float(low), float(high))
    return Interval(max(bounds[0], ends[0]), min(bounds[1], ends[1]), method, level)


def _ratio(sums: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Map (R, n) to the ratio of sums and its standard error, (R,) each; the error is computed by linearization."""
    count, total = sums.shape[1], sizes.sum(axis=1)
    ratio = sums.sum(axis=1) / total
    residuals = sums - ratio[:, None] * sizes
    error = np.sqrt(np.square(residuals).sum(axis=1) * count / (count - 1)) / total
    return ratio, error


def _resampled(sums: np.ndarray, sizes: np.ndarray, seed: int, num_resamples: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    count = len(sums)
    at_once = max(1, _MAX_RESAMPLED_ITEMS_IN_MEMORY // count)
    found = []
    for start in range(0, num_resamples, at_once):
        drawn = generator.integers(count, size=(min(at_once, num_resamples - start), count))
        keep = sizes[drawn].sum(axis=1) > 0
        found.append(_ratio(sums[drawn[keep]], sizes[drawn[keep]]))
    return np.concatenate([one for one, _ in found]), np.concatenate([one for _, one in found])


def _student_quantile(share: float, degrees: int) -> float:
    """Return a quantile of Student's t for 1 to 3 degrees of freedom, whose distribution functions are elementary."""
    if degrees == 1:
        return math.tan(math.pi * (share - 0.5))
    if degrees == 2:
        return (2 * share - 1) * math.sqrt(2 / (4 * share * (1 - share)))
    low, high = 0.0, 1e6
    for _ in range(80):
        t = (low + high) / 2 / math.sqrt(3)
        below = 0.5 + (t / (1 + t * t) + math.atan(t)) / math.pi < share
        low, high = ((low + high) / 2, high) if below else (low, (low + high) / 2)
    return low


def _normal_tail(count: int, level: float) -> float:
    """Return the normal probability beyond sqrt(n / (n - 1)) t, with t the quantile of n - 1 degrees of freedom."""
    # Student's quantile by its expansion in 1/degrees (Abramowitz and Stegun 26.7.5): within 1 % from 3 degrees on.
    z, degrees = NormalDist().inv_cdf(0.5 + level / 2), count - 1
    t = z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
    return NormalDist().cdf(-math.sqrt(count / (count - 1)) * t)


def share_score(
    name: str,
    hits: Sequence[bool],
    items: Sequence[str],
    clusters: Sequence[str] | None = None,
    better: Better = "lower",
    seed: int = 0,
) -> Score:
    """Return a share of items with its interval.

    hits: Whether each item is a success.
        name: Name of the score.
        hits: Whether each item counts.
        items: Ids of the items, all different.
        clusters: The document of each item; None: items are independent.
        better: Which direction is good.
        seed: Seed of the resamples.
    """
    values = [float(hit) for hit in hits]
    interval = _bootstrap_interval(values, clusters, seed)
    if interval is None or interval.low == interval.high:
        # No spread between documents: a share of 0 or 1 is only as certain as the number of documents allows.
        count = len(values) if clusters is None else _num_independent(clusters)
        found = wilson(round(sum(values) / max(1, len(values)) * count), count)
        interval = None if found is None else replace(found, method="Wilson over documents" if clusters else "Wilson")
    return Score(
        name,
        sum(values) / len(values) if values else float("nan"),
        len(values),
        interval,
        "share",
        better,
        dict(zip(items, values, strict=True)),
        clusters_of(items, clusters),
    )


def mean_score(
    name: str,
    values: Sequence[float],
    items: Sequence[str],
    unit: str,
    clusters: Sequence[str] | None = None,
    better: Better = "lower",
    seed: int = 0,
    bounds: tuple[float, float] = (float("-inf"), float("inf")),
) -> Score:
    """Return a mean over items with its interval, or without one if all are equal; arguments as `share_score`."""
    interval = _bootstrap_interval(values, clusters, seed, bounds)
    if interval is not None and interval.low == interval.high:
        interval = None
    return Score(
        name,
        sum(values) / len(values) if values else float("nan"),
        len(values),
        interval,
        unit,
        better,
        dict(zip(items, map(float, values), strict=True)),
        clusters_of(items, clusters),
    )


def _bootstrap_interval(
    values: Sequence[float], clusters: Sequence[str] | None, seed: int, bounds: tuple[float, float] = (0.0, 1.0)
) -> Interval | None:
    return bootstrap_mean(values, seed, resampled_clusters(clusters), bounds=bounds)


def clusters_of(items: Sequence[str], clusters: Sequence[str] | None) -> dict[str, str]:
    """Return a map from items to clusters for a score; empty if each item is its own cluster."""
    if clusters is None or len(set(clusters)) == len(clusters):
        return {}
    return dict(zip(items, clusters, strict=True))


def _num_independent(clusters: Sequence[str]) -> int:
    num_documents = len(Counter(clusters))
    return num_documents if num_documents >= MIN_CLUSTERS else len(clusters)


def few_documents(clusters: Sequence[str]) -> tuple[str, ...]:
    """Return a note if intervals are over passages of only a few documents."""
    number = len(set(clusters))
    if number >= MIN_CLUSTERS:
        return ()
    return (f"All passages are from {number} documents: the intervals only cover passages of these.",)
