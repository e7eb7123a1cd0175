"""Prompts to be answered by the model itself, for reinforcement learning."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from lit_gpt.batch import Batch, StepBatch
from lit_gpt.data.loader import StepLoader
from lit_gpt.data.prompts import LongPrompts, PromptEncoder, StdlibPrompts
from lit_gpt.data.rows import RowSource, RowSplit
from lit_gpt.data.rows.order import SampleOrder
from lit_gpt.datamodules.rows import RowDataModule
from lit_gpt.errors import UserError


class PromptBatch(Batch, total=False):
    """Prompts of one rank in one optimizer step, or of an evaluation batch; plain data beside `Batch`'s tensors."""

    prompts: list[list[dict[str, Any]]]
    """For each group the prompts that it may be sampled for, in order of trial: `ids`, `messages`, `row`, `where`,
    `number` (of the row in its split)."""
    rollout: int
    """How often prompts have been sampled before."""
    update: int
    """Which optimizer step on these rollouts this is, from 0."""
    num_updates: int
    """Optimizer steps on the same rollouts."""


class PromptDataModule(RowDataModule):
    """Prompts, with all fields of their rows for the rewards.

    Rows have `prompt`, `question`, `messages` or `instruction`; whatever else they have (an `answer`) goes to the
    rewards as it is. `global_batch_size` counts prompts of a step; how many answers each gets, and how many of them
    are in one forward, the module says, so `micro_batch_size` has no meaning here.

    Args:
        max_prompt_tokens: Longer prompts are left out and counted, or an error (`long_rows`); null: half of
            `block_size`. The rest of the context is for answers.
        candidates: Prompts for each group of a step. With more than one, and the module's `dynamic_sampling`, the next
            is tried where all answers to one get the same reward (DAPO).
        updates_per_rollout: Optimizer steps on the same answers (the GRPO paper's mu); beyond the first the ratio to
            the policy that drew them is no longer 1, and clipping takes hold.
        long_rows: `drop` or `error`.
        kwargs: Arguments of `RowDataModule`.
    """

    def __init__(
        self,
        max_prompt_tokens: int | None = None,
        candidates: int = 1,
        updates_per_rollout: int = 1,
        long_rows: LongPrompts = "drop",
        **kwargs: Any,
    ) -> None:
        super().__init__(long_rows=long_rows, **kwargs)
        self.max_prompt_tokens = self.block_size // 2 if max_prompt_tokens is None else max_prompt_tokens
        if not 1 <= self.max_prompt_tokens < self.block_size:
            raise UserError(
                f"max_prompt_tokens is {self.max_prompt_tokens}; it must be at least 1 and below block_size "
                f"{self.block_size}, which prompt and answer share"
            )
        for name, value in (("candidates", candidates), ("updates_per_rollout", updates_per_rollout)):
            if value < 1:
                raise UserError(f"{name} is {value}; it must be at least 1")
        self._long_prompts: LongPrompts = long_rows
        self.candidates = candidates
        self.updates_per_rollout = updates_per_rollout

    def encoder(self) -> PromptEncoder:
        """Returns what renders a prompt."""
        return PromptEncoder(
            self.renderer,
            self.max_prompt_tokens,
            self._long_prompts,
            self.columns,
            self.system_prompt,
        )

    def train_dataloader(self) -> StepLoader:
        """Returns the resumable loader; an epoch meets every prompt once."""
        split = self.store.split("train")
        rank, world_size = self._ranks()
        size = self.global_batch_size * self.candidates
        order = SampleOrder(len(split), size, self.seed)
        share = self.global_batch_size // world_size
        steps = PromptSteps(
            split, order, self.candidates, self.updates_per_rollout, slice(rank * share, (rank + 1) * share)
        )
        identity = {
            "rows": split.fingerprint,
            "seed": self.seed,
            "global_batch_size": self.global_batch_size,
            "candidates": self.candidates,
            "updates_per_rollout": self.updates_per_rollout,
            **self._identity(),
        }
        num_steps = max(1, len(split) // size) * self.updates_per_rollout
        return StepLoader(steps, num_steps, self.global_batch_size, identity, self.num_workers)

    def _evaluation_loader(self, name: Any) -> Any:
        split = self.store.split(name)
        rank, world_size = self._ranks()
        return PromptEvaluationLoader(split, self._eval_batch_size(), rank, world_size) if len(split) else []


class StdlibPromptDataModule(PromptDataModule):
    """Signature and docstring of a function to write, from this machine's Python standard library.

    Held out are the files that `StdlibDataModule` holds out.

    Args:
        max_lines: Functions with more lines are left out.
        val_fraction: Share of the files held out for validation.
        test_fraction: Share of the files held out for the test.
        kwargs: Arguments of `PromptDataModule`.
    """

    def __init__(
        self, max_lines: int = 20, val_fraction: float = 0.05, test_fraction: float = 0.05, **kwargs: Any
    ) -> None:
        super().__init__(val_fraction=val_fraction, test_fraction=test_fraction, **kwargs)
        self.max_lines = max_lines

    def row_sources(self) -> Sequence[RowSource]:
        """Returns the functions of the standard library."""
        return [StdlibPrompts(max_lines=self.max_lines)]


class PromptSteps(Dataset[StepBatch]):
    """Item s: this rank's prompts of optimizer step s, the same for all updates on one rollout.

    Args:
        split: The rows.
        order: Says which rows a rollout has, candidates side by side.
        candidates: For each group.
        num_updates: Optimizer steps on one rollout.
        share: Which groups of a step are this rank's.
    """

    def __init__(self, split: RowSplit, order: SampleOrder, candidates: int, num_updates: int, share: slice) -> None:
        self.split = split
        self.order = order
        self.candidates = candidates
        self.num_updates = num_updates
        self.share = share

    def __getitem__(self, step: int) -> StepBatch:
        rollout, update = divmod(step, self.num_updates)
        groups = self.order.step(rollout).reshape(-1, self.candidates)[self.share]
        return [prompt_batch(self.split, groups, rollout, update, self.num_updates)]


class PromptEvaluationLoader:
    """Every prompt once; batch j goes to rank j mod W, and all ranks have as many, the last perhaps empty.

    Args:
        split: The rows.
        batch_size: Prompts of a batch.
        rank: This process's place among those that see different data.
        world_size: W, their number.
    """

    def __init__(self, split: RowSplit, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self.split = split
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        """Batches of each rank."""
        return -(-len(self.split) // (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[Batch]:
        rows = np.arange(len(self.split), dtype=np.int64)
        for index in range(len(self)):
            first = (index * self.world_size + self.rank) * self.batch_size
            yield prompt_batch(self.split, rows[first : first + self.batch_size, None])


def prompt_batch(
    split: RowSplit, groups: np.ndarray, rollout: int = 0, update: int = 0, num_updates: int = 1
) -> PromptBatch:
    """Makes a batch of (groups, candidates) rows; its tensors are the first candidates, padded on the right."""
    prompts = [[_prompt(split, row) for row in candidates] for candidates in groups.tolist()]
    first = [candidates[0]["ids"] for candidates in prompts]
    ids = torch.zeros(len(first), max(map(len, first), default=0), dtype=torch.int64)
    for row, prompt in zip(ids, first, strict=True):
        row[: len(prompt)] = torch.tensor(prompt)
    return PromptBatch(
        input_ids=ids,
        sample_ids=torch.from_numpy(groups[:, 0].copy()),
        prompts=prompts,
        rollout=rollout,
        update=update,
        num_updates=num_updates,
    )


def _prompt(split: RowSplit, row: int) -> dict[str, Any]:
    kept = json.loads(split.attached(row))
    return {"ids": split.sequence(row)[0].tolist(), "number": row, "where": split.where(row), **kept}
