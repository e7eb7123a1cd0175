"""Loaders over several corpora: optimizer steps that mix them, and evaluation that visits them in turns."""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch

from lit_gpt.batch import Batch, StepBatch
from lit_gpt.data.batches import BatchBuilder
from lit_gpt.data.evaluation_loader import OrderedLoader
from lit_gpt.data.loader import BLOCK_STEPS, StepDataset, StepLoader, check_batch_sizes
from lit_gpt.data.mixture import MixtureSampler
from lit_gpt.data.sampler import WindowSampler, hash_integers
from lit_gpt.data.shards import TokenSplit
from lit_gpt.errors import UserError


class Mixture:
    """The train splits of several corpora and the order in which they are drawn from.

    Args:
        names: Names of the corpora.
        splits: Their token streams.
        sampler: Says which corpus a sample is from.
        block_size: T, tokens of a window.
        seed: Chooses the order of each corpus's windows.

    Raises:
        UserError: if a stream is shorter than a window.
    """

    def __init__(
        self,
        names: Sequence[str],
        splits: Sequence[TokenSplit],
        sampler: MixtureSampler,
        block_size: int,
        seed: int,
    ) -> None:
        self.names = list(names)
        self.splits = list(splits)
        self.sampler = sampler
        self.block_size = block_size
        self.seed = seed
        self.windows = corpus_samplers(names, splits, block_size, seed)

    @property
    def num_windows(self) -> list[int]:
        """Windows of each corpus."""
        return [sampler.num_windows for sampler in self.windows]

    def locate(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns corpus and start of each sample's window: two of (n,) int64; `samples` is (n,) int64, ascending."""
        corpora, draws = self.sampler.assign(samples)
        starts = np.empty(len(samples), dtype=np.int64)
        for corpus, sampler in enumerate(self.windows):
            chosen = corpora == corpus
            starts[chosen] = sampler.starts(draws[chosen])
        return corpora, starts

    def drawn(self, num_samples: int) -> dict[str, int]:
        """Returns the draws of each corpus in the first samples."""
        return dict(zip(self.names, self.sampler.drawn(num_samples), strict=True))

    def wanted(self, num_samples: int) -> dict[str, float]:
        """Returns the draws of each corpus that the weights ask for in the first samples."""
        return dict(zip(self.names, self.sampler.wanted(num_samples), strict=True))


def corpus_samplers(
    names: Sequence[str], splits: Sequence[TokenSplit], block_size: int, seed: int
) -> list[WindowSampler]:
    """Returns the sampler of each corpus, all with orders of their own.

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


class MixtureSteps(StepDataset):
    """Steps from a mixture; their batches say in `corpus_ids` which corpus a row is from.

    Args:
        mixture: Corpora and order.
        builder: Makes batches.
        global_batch_size: G, sequences of a step over all ranks.
        micro_batch_size: Sequences of a micro-batch; divides the share.
        rank: Which share.
        world_size: Number of shares; divides G.
    """

    def __init__(
        self,
        mixture: Mixture,
        builder: BatchBuilder,
        global_batch_size: int,
        micro_batch_size: int,
        rank: int,
        world_size: int,
    ) -> None:
        super().__init__(builder, mixture.block_size, global_batch_size, micro_batch_size, rank, world_size)
        self.mixture = mixture
        self._block = -1
        self._corpora = self._starts = np.empty((0, 0), dtype=np.int64)

    def rows(self, step: int, samples: np.ndarray) -> np.ndarray:
        """Returns the windows that the mixture names."""
        place = self._locate(step)
        length = self.block_size + 1
        rows = np.empty((self.share, length), dtype=np.int64)
        places = zip(rows, self._corpora[place].tolist(), self._starts[place].tolist(), strict=True)
        for row, corpus, start in places:
            row[:] = self.mixture.splits[corpus].read(start, length)
        return rows

    def __getitem__(self, step: int) -> StepBatch:
        batches = super().__getitem__(step)
        corpora = torch.from_numpy(self._corpora[self._locate(step)].copy())
        for number, batch in enumerate(batches):
            first = number * self.micro_batch_size
            batch["corpus_ids"] = corpora[first : first + self.micro_batch_size]
        return batches

    def _locate(self, step: int) -> int:
        """Makes sure that the block of steps with this one is known; returns the step's place in it."""
        block, place = divmod(step, BLOCK_STEPS)
        if block != self._block:
            steps = BLOCK_STEPS
            if self.mixture.sampler.num_samples is not None:  # the mixture may end within the block
                steps = min(steps, self.mixture.sampler.num_samples // self.global_batch_size - block * BLOCK_STEPS)
            samples = self._samples(block * BLOCK_STEPS, steps).reshape(-1)
            corpora, starts = self.mixture.locate(samples)
            self._corpora, self._starts = corpora.reshape(steps, self.share), starts.reshape(steps, self.share)
            self._block = block
        return place


class MixtureLoader(StepLoader):
    """Optimizer steps from a mixture. An epoch is as many windows as all corpora have, or all that the caps allow.

    Args:
        mixture: Corpora and order.
        builder: Makes batches.
        global_batch_size: G, sequences of an optimizer step over all ranks.
        micro_batch_size: Sequences of a micro-batch.
        rank: This process's place among those that see different data.
        world_size: Number of these processes.
        num_workers: Processes that read ahead.
        pin_memory: Put batches where a GPU fetches them faster.

    Raises:
        UserError: if the sizes do not divide, or the caps allow less than a step.
    """

    def __init__(
        self,
        mixture: Mixture,
        builder: BatchBuilder,
        global_batch_size: int,
        micro_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        check_batch_sizes(global_batch_size, micro_batch_size, world_size)
        self.mixture = mixture
        end = mixture.sampler.num_samples
        num_steps = max(1, sum(mixture.num_windows) // global_batch_size) if end is None else end // global_batch_size
        if num_steps == 0:
            raise UserError(f"max_epochs of the mixture leave {end} windows, fewer than one step; raise them")
        self.last_step = None if end is None else num_steps
        identity = {
            # A list, because their sequence counts: it decides which draws and which window orders each of them gets.
            "corpora": [[name, split.fingerprint] for name, split in zip(mixture.names, mixture.splits, strict=True)],
            "seed": mixture.seed,
            "block_size": mixture.block_size,
            "global_batch_size": global_batch_size,
        }
        steps = MixtureSteps(mixture, builder, global_batch_size, micro_batch_size, rank, world_size)
        super().__init__(steps, num_steps, global_batch_size, identity, num_workers, pin_memory)

    def __iter__(self) -> Iterator[StepBatch]:
        if self.last_step is not None and self._position // self.global_batch_size >= self.last_step:
            raise UserError(
                f"the mixture is used up after {self.last_step} steps: every corpus has reached its max_epochs; raise "
                "them, or let the run end there"
            )
        yield from super().__iter__()

    def state_dict(self) -> dict[str, Any]:
        """Returns the position, what the order depends on, and the weights that were in force up to there."""
        return super().state_dict() | {"weights": self.mixture.sampler.past(self._position)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes to a saved position. Weights may differ from that position on, not before it.

        Raises:
            UserError: if the order up to there would have been another.
        """
        saved_corpora = [list(pair) for pair in state_dict.get("corpora", [])]
        own_corpora = self._identity["corpora"]
        if saved_corpora != own_corpora and sorted(saved_corpora) == sorted(own_corpora):
            raise UserError(
                f"the checkpoint was trained with the corpora in the order {_listed(saved_corpora)}, this run has "
                f"{_listed(own_corpora)}: other windows would be drawn; restore that order"
            )
        super().load_state_dict(state_dict)
        now = self.mixture.sampler.past(self._position)
        for saved, own in zip(state_dict["weights"], now, strict=False):
            if list(saved) != own:
                break
        else:
            if len(now) == len(state_dict["weights"]):
                return
        raise UserError(
            "the checkpoint was trained with other weights of the mixture: "
            f"{self._told(state_dict['weights'])}; this run would have had {self._told(now)}. Restore the weights and "
            "the schedule as far as the run has come (later changes may differ; write `at` in steps if the run has "
            "another length now), or start a new run from the weights (init_from)"
        )

    def _told(self, segments: Sequence[Sequence[float]]) -> str:
        return "; ".join(
            f"from step {int(start) // self.global_batch_size} "
            + ", ".join(f"{name} {weight:.4g}" for name, weight in zip(self.mixture.names, weights, strict=True))
            for start, *weights in segments
        )


def _listed(corpora: Sequence[Sequence[str]]) -> str:
    return ", ".join(name for name, _ in corpora)


class AlternatingLoader:
    """Evaluation loaders of several corpora in turns; each batch is of one of them and names it in `corpus`.

    In turns, and not one after the other, so that a loop that stops early (`limit_val_batches`) has met them all.

    Args:
        loaders: Loader of each corpus, by name.
    """

    def __init__(self, loaders: dict[str, OrderedLoader]) -> None:
        self.loaders = loaders

    def __len__(self) -> int:
        return sum(map(len, self.loaders.values()))

    def __iter__(self) -> Iterator[Batch]:
        rest = [(name, iter(loader)) for name, loader in self.loaders.items()]
        sizes = [loader.split.num_documents for loader in self.loaders.values()]
        first_document = dict(zip(self.loaders, accumulate(sizes, initial=0), strict=False))
        while rest:
            for name, batches in list(rest):
                batch = next(batches, None)
                if batch is None:
                    rest = [pair for pair in rest if pair[0] != name]
                    continue
                batch["corpus"] = name
                fields: dict[str, Any] = batch  # type: ignore[assignment]
                if "document_index" in fields:  # counted through all corpora
                    index = fields["document_index"]
                    fields["document_index"] = torch.where(index >= 0, index + first_document[name], index)
                    fields["sources"] = [f"{name}/{source}" if source else "" for source in fields["sources"]]
                yield batch
