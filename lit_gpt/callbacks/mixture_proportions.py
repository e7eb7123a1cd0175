"""`MixtureProportions`: logs the actual share of each corpus in a mixture, compared with its target."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lit_gpt.data_info import CorpusMixture, DataParallel, read_data_info


class MixtureProportions(Callback):
    """Counts the rows of each corpus as they are trained on and logs shares every `log_every_n_steps` steps.

    Logged for each corpus: `mixture/<name>` (share of the samples since the last entry), `mixture_total/<name>` (since
    the start of the run), `mixture_wanted/<name>` (target share since the start of the run) and `mixture_epochs/<name>`
    (number of passes over its tokens). It does nothing without a mixture: the batches must have `corpus_ids`, and the
    DataModule a mixture (`DataInfo.mixture`).

    The counts are of rows that reached the training step, not of planned ones. They stay on the device and cost one
    small addition per micro-batch. An entry is copied to the host asynchronously and written at a later step, when the
    copy has completed, so no step waits for it. The counts are saved and restored with the run.

    Attributes:
        latest: The entry written last.
    """

    def __init__(self) -> None:
        self._mixture: CorpusMixture | None = None
        self._ranks = DataParallel()
        self.latest: dict[str, float] = {}
        self._counts: Tensor | None = None
        self._loaded: list[int] | None = None
        self._before: list[int] = []
        self._pending: tuple[int, Tensor, Any] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start counting, or continue from the checkpoint's counts."""
        info = read_data_info(trainer)
        self._mixture, self._ranks = info.mixture, info.data_parallel
        mixture = self._mixture
        if mixture is None:
            return
        self._counts = torch.zeros(len(mixture.names), dtype=torch.int64, device=pl_module.device)
        self._before = [0] * len(mixture.names)
        if self._loaded is not None and len(self._loaded) == len(mixture.names):
            self._before = list(self._loaded)
            if trainer.is_global_zero:  # already summed over processes when saved
                self._counts += torch.tensor(self._loaded, device=pl_module.device)
        self._loaded = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the step's rows; at the logging interval, start copying the counts to the host."""
        if self._counts is None:
            return
        for micro_batch in batch if isinstance(batch, list) else [batch]:
            ids, sequence = micro_batch.get("corpus_ids"), micro_batch.get("sequence")
            if ids is not None and (sequence is None or sequence.rank == 0):  # of the processes that share rows, one
                self._counts.scatter_add_(0, ids, torch.ones_like(ids))
        if self._pending is not None and _arrived(self._pending[2]):
            self._write(trainer)
        if trainer.global_step % max(1, int(getattr(trainer, "log_every_n_steps", 50))) == 0:
            self._send(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the entry that is still being copied."""
        if self._pending is not None:
            if self._pending[2] is not None:
                self._pending[2].synchronize()
            self._write(trainer)

    def _send(self, trainer: Trainer) -> None:
        """Start copying the counts of all processes to the host, without waiting."""
        assert self._counts is not None
        counts = self._ranks.sum(self._counts)
        if counts.device.type != "cuda":
            self._pending = (trainer.global_step, counts.clone(), None)
            self._write(trainer)
            return
        host = torch.empty(counts.shape, dtype=counts.dtype, pin_memory=True)
        host.copy_(counts, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._pending = (trainer.global_step, host, event)

    def _write(self, trainer: Trainer) -> None:
        assert self._pending is not None
        step, counts, _ = self._pending
        self._pending = None
        mixture = self._mixture
        assert mixture is not None
        now = counts.tolist()
        total, latest = sum(now), sum(now) - sum(self._before)
        if not latest:
            return
        wanted = mixture.wanted(total)
        values: dict[str, float] = {}
        for position, name in enumerate(mixture.names):
            values[f"mixture/{name}"] = (now[position] - self._before[position]) / latest
            values[f"mixture_total/{name}"] = now[position] / total
            values[f"mixture_wanted/{name}"] = wanted[name] / total
            values[f"mixture_epochs/{name}"] = now[position] / mixture.num_windows[position]
        self._before, self.latest = now, values
        for logger in trainer.loggers:
            logger.log_metrics(values, step=step)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the counts of all processes."""
        if self._counts is not None:
            checkpoint["mixture_counts"] = self._ranks.sum(self._counts).tolist()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restore the counts."""
        self._loaded = checkpoint.get("mixture_counts")


def _arrived(event: Any) -> bool:
    return event is None or bool(event.query())
