"""Training loader: optimizer step s takes samples [s G, (s + 1) G), independent of ranks, workers and restarts.

It has three stages:

1. A `WindowOrder` maps sample p to its T + 1 tokens: a pure function of data, seed and p. `Mixture` is the order over
   prepared corpora: `MixtureSampler` (mixture.py) determines the corpus of sample p and the number of earlier samples
   from that corpus, and the corpus's `WindowSampler` (sampler.py) the window. A single corpus is a mixture of one.
   `StreamOrder` (streaming/blocks.py) is the order over text that is read during training.
2. A `StepSource` assembles optimizer steps: item s is this rank's contiguous share of the step's G samples, as a list
   of micro-batches. `WindowSteps` builds them from windows; those for separate rows and prompts are in `rows/loader.py`
   and `datamodules/prompts.py`.
3. `StepLoader` iterates over the steps, in this process or with workers, and advances its state before it yields an
   item: a checkpoint saved while the Trainer processes a step already counts that step, so that a resumed run starts
   with the next one. The state is the number of samples yielded, which is the same on all ranks, and what their order
   depends on.

Shapes: G samples per optimizer step over all ranks, T tokens per window (read with one more, the last target).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from lit_gpt.batch import StepBatch
from lit_gpt.data.batches import BatchBuilder
from lit_gpt.data.mixture import MixtureSampler, Phase
from lit_gpt.data.provenance import Piece, trace_window
from lit_gpt.data.sampler import WindowSampler, hash_integers
from lit_gpt.data.shards import TokenSplit
from lit_gpt.errors import UserError

BLOCK_STEPS = 64  # locate windows for this many steps at once; one by one it costs as much as the batch


# ------------------------------------------------------------------ from samples to windows


class WindowOrder(ABC):
    """Maps each training sample to a window of a token stream: a pure function of the sample index.

    Attributes:
        block_size: T, window length in tokens.
        epoch_samples: Samples per epoch; None if the data does not determine it.
        num_samples: Number of samples until the data is exhausted; None: unlimited.
        numbers_corpora: Whether batches contain `corpus_ids`, the corpus index of each row.
    """

    block_size: int
    epoch_samples: int | None = None
    num_samples: int | None = None
    numbers_corpora: bool = False

    @abstractmethod
    def locate(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return, for each sample, the part of the data that it is from and the start of its window in that part.

        Args:
            samples: (n,) int64 sample indices, ascending.

        Returns:
            (n,) int64 index of the part (a corpus, a block of a stream) and (n,) int64 start.
        """

    @abstractmethod
    def read(self, part: int, start: int, length: int) -> np.ndarray:
        """Return `length` tokens of a part, starting at `start`."""

    @abstractmethod
    def trace(self, samples: np.ndarray) -> list[list[Piece]]:
        """Return, for each sample, the documents in its T + 1 tokens."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return what the order depends on, by option name; a checkpoint with other values is rejected."""

    @abstractmethod
    def state(self, position: int) -> dict[str, Any]:
        """Return what a checkpoint saves in addition to `identity` after `position` samples."""

    @abstractmethod
    def check(self, state: Mapping[str, Any]) -> None:
        """Raise if a checkpoint does not fit for a reason that deserves a more specific message than a changed option.

        Raises:
            UserError: if the order would change.
        """

    @abstractmethod
    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore a checkpoint whose `identity` equals that of this order.

        Raises:
            UserError: if the order of the samples before the checkpoint's position would differ.
        """


class Mixture(WindowOrder):
    """Token streams of one or several corpora, and the order in which windows are sampled from them.

    Args:
        names: Names of the corpora; None: a single corpus without a name, whose windows are chosen by `seed` itself,
            whose batches have no `corpus_ids` and whose checkpoints contain no weights.
        splits: Token streams of the corpora.
        sampler: Determines the corpus of a sample; None for a single corpus.
        block_size: T, window length in tokens.
        seed: Seed of the order of each corpus's windows.

    Raises:
        UserError: if a stream is shorter than a window.
    """

    def __init__(
        self,
        names: Sequence[str] | None,
        splits: Sequence[TokenSplit],
        sampler: MixtureSampler | None,
        block_size: int,
        seed: int,
    ) -> None:
        self.numbers_corpora = names is not None
        self.names = [""] if names is None else list(names)
        self.splits = list(splits)
        self.sampler = MixtureSampler([Phase(0, (1.0,))], [None]) if sampler is None else sampler
        self.block_size = block_size
        self.seed = seed
        self.num_samples = self.sampler.num_samples
        if names is None:
            self.windows = [WindowSampler(split.num_tokens, block_size, seed) for split in splits]
        else:
            self.windows = corpus_samplers(names, splits, block_size, seed)
        # An epoch has as many windows as all corpora together, or as many as their epoch caps allow.
        self.epoch_samples = sum(self.num_windows) if self.num_samples is None else self.num_samples

    @property
    def num_windows(self) -> list[int]:
        """Number of windows of each corpus."""
        return [sampler.num_windows for sampler in self.windows]

    def locate(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the corpus and the start of each sample's window: (n,) int64 each; `samples` is ascending."""
        corpora, draws = self.sampler.assign(samples)
        starts = np.empty(len(samples), dtype=np.int64)
        for corpus, sampler in enumerate(self.windows):
            chosen = corpora == corpus
            starts[chosen] = sampler.starts(draws[chosen])
        return corpora, starts

    def read(self, part: int, start: int, length: int) -> np.ndarray:
        """Return `length` tokens of corpus `part`, starting at `start`."""
        return self.splits[part].read(start, length)

    def trace(self, samples: np.ndarray) -> list[list[Piece]]:
        """Return, for each sample, the documents in its T + 1 tokens."""
        located = zip(*(part.tolist() for part in self.locate(samples)), strict=True)
        return [
            trace_window(self.splits[corpus], start, self.block_size + 1, self.names[corpus])
            for corpus, start in located
        ]

    def drawn(self, num_samples: int) -> dict[str, int]:
        """Return the number of samples from each corpus among the first `num_samples`."""
        return dict(zip(self.names, self.sampler.drawn(num_samples), strict=True))

    def wanted(self, num_samples: int) -> dict[str, float]:
        """Return the number of samples per corpus that the weights request among the first `num_samples`."""
        return dict(zip(self.names, self.sampler.wanted(num_samples), strict=True))

    def identity(self) -> dict[str, Any]:
        """Return corpora, seed and block size."""
        data: dict[str, Any] = {"corpus": self.splits[0].fingerprint}
        if self.numbers_corpora:
            # A list, because the order of the corpora determines which samples and windows each of them gets.
            data = {"corpora": [[name, split.fingerprint] for name, split in zip(self.names, self.splits, strict=True)]}
        return data | {"seed": self.seed, "block_size": self.block_size}

    def state(self, position: int) -> dict[str, Any]:
        """Return the weights that were in effect up to `position`."""
        return {"weights": self.sampler.past(position)} if self.numbers_corpora else {}

    def check(self, state: Mapping[str, Any]) -> None:
        """Raise a `UserError` if the checkpoint has the same corpora in another order."""
        saved, own = [list(pair) for pair in state.get("corpora", [])], self.identity().get("corpora", [])
        if saved != own and sorted(saved) == sorted(own):
            raise UserError(
                f"the checkpoint was trained with the corpora in the order {_names(saved)}, this run has "
                f"{_names(own)}: other windows would be sampled; restore that order"
            )

    def restore(self, state: Mapping[str, Any]) -> None:
        """Raise a `UserError` if the weights up to the saved position differ; later ones may differ."""
        saved = [list(segment) for segment in state.get("weights", [])]
        own = self.state(state["position"]).get("weights", [])
        if saved != own:
            size = state["global_batch_size"]
            raise UserError(
                f"the checkpoint was trained with other weights of the mixture: {self._weights_text(saved, size)}; "
                f"this run would have had {self._weights_text(own, size)}. Restore the weights and the schedule as far "
                "as the run has come (later changes may differ; write `at` in steps if the run has another length "
                "now), or start a new run from the weights (init_from)"
            )

    def _weights_text(self, segments: Sequence[Sequence[float]], global_batch_size: int) -> str:
        return "; ".join(
            f"from step {int(start) // global_batch_size} "
            + ", ".join(f"{name} {weight:.4g}" for name, weight in zip(self.names, weights, strict=True))
            for start, *weights in segments
        )


def corpus_samplers(
    names: Sequence[str], splits: Sequence[TokenSplit], block_size: int, seed: int
) -> list[WindowSampler]:
    """Return the samplers of the corpora, each with a different seed.

    Raises:
        UserError: naming the corpus that is shorter than a window.
    """
    samplers = []
    for number, (name, split) in enumerate(zip(names, splits, strict=True)):
        try:
            samplers.append(WindowSampler(split.num_tokens, block_size, hash_integers(seed, number)))
        except UserError as error:
            raise UserError(f"corpus {name}: {error}") from None
    return samplers


def _names(corpora: Sequence[Sequence[str]]) -> str:
    return ", ".join(name for name, _ in corpora)


# ------------------------------------------------------------------ optimizer steps


class StepSource(Dataset[StepBatch], ABC):
    """A dataset of optimizer steps: item s is this rank's micro-batches of step s, a pure function of s.

    Args:
        global_batch_size: G, samples per step over all ranks.
        num_steps: Steps per epoch.
        end: Number of steps until the data is exhausted; None: unlimited.
    """

    def __init__(self, global_batch_size: int, num_steps: int, end: int | None = None) -> None:
        self.global_batch_size = global_batch_size
        self.num_steps = num_steps
        self.end = end

    @abstractmethod
    def __getitem__(self, step: int) -> StepBatch:
        """Return this rank's micro-batches of a step, counted from 0."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return what the order depends on, by option name; a checkpoint with other values is rejected."""

    def state(self, position: int) -> dict[str, Any]:
        """Return what a checkpoint saves in addition to `identity` after `position` samples."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Check that a checkpoint was made with the order of this run, and restore its other state.

        Raises:
            UserError: if an option has another value than in the saved run.
        """
        for key, own in self.identity().items():
            if key not in state and own is not None:
                raise UserError(
                    f"the checkpoint records no {key}: another kind of DataModule trained it; resume from a "
                    "checkpoint of this run, or start a new run from the weights (init_from)"
                )
            if state.get(key) != own:
                raise UserError(
                    f"the checkpoint was trained with {key} {state.get(key)}, this run has {own}: its order of "
                    "samples would change; restore that value, or start a new run from the weights (init_from)"
                )


class WindowSteps(StepSource):
    """Optimizer steps made of token windows.

    Args:
        order: Maps samples to windows.
        builder: Batch builder.
        global_batch_size: G, windows per step over all ranks.
        micro_batch_size: Windows per micro-batch; divides the rank's share.
        rank: Data-parallel rank of this process.
        world_size: Number of data-parallel ranks; divides G.
        num_steps: Steps per epoch; None: as many as the order's epoch has, at least one.

    Raises:
        UserError: if the sizes do not divide, or the data provide less than one step.
    """

    def __init__(
        self,
        order: WindowOrder,
        builder: BatchBuilder,
        global_batch_size: int,
        micro_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        num_steps: int | None = None,
    ) -> None:
        check_batch_sizes(global_batch_size, micro_batch_size, world_size)
        end = None if order.num_samples is None else order.num_samples // global_batch_size
        if end == 0:
            raise UserError(
                f"max_epochs of the mixture leave {order.num_samples} windows, fewer than one step of "
                f"global_batch_size {global_batch_size}; raise them"
            )
        if num_steps is None:
            assert order.epoch_samples is not None, "an order without epochs needs num_steps"
            num_steps = max(1, order.epoch_samples // global_batch_size)
        super().__init__(global_batch_size, num_steps, end)
        self.order = order
        self.builder = builder
        self.micro_batch_size = micro_batch_size
        self.share = global_batch_size // world_size
        self.rank = rank
        self._block = -1  # index of the located block of steps; its windows are in the next two, (steps, share)
        self._parts = self._starts = np.empty((0, 0), dtype=np.int64)

    def __getitem__(self, step: int) -> StepBatch:
        parts, starts = self._locate(step)
        samples = self._samples(step, 1)[0]
        length, read = self.order.block_size + 1, self.order.read
        rows = np.empty((self.share, length), dtype=np.int64)
        for row, part, start in zip(rows, parts.tolist(), starts.tolist(), strict=True):
            row[:] = read(part, start, length)
        size = self.micro_batch_size
        batches = [self.builder(rows[i : i + size], samples[i : i + size]) for i in range(0, self.share, size)]
        if self.order.numbers_corpora:
            corpora = torch.from_numpy(parts.copy())
            for number, batch in enumerate(batches):
                batch["corpus_ids"] = corpora[number * size : (number + 1) * size]
        return batches

    def _samples(self, step: int, num_steps: int) -> np.ndarray:
        """Return the (num_steps, share) ascending indices of this rank's samples."""
        first = np.arange(step, step + num_steps, dtype=np.int64) * self.global_batch_size + self.rank * self.share
        return first[:, None] + np.arange(self.share, dtype=np.int64)

    def _locate(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the parts and starts of this rank's windows in a step: (share,) int64 each."""
        block, position = divmod(step, BLOCK_STEPS)
        if block != self._block:
            first = block * BLOCK_STEPS
            steps = BLOCK_STEPS if self.end is None else min(BLOCK_STEPS, self.end - first)
            parts, starts = self.order.locate(self._samples(first, steps).reshape(-1))
            self._parts, self._starts = parts.reshape(steps, self.share), starts.reshape(steps, self.share)
            self._block = block
        return self._parts[position], self._starts[position]

    def identity(self) -> dict[str, Any]:
        """Return the order's identity and the global batch size."""
        return self.order.identity() | {"global_batch_size": self.global_batch_size}

    def state(self, position: int) -> dict[str, Any]:
        """Return the order's state at `position`."""
        return self.order.state(position)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Check a checkpoint against the order of this run and restore it."""
        self.order.check(state)
        super().restore(state)
        self.order.restore(state)


def check_batch_sizes(global_batch_size: int, micro_batch_size: int, world_size: int) -> None:
    """Check that the batch sizes divide.

    Raises:
        UserError: if `global_batch_size` is not a multiple of `world_size`, or the share of a rank not a multiple of
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
            f"devices processes per step; set it to {' or '.join(map(str, nearest))}, or to auto"
        )


# ------------------------------------------------------------------ the loader


class StepLoader:
    """A sized, resumable loader: each `iter` continues where the last one stopped.

    Both an epoch and a pass have `len` steps, wherever the pass starts. The Trainer ends a pass earlier itself: at
    `limit_train_batches`, or in the epoch in which it was resumed, whose finished steps it counts. If this loader
    computed the end of a pass from the position instead, an epoch whose length differs from `len` would be cut short.

    Args:
        steps: Step source; item s is this rank's share of optimizer step s.
        num_workers: Worker processes that prefetch steps; 0 reads in the main process, which is fastest unless
            assembling is slow.
        pin_memory: Whether to put batches into pinned memory.
        repeat_steps: Repeat the first steps, this many, to check whether a model can overfit them; None disables it.
    """

    def __init__(
        self, steps: StepSource, num_workers: int = 0, pin_memory: bool = False, repeat_steps: int | None = None
    ) -> None:
        self.steps = steps
        self.global_batch_size = steps.global_batch_size
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self.repeat_steps = repeat_steps
        self._position = 0  # samples yielded

    def __len__(self) -> int:
        return self.steps.num_steps

    def __iter__(self) -> Iterator[StepBatch]:
        first, end = self._position // self.global_batch_size, self.steps.end
        last = first + len(self)
        if end is not None and self.repeat_steps is None:
            if first >= end:
                raise UserError(
                    f"the mixture is used up after {end} steps: every corpus has reached its max_epochs; raise them, "
                    "or let the run end there"
                )
            last = min(last, end)
        for step, batch in zip(range(first, last), self._read(range(first, last)), strict=True):
            self._position = (step + 1) * self.global_batch_size
            yield batch

    def _read(self, steps: range) -> Iterator[StepBatch]:
        repeat = self.repeat_steps
        indices: Iterable[int] = steps if repeat is None else (step % repeat for step in steps)
        if self.num_workers == 0 and not self.pin_memory:
            return map(self.steps.__getitem__, indices)
        return iter(
            DataLoader(
                self.steps,
                batch_size=None,
                sampler=indices,
                num_workers=self.num_workers,
                pin_memory=self.pin_memory,
                # A separate generator: the loader must not consume random numbers of the global one, which dropout
                # uses.
                generator=torch.Generator(),
            )
        )

    def seek(self, step: int) -> None:
        """Continue with optimizer step `step`, counted from 0."""
        self._position = step * self.global_batch_size

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the global order, and what that order depends on."""
        return {"position": self._position, **self.steps.identity(), **self.steps.state(self._position)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore a saved position.

        Raises:
            UserError: if seed, data, block size or global batch size differ from those of the saved run.
        """
        self.steps.restore(state_dict)
        self._position = state_dict["position"]
