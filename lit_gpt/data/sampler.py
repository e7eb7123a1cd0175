"""Which window of the token stream is sample p: a pure function of (seed, p), with no list kept and no state.

A shuffled list of all windows would take 8 bytes a window on every process, and its order would have to be saved. Here
a keyed permutation of {0, ..., N-1} is computed for the samples that are asked for: a Feistel network over
Z_a x Z_b with a*b just above N, walked along its cycle until it is back inside (Black & Rogaway 2002, "Ciphers with
Arbitrary Finite Domains"). Each round adds a hash of one half to the other, which can be undone whatever the hash is:
the whole is a bijection.
"""

import math

import numpy as np

from lit_gpt.errors import UserError

# Four make a strong pseudo-random permutation where the halves are large (Luby & Rackoff 1988); with a hundred windows,
# six still kept neighbours together 14 % too often, eight do not.
_ROUNDS = 8
_MASK = (1 << 64) - 1


def _mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele et al. 2014) of uint64 values: every input bit stirs every output bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def hash_integers(*integers: int) -> int:
    """Returns a 64-bit hash of integers (the same on every machine and in every process)."""
    state = np.zeros(1, dtype=np.uint64)
    for integer in integers:
        state = _mix(state + np.uint64((integer + 0x9E3779B97F4A7C15) & _MASK))
    return int(state[0])


def permute(index: np.ndarray, size: int, key: int) -> np.ndarray:
    """Maps indices through the permutation of {0, ..., size - 1} that `key` chooses.

    Args:
        index: (n,) integers in [0, size).
        size: Number of elements, at least 1.
        key: 64-bit key.

    Returns:
        (n,) int64.
    """
    a = math.isqrt(size - 1) + 1  # ceil(sqrt(size))
    b = -(-size // a)
    left_size, right_size = np.uint64(a), np.uint64(b)
    keys = _mix(np.uint64(key) + np.arange(1, _ROUNDS + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    result = np.asarray(index).astype(np.uint64)
    outside = np.arange(len(result))
    while len(outside):
        left, right = np.divmod(result[outside], right_size)
        for left_key, right_key in keys.reshape(-1, 2):
            left = (left + _mix(right ^ left_key) % left_size) % left_size
            right = (right + _mix(left ^ right_key) % right_size) % right_size
        result[outside] = left * right_size + right
        outside = outside[result[outside] >= size]  # a * b - size < a: few, and each comes back inside
    return result.astype(np.int64)


class WindowSampler:
    """Maps a sample's number to the start of its window in a circular stream.

    Sample p belongs to epoch e = p // N and is window perm(seed, e)(p mod N) of the N = n // T windows of that epoch.
    The grid of windows is shifted by another offset in each epoch, so that over epochs every token is met at every
    place of a window, and none is always left over.

    Args:
        num_tokens: n, length of the stream.
        block_size: T, tokens of a window (it reads one more, the last target).
        seed: Chooses the order.

    Raises:
        UserError: if the stream is shorter than one window and its last target.
    """

    def __init__(self, num_tokens: int, block_size: int, seed: int) -> None:
        if num_tokens < block_size + 1:
            raise UserError(
                f"the corpus has {num_tokens} training tokens, fewer than one window of block_size {block_size} "
                f"and its last target; lower block_size below {max(num_tokens, 2)} or add text"
            )
        self.num_tokens = num_tokens
        self.block_size = block_size
        self.seed = seed
        self.num_windows = num_tokens // block_size

    def starts(self, samples: np.ndarray) -> np.ndarray:
        """Returns the positions in the stream where samples' windows begin.

        Args:
            samples: (n,) int64 numbers of samples, from 0 without end.

        Returns:
            (n,) int64 in [0, num_tokens).
        """
        epochs, places = np.divmod(samples, self.num_windows)
        starts = np.empty(len(samples), dtype=np.int64)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1) if len(samples) else ():
            chosen = epochs == epoch
            windows = permute(places[chosen], self.num_windows, hash_integers(self.seed, epoch, 0))
            offset = hash_integers(self.seed, epoch, 1) % self.num_tokens
            starts[chosen] = (offset + windows * self.block_size) % self.num_tokens
        return starts
