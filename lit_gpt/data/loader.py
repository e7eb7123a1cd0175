"""The training loader: optimizer step s takes samples [s G, (s + 1) G), whatever the ranks, workers and restarts.

In stages: the sampler says where samples begin; each rank reads its contiguous share of a step's G samples, as
micro-batches; a step's micro-batches are one item. The loader's state is the number of samples handed out, the same on
all ranks, and moves on before an item is yielded: what the Trainer saves while it works on a step already counts that
step, so that a resumed run begins with the next one.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from lit_gpt.batch import StepBatch
from lit_gpt.data.batches import BatchBuilder
from lit_gpt.data.sampler import WindowSampler
from lit_gpt.data.shards import TokenSplit
from lit_gpt.errors import UserError

BLOCK_STEPS = 64  # starts are computed for so many steps at once; alone they cost as much as the batch


class StepDataset(Dataset[StepBatch], ABC):
    """Item s is this rank's share of optimizer step s; a subclass says which rows that is.

    Args:
        builder: Makes batches.
        block_size: T, tokens of a window.
        global_batch_size: G, sequences of a step over all ranks.
        micro_batch_size: Sequences of a micro-batch; divides the share.
        rank: Which share.
        world_size: Number of shares; divides G.
    """

    def __init__(
        self,
        builder: BatchBuilder,
        block_size: int,
        global_batch_size: int,
        micro_batch_size: int,
        rank: int,
        world_size: int,
    ) -> None:
        self.builder = builder
        self.block_size = block_size
        self.global_batch_size = global_batch_size
        self.micro_batch_size = micro_batch_size
        self.share = global_batch_size // world_size
        self.rank = rank

    @abstractmethod
    def rows(self, step: int, samples: np.ndarray) -> np.ndarray:
        """Returns (share, T + 1) int64 tokens of this rank's samples in a step.

        Args:
            step: The optimizer step, from 0.
            samples: (share,) int64 numbers of its samples, ascending.
        """

    def __getitem__(self, step: int) -> StepBatch:
        samples = self._samples(step, 1)[0]
        rows = self.rows(step, samples)
        size = self.micro_batch_size
        return [self.builder(rows[i : i + size], samples[i : i + size]) for i in range(0, self.share, size)]

    def _samples(self, step: int, num_steps: int) -> np.ndarray:
        """Returns (num_steps, share) numbers of this rank's samples, ascending."""
        first = np.arange(step, step + num_steps, dtype=np.int64) * self.global_batch_size + self.rank * self.share
        return first[:, None] + np.arange(self.share, dtype=np.int64)


class StepReader(StepDataset):
    """Steps from one token stream.

    Args:
        split: Token stream.
        sampler: Says where samples begin.
        builder: Makes batches.
        global_batch_size: G, sequences of a step over all ranks.
        micro_batch_size: Sequences of a micro-batch; divides the share.
        rank: Which share.
        world_size: Number of shares; divides G.
    """

    def __init__(
        self,
        split: TokenSplit,
        sampler: WindowSampler,
        builder: BatchBuilder,
        global_batch_size: int,
        micro_batch_size: int,
        rank: int,
        world_size: int,
    ) -> None:
        super().__init__(builder, sampler.block_size, global_batch_size, micro_batch_size, rank, world_size)
        self.split = split
        self.sampler = sampler
        self._block = -1
        self._starts = np.empty((0, 0), dtype=np.int64)

    def rows(self, step: int, samples: np.ndarray) -> np.ndarray:
        """Returns the windows that the sampler names."""
        block, place = divmod(step, BLOCK_STEPS)
        if block != self._block:
            starts = self.sampler.starts(self._samples(block * BLOCK_STEPS, BLOCK_STEPS).reshape(-1))
            self._starts = starts.reshape(BLOCK_STEPS, self.share)
            self._block = block
        length = self.block_size + 1
        rows = np.empty((self.share, length), dtype=np.int64)
        for row, start in zip(rows, self._starts[place].tolist(), strict=True):
            row[:] = self.split.read(start, length)
        return rows


class StepLoader:
    """Sized, resumable, endless in its epochs: each `iter` goes on where the last one stopped.

    An epoch is `len` steps; `iter` runs to the next multiple of `len`, so that a run resumed within an epoch finishes
    that one first.

    Args:
        steps: Item s is this rank's share of optimizer step s.
        num_steps: Steps of an epoch.
        global_batch_size: G, sequences of an optimizer step over all ranks.
        identity: What the order depends on, by the name that a user gives it: a checkpoint with other values is
            refused.
        num_workers: Processes that read ahead; 0 reads in this one, which is fastest unless assembling is dear.
        pin_memory: Put batches where a GPU fetches them faster.
    """

    def __init__(
        self,
        steps: Dataset[StepBatch],
        num_steps: int,
        global_batch_size: int,
        identity: dict[str, Any],
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self._steps = steps
        self._length = num_steps
        self._identity = identity
        self._position = 0
        self.global_batch_size = global_batch_size
        self.num_workers = num_workers
        self.pin_memory = pin_memory

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[StepBatch]:
        step = self._position // self.global_batch_size
        steps = range(step, (step // self._length + 1) * self._length)
        for step, batch in zip(steps, self._read(steps), strict=True):
            self._position = (step + 1) * self.global_batch_size
            yield batch

    def _read(self, steps: range) -> Iterator[StepBatch]:
        if self.num_workers == 0 and not self.pin_memory:
            return map(self._steps.__getitem__, steps)
        return iter(
            DataLoader(
                self._steps,
                batch_size=None,
                sampler=steps,
                num_workers=self.num_workers,
                pin_memory=self.pin_memory,
                # Its own generator: the loader must not draw from the global one, which dropout uses.
                generator=torch.Generator(),
            )
        )

    def seek(self, step: int) -> None:
        """Makes optimizer step `step`, counted from 0, the next one."""
        self._position = step * self.global_batch_size

    def state_dict(self) -> dict[str, Any]:
        """Returns the position in the global order, and what that order depends on."""
        return {"position": self._position, **self._identity}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes to a saved position.

        Raises:
            UserError: if seed, corpus, block size or global batch size are not those of the saved run.
        """
        for key, own in self._identity.items():
            if state_dict.get(key) != own:
                raise UserError(
                    f"the checkpoint was trained with {key} {state_dict.get(key)}, this run has {own}: its order of "
                    "samples would change; restore that value, or start a new run from the weights (init_from)"
                )
        self._position = state_dict["position"]


class TrainingLoader(StepLoader):
    """Optimizer steps from one token stream; an epoch is max(1, N // G) of them, for N windows.

    Args:
        split: Token stream of the train split.
        builder: Makes batches.
        block_size: T, tokens of a window.
        global_batch_size: G, sequences of an optimizer step over all ranks.
        micro_batch_size: Sequences of a micro-batch.
        seed: Chooses the order of the windows.
        rank: This process's place among those that see different data.
        world_size: Number of these processes.
        num_workers: Processes that read ahead; 0 reads in this one, which is fastest unless assembling is dear.
        pin_memory: Put batches where a GPU fetches them faster.

    Raises:
        UserError: if the sizes do not divide or the stream is shorter than a window.
    """

    def __init__(
        self,
        split: TokenSplit,
        builder: BatchBuilder,
        block_size: int,
        global_batch_size: int,
        micro_batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        check_batch_sizes(global_batch_size, micro_batch_size, world_size)
        sampler = WindowSampler(split.num_tokens, block_size, seed)
        steps = StepReader(split, sampler, builder, global_batch_size, micro_batch_size, rank, world_size)
        num_steps = max(1, sampler.num_windows // global_batch_size)
        identity = {
            "corpus": split.fingerprint,
            "seed": seed,
            "block_size": block_size,
            "global_batch_size": global_batch_size,
        }
        super().__init__(steps, num_steps, global_batch_size, identity, num_workers, pin_memory)


def check_batch_sizes(global_batch_size: int, micro_batch_size: int, world_size: int) -> None:
    """Refuses sizes that do not divide.

    Raises:
        UserError: if `global_batch_size` is no multiple of `world_size`, or the share of each rank no multiple of
            `micro_batch_size`.
    """
    if global_batch_size % world_size:
        below = global_batch_size // world_size * world_size
        choice = f"{below} or {below + world_size}" if below else f"{world_size}"
        raise UserError(
            f"global_batch_size {global_batch_size} cannot be shared evenly by {world_size} devices; set it to {choice}"
        )
    share = global_batch_size // world_size
    if share % micro_batch_size:
        fits = [size for size in range(1, share + 1) if share % size == 0]
        nearest = sorted(sorted(fits, key=lambda size: abs(size - micro_batch_size))[:2])
        raise UserError(
            f"micro_batch_size {micro_batch_size} does not divide the {share} sequences that each of {world_size} "
            f"devices takes of a step; set it to {' or '.join(map(str, nearest))}, or to auto"
        )
