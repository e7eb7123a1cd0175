"""pass@k: the chance that at least one of k programs that a model writes for a task is right."""

import math

from lit_gpt.errors import UserError


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """Estimate it from more than k programs, without bias.

    1 - C(n - c, k) / C(n, k): the share of all choices of k among the n programs that hold one of the c right ones
    (Chen et al. 2021, arXiv:2107.03374, equation 1). With 1 - (1 - c/n)^k in its place, the estimate is too low.

    Args:
        samples: n, programs written for the task.
        passed: c, how many of them pass its tests.
        k: How many may be tried.

    Raises:
        UserError: k is above n.

    Example:
        >>> pass_at_k(10, 3, 1)
        0.3
    """
    if not 1 <= k <= samples:
        raise UserError(f"pass@{k} takes {k} samples of each task or more, and there are {samples}; raise samples")
    if not 0 <= passed <= samples:
        raise ValueError(f"{passed} of {samples} programs passed")
    return (math.comb(samples, k) - math.comb(samples - passed, k)) / math.comb(samples, k)
