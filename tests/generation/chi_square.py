"""Pearson's chi-square test, for draws against a distribution."""

from collections.abc import Sequence

import torch


def p_value(counts: Sequence[float], expected: Sequence[float]) -> float:
    """How likely counts at least so far from the expected ones are; cells of fewer than 5 expected are one cell."""
    assert not any(count for count, share in zip(counts, expected, strict=True) if share == 0), "drawn without a chance"
    pairs = [(count, share) for count, share in zip(counts, expected, strict=True) if share >= 5]
    rest = sum(counts) - sum(count for count, _ in pairs), sum(expected) - sum(share for _, share in pairs)
    if rest[1] > 1e-6:
        pairs.append(rest)
    statistic = sum((count - share) ** 2 / share for count, share in pairs)
    # The upper tail of the chi-square distribution is a regularised incomplete gamma function.
    half = torch.tensor((len(pairs) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(half, torch.tensor(statistic / 2, dtype=torch.float64)))
