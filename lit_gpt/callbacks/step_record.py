"""`StepRecord`: hashes of the batches, losses and weights of a run, with which a rehearsal compares two runs."""

import hashlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils._pytree import tree_flatten


class StepRecord(Callback):
    """Writes a line of JSON for each optimizer step, and one for the weights at the end; process 0 records its own.

    Each step waits for the accelerator: for short runs only.

    Args:
        file: file to which lines are appended.
        kill_before: kill the process without notice (SIGKILL) before this optimizer step, counted from 1; None: never.
    """

    def __init__(self, file: str, kill_before: int | None = None) -> None:
        self.file = Path(file)
        self.kill_before = kill_before
        self._batch = ""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Hash the batch."""
        if self.kill_before == trainer.global_step + 1:
            os.kill(os.getpid(), signal.SIGKILL)
        self._batch = hash_tensors(batch)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the step, with its loss to the last bit."""
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        value = float(loss) if isinstance(loss, Tensor) else float("nan")
        self._write(trainer, {"step": trainer.global_step, "batch": self._batch, "loss": value.hex()})

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what validation measured."""
        if trainer.sanity_checking or "val/loss" not in trainer.callback_metrics:
            return
        value = float(trainer.callback_metrics["val/loss"])
        self._write(trainer, {"validated": trainer.global_step, "loss": value.hex()})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hash the weights and the optimizer's state."""
        states = [optimizer.state_dict()["state"] for optimizer in trainer.optimizers]
        own = pl_module.state_dict()
        self._write(trainer, {"weights": hash_tensors(own), "optimizer": hash_tensors(states)})

    def _write(self, trainer: Trainer, entry: dict[str, Any]) -> None:
        if trainer.is_global_zero:
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")


def hash_tensors(tree: Any) -> str:
    """Return a SHA-256 of the tensors in nested containers: this process's parts of sharded ones."""
    digest = hashlib.sha256()
    for leaf in tree_flatten(tree)[0]:
        if isinstance(leaf, Tensor):
            local = leaf.to_local() if hasattr(leaf, "to_local") else leaf
            plain = local.detach().cpu().contiguous()
            digest.update(f"{plain.dtype} {tuple(plain.shape)}".encode())
            digest.update(plain.flatten().view(torch.uint8).numpy().tobytes() if plain.numel() else b"")
    return digest.hexdigest()[:16]
