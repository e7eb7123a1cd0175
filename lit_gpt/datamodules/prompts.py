"""DataModules of prompts that the model itself completes, for reinforcement learning."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from lit_gpt.batch import Batch, StepBatch
from lit_gpt.checks import check_at_least, check_between
from lit_gpt.data.evaluation_loader import OrderedLoader
from lit_gpt.data.loader import StepSource
from lit_gpt.data.prompts import LongPrompts, PromptEncoder, StdlibPrompts
from lit_gpt.data.records import RecordSource, SplitName
from lit_gpt.data.rows import RowSplit
from lit_gpt.data.sampler import RowSampler
from lit_gpt.data_info import DataInfo
from lit_gpt.datamodules.rows import RowDataModule


class PromptBatch(Batch, total=False):
    """Prompts of one rank for one optimizer step, or of an evaluation batch, as plain Python values."""

    prompts: list[list[dict[str, Any]]]
    """Candidate prompts for each group, in the order in which they are tried: `ids`, `messages`, `row`, `where` and
    `number` (the index of the row in its split)."""
    rollout: int
    """Index of the current rollout, from 0."""
    update: int
    """Index of the optimizer step on the current rollout, from 0."""
    num_updates: int
    """Optimizer steps per rollout."""


class PromptDataModule(RowDataModule):
    """Prompts, together with all fields of their rows for the reward functions.

    Rows have `prompt`, `question`, `messages` or `instruction`; all other fields (such as `answer`) are passed to the
    rewards unchanged. `global_batch_size` counts prompts per step. The number of completions per prompt and of
    completions in one forward pass are settings of the module, so `micro_batch_size` is ignored here.

    Args:
        max_prompt_tokens: Maximum prompt length in tokens; longer prompts are left out and counted, or an error (see
            `long_rows`). Null: half of `block_size`. The rest of the context is for completions.
        candidates: Candidate prompts per group and step. With more than one, and with the module's `dynamic_sampling`,
            the next one is tried if all completions of a prompt get the same reward (DAPO).
        updates_per_rollout: Optimizer steps on the same completions (the GRPO paper's mu). After the first one, the
            ratio to the policy that sampled them is no longer 1 and clipping takes effect.
        long_rows: What to do with a prompt longer than `max_prompt_tokens`: `drop` or `error`.
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
        remedy = f"prompt and answer share the block_size {self.block_size}"
        check_between("max_prompt_tokens", self.max_prompt_tokens, 1, self.block_size, remedy, high_open=True)
        check_at_least("candidates", candidates, 1)
        check_at_least("updates_per_rollout", updates_per_rollout, 1)
        self._long_prompts: LongPrompts = long_rows
        self.candidates = candidates
        self.updates_per_rollout = updates_per_rollout

    pins_memory = False  # batches are mostly Python values

    def encoder(self) -> PromptEncoder:
        """Return the prompt encoder."""
        return PromptEncoder(
            self.renderer,
            self.max_prompt_tokens,
            self._long_prompts,
            self.columns,
            self.system_prompt,
            self.ignore_fields,
        )

    @property
    def data_info(self) -> DataInfo:
        """Facts about the data for the module and its callbacks; complete after `setup`."""
        return replace(super().data_info, max_prompt_tokens=self.max_prompt_tokens)

    def train_steps(self) -> StepSource:
        """Return the dataset of this rank's optimizer steps; an epoch visits every prompt once."""
        sampler = RowSampler(len(self._split("train")), self.global_batch_size * self.candidates, self.seed)
        updates = self.updates_per_rollout
        return PromptSteps(
            self._split("train"), sampler, self.candidates, updates, **self._ranks(), options=self._identity()
        )

    def _repeated_steps(self, num_steps: int) -> int | None:
        """Return the number of steps that `overfit_batches` repeats, rounded to rollouts with all of their updates."""
        steps = super()._repeated_steps(num_steps)
        return None if steps is None else -(-steps // self.updates_per_rollout) * self.updates_per_rollout

    def _evaluation_loader(self, split: SplitName) -> OrderedLoader:
        return PromptEvaluationLoader(self._split(split), self._eval_batch_size(), **self._ranks())


class StdlibPromptDataModule(PromptDataModule):
    """Signatures and docstrings of functions to write, from this machine's Python standard library.

    The files that `StdlibDataModule` holds out are held out here, too.

    Args:
        max_lines: Maximum number of lines; longer functions are left out.
        val_fraction: Fraction of the files held out for validation.
        test_fraction: Fraction of the files held out for testing.
        kwargs: Arguments of `PromptDataModule`.
    """

    def __init__(
        self, max_lines: int = 20, val_fraction: float = 0.05, test_fraction: float = 0.05, **kwargs: Any
    ) -> None:
        super().__init__(val_fraction=val_fraction, test_fraction=test_fraction, **kwargs)
        self.max_lines = max_lines

    def row_sources(self) -> Sequence[RecordSource]:
        """Return the functions of the standard library."""
        return [StdlibPrompts(max_lines=self.max_lines)]


class PromptSteps(StepSource):
    """Optimizer steps made of prompts. Item s has this rank's prompts; all updates on one rollout share them.

    Args:
        split: Prompt rows.
        sampler: Chooses the rows of a rollout; the candidates of a group are consecutive.
        candidates: Candidate prompts per group.
        num_updates: Optimizer steps per rollout.
        rank: Data-parallel rank of this process.
        world_size: Number of data-parallel ranks.
        options: Other options on which the order of the prompts depends, by name; part of `identity`.
    """

    def __init__(
        self,
        split: RowSplit,
        sampler: RowSampler,
        candidates: int,
        num_updates: int,
        rank: int,
        world_size: int,
        options: dict[str, Any],
    ) -> None:
        groups = sampler.global_batch_size // candidates
        super().__init__(groups, max(1, len(split) // sampler.global_batch_size) * num_updates)
        self.split = split
        self.sampler = sampler
        self.candidates = candidates
        self.num_updates = num_updates
        self.options = options
        share = groups // world_size
        self.share = slice(rank * share, (rank + 1) * share)

    def __getitem__(self, step: int) -> StepBatch:
        rollout, update = divmod(step, self.num_updates)
        groups = self.sampler.step(rollout).reshape(-1, self.candidates)[self.share]
        return [prompt_batch(self.split, groups, rollout, update, self.num_updates)]

    def identity(self) -> dict[str, Any]:
        """Return rows, seed and sizes."""
        sizes = {"global_batch_size": self.global_batch_size, "candidates": self.candidates}
        order = {"seed": self.sampler.seed, **sizes, "updates_per_rollout": self.num_updates}
        return {"rows": self.split.fingerprint, **order, **self.options}


class PromptEvaluationLoader(OrderedLoader):
    """Visits every prompt of a split once.

    Args:
        split: Prompt rows.
        args: Positional arguments of `OrderedLoader` from `batch_size` on.
        kwargs: Keyword arguments of `OrderedLoader`.
    """

    def __init__(self, split: RowSplit, *args: Any, **kwargs: Any) -> None:
        super().__init__(len(split), *args, **kwargs)
        self.split = split

    def _batch(self, items: np.ndarray) -> Batch:
        return prompt_batch(self.split, items[items < self.num_items, None])


def prompt_batch(
    split: RowSplit, groups: np.ndarray, rollout: int = 0, update: int = 0, num_updates: int = 1
) -> PromptBatch:
    """Return the batch of (groups, candidates) rows; its tensors hold the first candidates, padded on the right."""
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
    stored = json.loads(split.attached(row))
    return {"ids": split.sequence(row)[0].tolist(), "number": row, "where": split.where(row), **stored}
