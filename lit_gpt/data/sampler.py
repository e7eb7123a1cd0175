"""Map sample p to a window or row: a pure function of (seed, p), without a stored list or state.

A shuffled list of all windows would take 8 bytes per window in every process, and its order would have to be saved.
Instead, a keyed permutation of {0, ..., N-1} is evaluated only at the requested samples: a Feistel network over Z_a x
Z_b with a*b just above N, iterated along its cycle until the result is below N (Black & Rogaway 2002, "Ciphers with
Arbitrary Finite Domains"). Each round adds a hash of one half to the other, which is invertible for any hash function,
so the network is a bijection.

`WindowSampler` orders the windows of a token stream, `RowSampler` orders rows and can group them by length.
"""

import math

import numpy as np

from lit_gpt.errors import UserError

# Four rounds make a strong pseudo-random permutation if the halves are large (Luby & Rackoff 1988); with only a hundred
# windows, six still kept neighbors together 14 % too often, eight do not.
_ROUNDS = 8
_MASK = (1 << 64) - 1

GROUP_STEPS = 32
"""Number of steps whose samples are sorted together: with 32, padding is a few percent and steps still differ randomly.
A group never exceeds an epoch or spans two epochs, which could put copies of one row into the same step."""


def _mix(values: np.ndarray) -> np.ndarray:
    """Return SplitMix64's finalizer (Steele et al. 2014) of uint64 values: every input bit affects every output bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def hash_integers(*integers: int) -> int:
    """Return a 64-bit hash of integers, which is the same on every machine and in every process."""
    state = np.zeros(1, dtype=np.uint64)
    for integer in integers:
        state = _mix(state + np.uint64((integer + 0x9E3779B97F4A7C15) & _MASK))
    return int(state[0])


def permute(index: np.ndarray, size: int, key: int) -> np.ndarray:
    """Map indices through the permutation of {0, ..., size - 1} selected by `key`.

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
        outside = outside[
            result[outside] >= size
        ]  # a * b - size < a, so these are few, and each cycle returns below size
    return result.astype(np.int64)


class WindowSampler:
    """Maps a sample index to the start of its window in a circular stream.

    Sample p belongs to epoch e = p // N and is window perm(seed, e)(p mod N) of the N = n // T windows of that epoch.
    The grid of windows is shifted by a different offset in each epoch, so that over epochs every token occurs at every
    position of a window and no token is always left over.

    Args:
        num_tokens: n, length of the stream.
        block_size: T, window length in tokens (one more is read, the last target).
        seed: Seed of the order.

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
        """Return the stream positions at which the samples' windows start.

        Args:
            samples: (n,) int64 sample indices, from 0 without upper bound.

        Returns:
            (n,) int64 in [0, num_tokens).
        """
        epochs, positions = np.divmod(samples, self.num_windows)
        starts = np.empty(len(samples), dtype=np.int64)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1) if len(samples) else ():
            chosen = epochs == epoch
            windows = permute(positions[chosen], self.num_windows, hash_integers(self.seed, epoch, 0))
            offset = hash_integers(self.seed, epoch, 1) % self.num_tokens
            starts[chosen] = (offset + windows * self.block_size) % self.num_tokens
        return starts


class RowSampler:
    """Determines which samples are in optimizer step s.

    A sample makes up one row of a batch: a single row of the data, or several packed into one. Sample p of the endless
    sequence belongs to epoch p // N and is sample perm(seed, epoch)(p mod N) of N, so that each epoch visits every
    sample once. If rows are padded, those of similar length should share a step: the samples of `GROUP_STEPS` steps are
    sorted by length and redistributed, and the order of these steps is shuffled.

    Args:
        num_samples: N, number of samples per epoch.
        global_batch_size: G, samples per step.
        seed: Seed of the order.
        lengths: (N,) int64 lengths by which samples are grouped; None disables grouping.
    """

    def __init__(self, num_samples: int, global_batch_size: int, seed: int, lengths: np.ndarray | None = None) -> None:
        self.num_samples = num_samples
        self.global_batch_size = global_batch_size
        self.seed = seed
        self.lengths = lengths
        self.group_steps = min(GROUP_STEPS, max(1, num_samples // global_batch_size))
        self._group = -1
        self._grouped = np.empty((0, 0), dtype=np.int64)

    def step(self, step: int) -> np.ndarray:
        """Return the (G,) int64 indices of the samples of a step."""
        size = self.global_batch_size
        if self.lengths is None:
            return self._shuffled(np.arange(step * size, (step + 1) * size, dtype=np.int64))
        group, position = divmod(step, self.group_steps)
        if group != self._group:
            first = group * self.group_steps * size
            positions = np.arange(first, first + self.group_steps * size, dtype=np.int64)
            samples = self._shuffled(positions)
            # If a group extends into the next epoch, sort each epoch's part separately; otherwise two copies of one row
            # could be in the same step.
            by_length = np.lexsort((-self.lengths[samples], positions // self.num_samples))
            samples = samples[by_length].reshape(self.group_steps, size)
            key = hash_integers(self.seed, group, 2)
            self._grouped = samples[permute(np.arange(self.group_steps), self.group_steps, key)]
            self._group = group
        return self._grouped[position]

    def _shuffled(self, positions: np.ndarray) -> np.ndarray:
        epochs, indices = np.divmod(positions, self.num_samples)
        samples = np.empty(len(positions), dtype=np.int64)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            chosen = epochs == epoch
            samples[chosen] = permute(indices[chosen], self.num_samples, hash_integers(self.seed, epoch, 0))
        return samples
