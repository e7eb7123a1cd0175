"""Shares and means over passages, with intervals that know that passages of one document are alike."""

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

from lit_gpt.errors import UserError
from lit_gpt.evaluation.intervals import MIN_CLUSTERS, bootstrap_mean, resampled_clusters, wilson
from lit_gpt.evaluation.result import Better, Interval, Score


def share_score(
    name: str,
    hits: Sequence[bool],
    items: Sequence[str],
    clusters: Sequence[str] | None = None,
    better: Better = "lower",
    seed: int = 0,
) -> Score:
    """A share of items, with its interval.

    Args:
        name: Of the score.
        hits: Whether each item counts.
        items: Ids of the items, all different.
        clusters: The document of each item; None: items are independent.
        better: Which direction is good.
        seed: Of resampling.
    """
    values = [float(hit) for hit in hits]
    interval = _interval(values, clusters, seed)
    if interval is None or interval.low == interval.high:
        # No spread between documents: a share of 0 or 1 is as sure as the number of documents makes it.
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
    """A mean over items, with its interval; arguments as `share_score`. Without any spread it has none."""
    interval = _interval(values, clusters, seed, bounds)
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


def _interval(
    values: Sequence[float], clusters: Sequence[str] | None, seed: int, bounds: tuple[float, float] = (0.0, 1.0)
) -> Interval | None:
    return bootstrap_mean(values, seed, resampled_clusters(clusters), bounds=bounds)


def clusters_of(items: Sequence[str], clusters: Sequence[str] | None) -> dict[str, str]:
    """The cluster of each item, as a score keeps it: none where each item is its own."""
    if clusters is None or len(set(clusters)) == len(clusters):
        return {}
    return dict(zip(items, clusters, strict=True))


def _num_independent(clusters: Sequence[str]) -> int:
    num_documents = len(Counter(clusters))
    return num_documents if num_documents >= MIN_CLUSTERS else len(clusters)


def limited(count: int, limit: int | None) -> int:
    """Returns how many items to take: `count`, or less by the `limit` that one sets for a whole plan.

    Raises:
        UserError: The limit is below 1.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit is {limit}; it must be at least 1, or null for all")
    return count if limit is None else min(count, limit)


class Seeded(Protocol):
    """A measure that draws, and may have a seed of its own."""

    own_seed: int | None
    seed: int


S = TypeVar("S", bound=Seeded)


def seeded(measure: S, seed: int) -> S:
    """Returns a measure that was given no seed of its own, with that of the plan."""
    found = copy.copy(measure)
    found.own_seed = found.seed = seed
    return found


def few_documents(clusters: Sequence[str]) -> tuple[str, ...]:
    """What to note where intervals are over passages of a few documents."""
    number = len(set(clusters))
    if number >= MIN_CLUSTERS:
        return ()
    return (f"All passages are from {number} documents: the intervals are over passages of these alone.",)
