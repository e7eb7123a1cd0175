"""Base class of all DataModules: batch sizes, ranks, the training loader and `DataInfo`.

`StepDataModule` does not depend on where the data comes from. `WindowDataModule` (windows.py) is its subclass for token
windows (text, prepared corpora and mixtures, streams), and `RowDataModule` (rows.py) the one for separate rows
(conversations, preferences, labeled texts, prompts).

Everything works with a stock `lightning.Trainer` and also without one: `dm.prepare_data(); dm.setup("fit");
dm.train_dataloader()`.
"""

import warnings
from abc import abstractmethod
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from lightning import LightningDataModule

from lit_gpt.checks import check_at_least
from lit_gpt.data.cache import print_status
from lit_gpt.data.evaluation_loader import AlternatingLoader, OrderedLoader
from lit_gpt.data.loader import StepLoader, StepSource, check_batch_sizes
from lit_gpt.data_info import DataInfo, read_sample_rank
from lit_gpt.pages.text import counted

Value = TypeVar("Value")
Evaluation = TypeVar("Evaluation", bound=OrderedLoader | AlternatingLoader)

SMALLEST_DEFAULT_BATCH = 8
STEPS_OF_SMALL_EPOCH = 8
"""A default global batch size is halved until an epoch has at least this many steps."""


class StepDataModule(LightningDataModule):
    """Base class of DataModules whose training batches are whole optimizer steps.

    A training batch is the list of micro-batches that this device contributes to one optimizer step; an evaluation
    batch is a single batch. Which samples a step contains depends only on the data, the seed and the step.

    The attributes `vocab_size` and `block_size` are available right after construction.

    Args:
        block_size: Maximum sequence length in tokens: the context length that the model is trained on.
        global_batch_size: Sequences per optimizer step, summed over all devices.
        micro_batch_size: Sequences that a device processes at once; `auto` takes its whole share of a step. Smaller
            values save memory and do not change the result.
        eval_batch_size: Sequences per evaluation batch on each device; null takes `micro_batch_size`, but at most 32.
        seed: Seed of the order of the training samples.
        num_workers: Worker processes that prefetch batches; 0 assembles them in the main process, which is fast enough
            for all but the smallest models.

    Raises:
        UserError: for sizes that contradict each other.
    """

    vocab_size: int
    pins_memory = True
    """Whether training batches are tensors that a GPU fetches faster from pinned memory."""

    def __init__(
        self,
        block_size: int = 256,
        global_batch_size: int = 32,
        micro_batch_size: int | Literal["auto"] = "auto",
        eval_batch_size: int | None = None,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        check_at_least("block_size", block_size, 1)
        check_at_least("global_batch_size", global_batch_size, 1)
        check_at_least("micro_batch_size", None if micro_batch_size == "auto" else micro_batch_size, 1)
        check_at_least("eval_batch_size", eval_batch_size, 1)
        check_at_least("num_workers", num_workers, 0, "0 assembles batches in the main process")
        self.block_size = block_size
        self.global_batch_size = global_batch_size
        self.micro_batch_size = micro_batch_size
        self.eval_batch_size = eval_batch_size
        self.seed = seed
        self.num_workers = num_workers

    # ------------------------------------------------------------------ to be provided by subclasses

    @property
    @abstractmethod
    def tokenizer_path(self) -> Path:
        """Hugging Face folder of the tokenizer; it exists after `prepare_data`."""

    @abstractmethod
    def lineage(self) -> dict[str, Any]:
        """Return which data, tokenizer and sample order produced the batches, by content hash (JSON values)."""

    @abstractmethod
    def train_steps(self) -> StepSource:
        """Return the dataset of this rank's optimizer steps."""

    @property
    def tokens_per_step(self) -> int | None:
        """Input tokens per optimizer step over all devices; None if the number varies from step to step."""
        return None

    @property
    def data_info(self) -> DataInfo:
        """Facts about the data for the module and its callbacks; complete after `setup`."""
        return DataInfo(
            tokenizer_path=self.tokenizer_path,
            vocab_size=self.vocab_size,
            block_size=self.block_size,
            tokens_per_step=self.tokens_per_step,
            lineage=self.lineage,
        )

    # ------------------------------------------------------------------ loaders

    def train_dataloader(self) -> StepLoader:
        """Return the resumable loader of optimizer steps.

        It starts at the Trainer's next step, so that a second `fit` with the same Trainer continues with the data, too.
        Loading a checkpoint sets the position afterwards.
        """
        steps = self.train_steps()
        pin_memory = self.pins_memory and torch.cuda.is_available()
        loader = StepLoader(steps, self.num_workers, pin_memory, self._repeated_steps(steps.num_steps))
        if self.trainer is not None:
            loader.seek(self.trainer.fit_loop.epoch_loop.batch_progress.total.ready)
        return loader

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a batch to the device. On CPU this is a no-op, which avoids 0.2 ms of Lightning's batch traversal."""
        return batch if device.type == "cpu" else super().transfer_batch_to_device(batch, device, dataloader_idx)

    def _repeated_steps(self, num_steps: int) -> int | None:
        """Return the number of steps that `overfit_batches` repeats, or None if it is not set."""
        overfit: int | float = getattr(self.trainer, "overfit_batches", 0)  # set in a function that mypy skips
        if not overfit:
            return None
        return max(1, min(num_steps, overfit if isinstance(overfit, int) else int(num_steps * overfit)))

    def _limited(self, loader: Evaluation, split: str) -> Evaluation:
        """If the Trainer limits the number of batches, make the batches that it reads a random sample of the split."""
        limit = 1.0 if self.trainer is None else getattr(self.trainer, f"limit_{split}_batches")
        loader.sample_first(limit if isinstance(limit, int) else int(len(loader) * limit))
        return loader

    def _empty_loader(self) -> list[Any]:
        """Return an empty loader for an intentionally empty split, silencing Lightning's warning about it."""
        warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero")
        return []

    # ------------------------------------------------------------------ processes and sizes

    def _ranks(self) -> dict[str, int]:
        """Return the rank among the processes with different samples, and their number, as arguments of a loader."""
        rank, size = read_sample_rank(self.trainer)
        return {"rank": rank, "world_size": size}

    def _evaluation_processes(self) -> dict[str, Any]:
        """Return the keyword arguments of an evaluation loader that concern processes and workers."""
        return self._ranks() | {"num_workers": self.num_workers, "pin_memory": torch.cuda.is_available()}

    def _broadcast(self, value: Value) -> Value:
        """Return the value of rank 0, the only rank that has prepared the data and knows the folders."""
        return value if self.trainer is None else self.trainer.strategy.broadcast(value)

    def _trainer_steps(self) -> int | None:
        """Return the Trainer's `max_steps`, or None if it sets no limit."""
        limit = -1 if self.trainer is None else self.trainer.max_steps
        return None if limit < 1 else limit

    def _check_batch_sizes(self) -> None:
        check_batch_sizes(self.global_batch_size, self._micro_batch_size(), self._ranks()["world_size"])

    def _micro_batch_size(self) -> int:
        share = self.global_batch_size // self._ranks()["world_size"]
        return max(1, share) if self.micro_batch_size == "auto" else self.micro_batch_size

    def _eval_batch_size(self) -> int:
        return min(self._micro_batch_size(), 32) if self.eval_batch_size is None else self.eval_batch_size

    def _shrink_default_batch(self, num_samples: int) -> None:
        """Halve the default global batch size until an epoch of a small dataset has enough steps.

        The result depends only on the data, not on the number of devices, so that a run can be resumed on another
        number.

        Args:
            num_samples: Number of samples in an epoch.
        """
        size = self.global_batch_size
        while size > SMALLEST_DEFAULT_BATCH and num_samples // size < STEPS_OF_SMALL_EPOCH:
            size //= 2
        if size != self.global_batch_size and self.micro_batch_size == "auto":
            self.global_batch_size = size
            if self.trainer is None or self.trainer.is_global_zero:
                print_status(
                    f"global_batch_size: {size}, because an epoch has {counted(num_samples, 'sequence')}; set it "
                    "explicitly to choose another size"
                )
