"""What every DataModule shares: sizes of batches, ranks, the training loader and `DataInfo`.

`StepDataModule` knows nothing of where data comes from. `WindowDataModule` (windows.py) is the branch of token windows:
text, prepared corpora and mixtures, streams. `RowDataModule` (rows.py) is the branch of separate rows: conversations,
preferences, labelled texts, prompts.

Everything works with a stock `lightning.Trainer`, and with none: `dm.prepare_data(); dm.setup("fit");
dm.train_dataloader()`.
"""

import warnings
from abc import abstractmethod
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from lightning import LightningDataModule

from lit_gpt.checks import check_at_least
from lit_gpt.data.cache import say
from lit_gpt.data.evaluation_loader import AlternatingLoader, OrderedLoader
from lit_gpt.data.loader import StepLoader, StepSource, check_batch_sizes
from lit_gpt.data_info import DataInfo, read_data_parallel

Value = TypeVar("Value")
Evaluation = TypeVar("Evaluation", bound=OrderedLoader | AlternatingLoader)

SMALLEST_DEFAULT_BATCH = 8
STEPS_OF_SMALL_EPOCH = 8
"""A default global batch size is halved until an epoch has this many steps."""


class StepDataModule(LightningDataModule):
    """Batches of optimizer steps.

    A training batch is the list of micro-batches that this device contributes to one optimizer step; evaluation
    batches are single ones. Which samples a step sees depends on data, seed and step alone.

    The attributes `vocab_size` and `block_size` are known from the start.

    Args:
        block_size: Tokens of a sequence at most: the context length that the model is trained on.
        global_batch_size: Sequences of one optimizer step over all devices.
        micro_batch_size: Sequences that a device takes at once; `auto` takes its whole share of a step. Smaller ones
            save memory and change no result.
        eval_batch_size: Sequences of an evaluation batch on each device; null takes `micro_batch_size`, at most 32.
        seed: Chooses the order of the training samples.
        num_workers: Processes that assemble batches ahead; 0 assembles them in this one, which is fast enough for
            all but the smallest models.

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
        check_at_least("num_workers", num_workers, 0, "0: this process assembles batches")
        self.block_size = block_size
        self.global_batch_size = global_batch_size
        self.micro_batch_size = micro_batch_size
        self.eval_batch_size = eval_batch_size
        self.seed = seed
        self.num_workers = num_workers

    # ------------------------------------------------------------------ what a subclass provides

    @property
    @abstractmethod
    def tokenizer_path(self) -> Path:
        """Hugging Face folder of the tokenizer; it exists after `prepare_data`."""

    @abstractmethod
    def lineage(self) -> dict[str, Any]:
        """Return which data, tokenizer and order made the batches, by content hash (JSON values)."""

    @abstractmethod
    def train_steps(self) -> StepSource:
        """Return the data set of this rank's optimizer steps."""

    @property
    def tokens_per_step(self) -> int | None:
        """Input tokens of one optimizer step over all devices, where every step has as many."""
        return None

    @property
    def data_info(self) -> DataInfo:
        """What the module and its callbacks may know about the data; complete after `setup`."""
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

        It begins with the Trainer's next step: a second `fit` of the same Trainer continues with the data, too. A
        checkpoint that is resumed sets the position after this.
        """
        steps = self.train_steps()
        pin_memory = self.pins_memory and torch.cuda.is_available()
        loader = StepLoader(steps, self.num_workers, pin_memory, self._repeated_steps(steps.num_steps))
        if self.trainer is not None:
            loader.seek(self.trainer.fit_loop.epoch_loop.batch_progress.total.ready)
        return loader

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a batch to the device; on a CPU it is there already, and Lightning's walk through it costs 0.2 ms."""
        return batch if device.type == "cpu" else super().transfer_batch_to_device(batch, device, dataloader_idx)

    def _repeated_steps(self, num_steps: int) -> int | None:
        """Return the number of steps that `overfit_batches` repeats; None: it is not set."""
        overfit: int | float = getattr(self.trainer, "overfit_batches", 0)  # set by a function that mypy does not see
        if not overfit:
            return None
        return max(1, min(num_steps, overfit if isinstance(overfit, int) else int(num_steps * overfit)))

    def _limited(self, loader: Evaluation, split: str) -> Evaluation:
        """Make the part of an evaluation loader that the Trainer's limit admits a random sample of the split."""
        limit = 1.0 if self.trainer is None else getattr(self.trainer, f"limit_{split}_batches")
        loader.sample_first(limit if isinstance(limit, int) else int(len(loader) * limit))
        return loader

    def _no_batches(self) -> list[Any]:
        """Return the loader of a split that is empty on purpose, without Lightning's question whether it is."""
        warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero")
        return []

    # ------------------------------------------------------------------ processes and sizes

    def _ranks(self) -> dict[str, int]:
        """Return this process's place among those that see different data, as arguments of a loader."""
        ranks = read_data_parallel(self.trainer)
        return {"rank": ranks.rank, "world_size": ranks.size}

    def _evaluation_processes(self) -> dict[str, Any]:
        """Return what an evaluation loader has to know about the processes that share the work."""
        return self._ranks() | {"num_workers": self.num_workers, "pin_memory": torch.cuda.is_available()}

    def _broadcast(self, value: Value) -> Value:
        """Return the value of rank 0: it alone has prepared the data and knows the folders."""
        return value if self.trainer is None else self.trainer.strategy.broadcast(value)

    def _trainer_steps(self) -> int | None:
        """Return the Trainer's `max_steps`; None: they are not limited."""
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
        """Halve a default global batch size that would leave an epoch of a small data set few steps.

        The result depends on the data alone, not on the number of devices: a run may be resumed on another number.

        Args:
            num_samples: Samples of an epoch.
        """
        size = self.global_batch_size
        while size > SMALLEST_DEFAULT_BATCH and num_samples // size < STEPS_OF_SMALL_EPOCH:
            size //= 2
        if size != self.global_batch_size and self.micro_batch_size == "auto":
            self.global_batch_size = size
            if self.trainer is None or self.trainer.is_global_zero:
                say(
                    f"global_batch_size: {size}, because an epoch has {num_samples:,} sequences; set it to have another"
                )
