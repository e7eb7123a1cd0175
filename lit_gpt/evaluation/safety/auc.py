"""The area under the ROC curve, and an interval for it that also holds where the attack always or never succeeds.

The area is the probability that a member scores higher than a non-member, ties counting half (Mann & Whitney 1947).
Its interval is the score-like one of Newcombe 2006 ("Confidence intervals for an effect size measure based on the
Mann-Whitney statistic. Part 2", method 5): all areas whose distance from the observed one is within z of the standard
error (Hanley & McNeil 1982) that they themselves imply. Unlike the usual ones it does not shrink to nothing at 0 or 1.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch

from lit_gpt.evaluation.intervals import RESAMPLES, wilson
from lit_gpt.evaluation.result import Interval

_Z95 = 1.959963984540054


def auc(members: Sequence[float], others: Sequence[float]) -> float:
    """Returns the share of pairs in which the member scores higher, ties counting half.

    Args:
        members: Scores of what was trained on; higher says "member".
        others: Scores of what was not.
    """
    high = torch.tensor(list(members), dtype=torch.float64)
    low = torch.tensor(list(others), dtype=torch.float64).sort().values
    below = torch.searchsorted(low, high, right=False)
    not_above = torch.searchsorted(low, high, right=True)
    return float((below + not_above).sum() / (2 * len(high) * len(low)))


def auc_interval(area: float, num_members: int, num_others: int) -> Interval:
    """Returns the 95 % interval of an area.

    Args:
        area: As measured.
        num_members: Independent members it was measured on.
        num_others: Independent non-members.
    """

    def excess(truth: float) -> float:
        pairs = (num_members + num_others) / 2 - 1
        spread = 1 + pairs * ((1 - truth) / (2 - truth) + truth / (1 + truth))
        variance = truth * (1 - truth) * spread / (num_members * num_others)
        return abs(truth - area) - _Z95 * math.sqrt(variance)

    def end(outside: float) -> float:
        inside = area
        for _ in range(60):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if excess(middle) <= 0 else (inside, middle)
        return inside

    low = 0.0 if area == 0 else end(0.0)
    high = 1.0 if area == 1 else end(1.0)
    return Interval(low, high, "Newcombe 2006, method 5")


def threshold_at(others: Sequence[float], false_positive_rate: float) -> float:
    """Returns the lowest threshold that at most this share of the non-members' scores lie above."""
    allowed = math.floor(false_positive_rate * len(others))
    return -math.inf if allowed >= len(others) else sorted(others, reverse=True)[allowed]


def true_positive_rate(members: Sequence[float], others: Sequence[float], false_positive_rate: float) -> float:
    """Returns the share of members found at a share of non-members wrongly accused (Carlini et al. 2022).

    Args:
        members: Scores of what was trained on; higher says "member".
        others: Scores of what was not.
        false_positive_rate: Largest share of the non-members that may score above the threshold.
    """
    threshold = threshold_at(others, false_positive_rate)
    return sum(score > threshold for score in members) / len(members)


def true_positive_rate_interval(
    members: Sequence[float], others: Sequence[float], false_positive_rate: float, seed: int = 0
) -> Interval | None:
    """Returns the 95 % interval of a true positive rate: members and non-members are both drawn again.

    The threshold is as uncertain as the few non-members beyond it; Wilson's interval, over the members alone, holds the
    truth in 70 to 85 % of repeats. It is the least that this one spans, so that 0 and 1 are no points.

    Args:
        members: As `true_positive_rate`.
        others: The same.
        false_positive_rate: The same.
        seed: Of the resamples.
    """
    generator = np.random.default_rng(seed)
    high, low = np.asarray(members, dtype=np.float64), np.sort(np.asarray(others, dtype=np.float64))[::-1]
    allowed = math.floor(false_positive_rate * len(low))
    rates = []
    for _ in range(RESAMPLES):
        drawn = np.sort(generator.integers(len(low), size=len(low)))
        threshold = -math.inf if allowed >= len(low) else low[drawn[allowed]]
        rates.append(float((high[generator.integers(len(high), size=len(high))] > threshold).mean()))
    hits = round(true_positive_rate(members, others, false_positive_rate) * len(high))
    least = wilson(hits, len(high))
    if least is None:
        return None
    ends = np.quantile(rates, [0.025, 0.975])
    return Interval(
        min(float(ends[0]), least.low), max(float(ends[1]), least.high), "bootstrap over members and others"
    )
