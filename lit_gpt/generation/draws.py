"""Random numbers that are a function of (seed, position): the same whoever shares the batch, on every device.

A counter-based generator (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") with the mixing function
of SplitMix64 (Steele et al. 2014): nothing is stored between draws, so a request may be moved, batched or replayed.
"""

import secrets

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def uniform(seed: int, position: int, stream: int = 0) -> float:
    """A number in [0, 1) with 53 random bits.

    Args:
        seed: Of the request.
        position: Which of its new tokens, from 0.
        stream: Several numbers for one position.
    """
    state = _mix(_mix(seed + _GOLDEN) + (position << 3) + stream)
    return (_mix(state + _GOLDEN) >> 11) * 2.0**-53


def random_seed() -> int:
    """A seed for a request that brings none."""
    return secrets.randbits(63)


def _mix(x: int) -> int:
    x = (x & _MASK) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & _MASK
    return x ^ x >> 31
