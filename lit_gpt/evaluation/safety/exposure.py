"""Exposure of a secret (Carlini et al. 2019, "The Secret Sharer", arXiv:1802.08232): pure functions of numbers.

A canary is a random secret that somebody put into the training text. Among all R secrets that could have been drawn
instead, ranked by the model's log-perplexity, one that was never seen stands anywhere; one that was memorised stands
first. With the rank from 1:

    exposure = log2 |R| - log2 rank            (definition 1 there; between 0 and log2 |R| bits)

R is far too large to rank, so exposure is estimated by the share of R that is at least as likely as the secret
(section 4.3). A sample of n candidates measures that share down to 1/n. Below it, a skew-normal distribution is fitted
to the candidates' log-perplexities and its lower tail is read off (equation 4 there).

A secret that the model never saw has an exposure of 1/ln 2 = 1.44 bits on average, since its rank is uniform.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

EXPECTED_WITHOUT_TRAINING = 1 / math.log(2)
"""Bits: the mean of -log2 of a uniform number."""
_MAX_SKEWNESS = 0.99  # a skew-normal distribution has less than 0.9953
_GRID = 20_001


def rank_of(perplexity: float, candidates: Sequence[float]) -> int:
    """Returns the rank of a secret among candidates, from 1: those that are at least as likely stand before it."""
    return 1 + sum(other <= perplexity for other in candidates)


def exposure_by_rank(rank: int, size: int) -> float:
    """Returns the exposure in bits of the secret of a rank, in a space that was ranked whole.

    Args:
        rank: From 1 (the likeliest) to `size`.
        size: Secrets in the space.
    """
    return math.log2(size) - math.log2(rank)


def exposure_by_sampling(perplexity: float, candidates: Sequence[float]) -> float:
    """Estimates exposure in bits from random candidates (section 4.3); at most log2 (n + 1).

    The secret counts itself among the candidates, so that the share is never 0.
    """
    return math.log2(len(candidates) + 1) - math.log2(rank_of(perplexity, candidates))


@dataclass(frozen=True)
class SkewNormal:
    """A skew-normal distribution (Azzalini 1985): density 2/ω φ(z) Φ(α z) with z = (x - ξ)/ω.

    Attributes:
        location: ξ.
        scale: ω, above 0.
        shape: α; 0 is the normal distribution.
    """

    location: float
    scale: float
    shape: float

    @classmethod
    def fitted(cls, values: Sequence[float]) -> "SkewNormal":
        """Returns the distribution that has the values' mean, variance and skewness (method of moments).

        Args:
            values: At least two different ones.
        """
        x = torch.tensor(list(values), dtype=torch.float64)
        mean, deviation = x.mean(), x.std(correction=0)
        skewness = float(((x - mean) / deviation).pow(3).mean().clamp(-_MAX_SKEWNESS, _MAX_SKEWNESS))
        power = abs(skewness) ** (2 / 3)
        size = math.sqrt(math.pi / 2 * power / (power + ((4 - math.pi) / 2) ** (2 / 3)))
        delta = math.copysign(size, skewness)
        scale = float(deviation) / math.sqrt(1 - 2 * delta**2 / math.pi)
        location = float(mean) - scale * delta * math.sqrt(2 / math.pi)
        return cls(location, scale, delta / math.sqrt(1 - delta**2))

    def log_cdf(self, x: float) -> float:
        """Returns the natural logarithm of the probability of at most x, precise far out in the tail."""
        z = (x - self.location) / self.scale
        # The mass of a lower tail lies within 40 of its end, or of the middle for an end above it.
        high = min(z, 40.0)
        low = min(z, 0.0) - 40.0
        grid = torch.linspace(low, high, _GRID, dtype=torch.float64)
        log_density = (
            math.log(2) - grid.square() / 2 - 0.5 * math.log(2 * math.pi) + torch.special.log_ndtr(self.shape * grid)
        )
        total = torch.logsumexp(log_density, 0) + math.log((high - low) / (_GRID - 1))
        # The rule counts both ends half; the lower one is nothing.
        total = total + torch.log1p(-0.5 * (log_density[-1] + math.log((high - low) / (_GRID - 1)) - total).exp())
        return min(0.0, float(total))

    def distance(self, values: Sequence[float]) -> float:
        """Returns the largest gap between its cumulative distribution and the values' own (Kolmogorov-Smirnov)."""
        ordered = sorted(values)
        n = len(ordered)
        fitted = [math.exp(self.log_cdf(value)) for value in ordered]
        return max(max(abs(p - k / n), abs(p - (k + 1) / n)) for k, p in enumerate(fitted))


def exposure_by_fit(perplexity: float, candidates: Sequence[float], size: float) -> float:
    """Estimates exposure in bits from a skew-normal fit to the candidates (equation 4); at most log2 of the space.

    Args:
        perplexity: The secret's log-perplexity.
        candidates: Those of random candidates.
        size: Secrets in the space.
    """
    if max(candidates) - min(candidates) < 1e-9:  # a model that makes no difference between them
        return exposure_by_sampling(perplexity, candidates)
    bits = -SkewNormal.fitted(candidates).log_cdf(perplexity) / math.log(2)
    return min(bits, math.log2(size))
