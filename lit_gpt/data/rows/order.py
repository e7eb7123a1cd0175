"""Which samples are in optimizer step s: a pure function of (seed, s).

A sample is what makes one row of a batch: a bin of packed rows, or a single row. Sample p of the endless stream
belongs to epoch p // N and is number perm(seed, epoch)(p mod N) of N, so that each epoch meets every one once. For
padding, rows of like length should meet in a step: the samples of `GROUP_STEPS` steps are sorted by length and dealt
out again, and the order of these steps is shuffled.
"""

import numpy as np

from lit_gpt.data.sampler import hash_integers, permute

GROUP_STEPS = 32
"""Steps whose samples are sorted together: with 32, padding is a few per cent and steps still differ at random. Never
more than an epoch's, and never those of two epochs, or copies of one row would meet in a step."""


class SampleOrder:
    """The stream of samples.

    Args:
        num_samples: N.
        global_batch_size: G, samples of a step.
        seed: Chooses the order.
        lengths: (N,) int64: group samples of like length; None: do not.
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
        """Returns (G,) int64: the samples of a step."""
        size = self.global_batch_size
        if self.lengths is None:
            return self._stream(np.arange(step * size, (step + 1) * size, dtype=np.int64))
        group, place = divmod(step, self.group_steps)
        if group != self._group:
            first = group * self.group_steps * size
            places = np.arange(first, first + self.group_steps * size, dtype=np.int64)
            samples = self._stream(places)
            # Where a group goes over into the next epoch, each epoch's share by itself.
            by_length = np.lexsort((-self.lengths[samples], places // self.num_samples))
            samples = samples[by_length].reshape(self.group_steps, size)
            key = hash_integers(self.seed, group, 2)
            self._grouped = samples[permute(np.arange(self.group_steps), self.group_steps, key)]
            self._group = group
        return self._grouped[place]

    def _stream(self, positions: np.ndarray) -> np.ndarray:
        epochs, places = np.divmod(positions, self.num_samples)
        samples = np.empty(len(positions), dtype=np.int64)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            chosen = epochs == epoch
            samples[chosen] = permute(places[chosen], self.num_samples, hash_integers(self.seed, epoch, 0))
        return samples
