"""`GracefulStop`: SIGTERM and Ctrl-C end a run like `max_steps` does: after the current step, with a checkpoint.

The first signal is recorded and handled at the end of the optimizer step; the second ends the process immediately.

With several processes any of them may receive the signal, and all must stop at the same step. After each step they
start a one-number all-reduce on the CPU (gloo) and read its result one step later: no process waits, the accelerator is
not synchronized, and all see the same result at the same step. Lightning broadcasts SIGTERM from process 0 in every
step, which makes the host wait for the accelerator; this callback replaces and disables that broadcast.
"""

import os
import signal
import threading
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_gpt.callbacks.ema import ExponentialMovingAverage
from lit_gpt.callbacks.run_checkpoint import RunCheckpoint

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class GracefulStop(Callback):
    """Stops a run cleanly on SIGTERM or Ctrl-C; a second signal stops it immediately.

    A signal during validation ends a single-process run at once (with a checkpoint, by `SystemExit(128 + signal)`), and
    a run with several processes after the validation.

    Attributes:
        stopped_by: number of the signal that ended the run, or None; the command line exits with 128 plus this
            number.
    """

    def __init__(self) -> None:
        self.stopped_by: int | None = None
        self._received = 0
        self._active = False
        self._trainer: Trainer | None = None
        self._pid = os.getpid()
        self._originals: dict[int, Any] = {}
        self._group: dist.ProcessGroup | None = None
        self._flag = torch.zeros(1, dtype=torch.int64)
        self._work: Any = None

    # ---- handlers ---------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Install the handlers before data loaders fork their workers, which then ignore the terminal's Ctrl-C."""
        if stage != "fit":
            return
        self.stopped_by, self._received, self._pid, self._trainer = None, 0, os.getpid(), trainer
        self._active = True
        self._install()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install the handlers again, because Lightning has installed its own SIGTERM handler in the meantime."""
        self._install()
        if trainer.world_size > 1:
            self._group = dist.new_group(backend="gloo")
            trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the previous signal handlers."""
        self._release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore the previous signal handlers."""
        self._release()

    def _install(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number in SIGNALS:
            original: Any = signal.signal(number, self._handle)
            while isinstance(owner := getattr(original, "__self__", None), GracefulStop) and not owner._active:
                original = owner._originals.get(number)  # left over from a run that ended with an error
            if original is not None and original != self._handle:
                self._originals.setdefault(number, original)

    def _release(self) -> None:
        self._active = False
        if threading.current_thread() is threading.main_thread():
            for number, original in self._originals.items():
                signal.signal(number, original)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a forked worker: ignore Ctrl-C, obey its parent's SIGTERM
            if number == signal.SIGTERM:
                _deliver(number, signal.SIG_DFL)
            return
        if not self._active:  # Lightning reinstalled this handler after it had been removed
            _deliver(number, self._originals.get(number, signal.SIG_DFL))
            return
        if self._received:
            launcher = None if self._trainer is None else self._trainer.strategy.launcher
            if launcher is not None:
                launcher.kill(signal.SIGKILL)
            _deliver(number, signal.SIG_DFL)  # so that the parent sees which signal ended this process
        self._received = number
        # The signal may have interrupted print(), which is not reentrant.
        name = signal.Signals(number).name
        os.write(2, f"\n{name}: finishing the step, then saving (once more: stop at once)\n".encode())

    # ---- stopping ---------------------------------------------------------------------------------------------

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop after this step if any process received a signal, without another validation."""
        if self._group is None:
            agreed = self._received
        else:
            agreed = self._result()
            self._ask()
        if agreed:
            self._stop(trainer, agreed)
            trainer.fit_loop.epoch_loop._skip_next_val = True

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Abort a running validation, and save the step before it as if no validation were due."""
        if not self._received or self._group is not None or not self._active:
            return
        self.stopped_by = self._received
        if not trainer.sanity_checking:
            for callback in getattr(trainer, "callbacks", []):
                if isinstance(callback, ExponentialMovingAverage):
                    callback.restore()
            trainer.fit_loop.epoch_loop.val_loop.batch_progress.reset()
            for callback in trainer.checkpoint_callbacks:
                if isinstance(callback, RunCheckpoint):
                    callback.save(trainer)
        raise SystemExit(128 + self.stopped_by)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop after a validation during which any process received a signal."""
        if self._group is None or trainer.sanity_checking:
            return
        self._result()
        self._ask()
        agreed = self._result()
        if agreed:
            self._stop(trainer, agreed)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Destroy the process group that shares the flag."""
        if self._group is not None:
            self._result()
            dist.destroy_process_group(self._group)
            self._group = None

    def _stop(self, trainer: Trainer, number: int) -> None:
        self.stopped_by = number
        trainer.should_stop = True
        trainer.fit_loop.min_epochs = 0  # unlike early stopping, a signal ignores min_epochs
        trainer.fit_loop.epoch_loop.min_steps = None

    def _ask(self) -> None:
        self._flag.fill_(self._received)
        self._work = dist.all_reduce(self._flag, dist.ReduceOp.MAX, self._group, async_op=True)

    def _result(self) -> int:
        if self._work is None:
            return 0
        self._work.wait()
        self._work = None
        return int(self._flag[0])


def _deliver(number: int, handler: Any) -> None:
    """Pass a signal on to another handler."""
    signal.signal(number, handler)
    os.kill(os.getpid(), number)
