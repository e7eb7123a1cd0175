"""One process of a two-process DDP run; `test_two_processes.py` starts it as `python ddp_worker.py <scenario> <folder>`."""

import errno
import json
import os
import sys
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from tiny_run import TinyLoader, TinyModule
from torch.utils.data import DataLoader

from lit_gpt.callbacks import (
    ExponentialMovingAverage,
    GracefulStop,
    NonFiniteGuard,
    PredictionWriter,
    RunCheckpoint,
    RunFolder,
    ThroughputMonitor,
    TokenProgressBar,
)
from lit_gpt.checkpoints import step
from lit_gpt.errors import UserError
from lit_gpt.plugins import AtomicCheckpointIO

RANK = int(os.environ["LOCAL_RANK"])


class Ranked(TinyModule):
    """Each process has its own batches; `spoil_at` spoils the loss of the second process alone."""

    def __init__(self, spoil_at=None):
        super().__init__()
        self.spoil_at = spoil_at if RANK == 1 else None

    def train_dataloader(self):
        loader = TinyLoader()
        loader.batch = lambda position: TinyLoader().batch(2 * position + RANK)
        return loader

    def predict_dataloader(self):
        return DataLoader([0, 1], batch_size=None)

    def predict_step(self, batch, batch_idx):
        counts = torch.full((2,), 1 + RANK)
        index = torch.tensor([0, 1 + RANK])  # both have windows of document 0
        return {"document_index": index, "loss_sum": counts * 2.0, "num_tokens": counts, "num_bytes": counts * 3}


def trainer(run, *callbacks, **options):
    return Trainer(
        default_root_dir=run,
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_steps=8,
        plugins=[AtomicCheckpointIO()],
        callbacks=list(callbacks),
        logger=False,
        enable_progress_bar=any(isinstance(callback, TokenProgressBar) for callback in callbacks),
        enable_checkpointing=any(isinstance(callback, RunCheckpoint) for callback in callbacks),
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        **({"limit_val_batches": 0} | options),
    )


def numbers(tensors):
    return [float(value.double().sum()) for value in tensors]


def everything(folder):
    """All callbacks beside one another; EMA is the same on both processes."""
    ema, module = ExponentialMovingAverage(decay=0.5), Ranked()
    validating = {"limit_val_batches": 2, "val_check_interval": 2, "check_val_every_n_epoch": None}
    parts = [RunFolder(), NonFiniteGuard(), ThroughputMonitor(), TokenProgressBar(), ema, GracefulStop()]
    trainer(folder / "run", *parts, RunCheckpoint(every_n_steps=3), **validating).fit(module)
    return {"losses": list(module.losses.values()), "average": numbers(ema._averages.values())}


def skips(folder):
    """A NaN of one process: both leave the step out, and stay equal."""
    guard, module = NonFiniteGuard("skip"), Ranked(spoil_at=3)
    trainer(folder / "run", guard).fit(module)
    return {"skipped": guard.num_skipped, "weights": numbers(module.parameters())}


def stops(folder):
    """A NaN of one process: both stop, each with its batch."""
    try:
        trainer(folder / "run", NonFiniteGuard()).fit(Ranked(spoil_at=3))
    except UserError as error:
        return {"error": str(error)}


def predicts(folder):
    trainer(folder / "run", PredictionWriter()).predict(Ranked())
    return {}


def full_disk(folder):
    """Only the first process writes; both end with its sentence."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    step.save_state = full
    try:
        trainer(folder / "run", RunCheckpoint(every_n_steps=2)).fit(Ranked())
    except UserError as error:
        return {"error": str(error)}


if __name__ == "__main__":
    scenario, folder = sys.argv[1], Path(sys.argv[2])
    result = globals()[scenario](folder)
    (folder / f"found-{RANK}.json").write_text(json.dumps(result))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
