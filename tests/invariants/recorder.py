"""A callback that writes down, per process, what each optimizer step saw and computed.

One JSON line a step, flushed at once, so that it is there when the process is killed in the next moment.
"""

import hashlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import torch
from lightning.pytorch.callbacks import Callback
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from lit_gpt.callbacks import GracefulStop


class Recorder(Callback):
    """Writes `<folder>/<start>-rank<r>.jsonl`, and gradients of the first step.

    Args:
        folder: where to write.
        start: name of this start of the run.
    """

    def __init__(self, folder: str, start: str) -> None:
        self.folder, self.start = Path(folder), start

    def setup(self, trainer, pl_module, stage) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.file = open(self.folder / f"{self.start}-rank{trainer.global_rank}.jsonl", "a")  # noqa: SIM115
        self.sums = []
        loss = pl_module.loss

        def recorded(batch):
            result = loss(batch)
            if trainer.training:
                self.sums.append(float(result.cross_entropy))
            return result

        pl_module.loss = recorded

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        if trainer.global_step == 0:
            gradients = {
                name: (p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad).clone().contiguous()
                for name, p in pl_module.model.named_parameters()
                if p.grad is not None
            }
            if trainer.is_global_zero:
                save_file(gradients, self.folder / f"{self.start}-gradients.safetensors")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        tokens = [row for micro in batch for row in micro["input_ids"].cpu()]
        self._write(
            step=trainer.global_step,
            world_size=trainer.world_size,
            loss_sum=sum(self.sums),
            losses=[loss.hex() for loss in self.sums],
            samples=torch.cat([micro["sample_ids"] for micro in batch]).tolist(),
            tokens=[hashlib.sha256(row.numpy().tobytes()).hexdigest()[:16] for row in tokens],
            tokens_seen=pl_module.tokens_seen,
        )
        self.sums.clear()

    def on_validation_end(self, trainer, pl_module) -> None:
        if not trainer.sanity_checking:
            self._write(step=trainer.global_step, val_loss=float(trainer.callback_metrics["val/loss"]).hex())

    def _write(self, **line) -> None:
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()
        os.fsync(self.file.fileno())


class Dies(Callback):
    """Kills processes after a step, once, when there is a checkpoint to resume from.

    Args:
        step: the optimizer step.
        done: file that says that it has happened.
        ranks: processes that are killed; None: those of a machine that is lost, with the agent of torchrun that started
            them, which has `IS_LOST` in its environment.
    """

    def __init__(self, step: int, done: str, ranks: list[int] | None = None) -> None:
        self.step, self.done, self.ranks = step, Path(done), ranks

    def on_train_start(self, trainer, pl_module) -> None:
        is_meant = "IS_LOST" in os.environ if self.ranks is None else trainer.global_rank in self.ranks
        self.armed = is_meant and not self.done.exists()

    def on_train_batch_end(self, trainer, *_) -> None:
        if self.armed and trainer.global_step == self.step:
            while not list(Path(trainer.run_dir, "checkpoints").glob("step-*.ckpt")):
                time.sleep(0.01)
            self.done.touch()
            if self.ranks is None:
                os.kill(os.getppid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)


class WaitsForMore(Callback):
    """After a step of few processes, waits for the signal by which torchrun ends them when others have come.

    Args:
        step: the optimizer step.
        world_size: number of processes that wait.
        reached: file that says that they wait.
    """

    def __init__(self, step: int, world_size: int, reached: str) -> None:
        self.step, self.world_size, self.reached = step, world_size, Path(reached)

    def on_train_batch_end(self, trainer, *_) -> None:
        if trainer.world_size == self.world_size and trainer.global_step == self.step:
            self.reached.touch()
            stop = next(callback for callback in trainer.callbacks if isinstance(callback, GracefulStop))
            while not stop._received:
                time.sleep(0.01)


class CutsCable(Callback):
    """After a step, process 0 takes the link between two hosts down, once.

    Args:
        step: the optimizer step.
        done: file that says that it has happened.
    """

    def __init__(self, step: int, done: str) -> None:
        self.step, self.done = step, Path(done)

    def on_train_batch_end(self, trainer, *_) -> None:
        if trainer.is_global_zero and trainer.global_step == self.step and not self.done.exists():
            self.done.touch()
            subprocess.run(["ip", "link", "set", "cable", "down"], check=True)
