"""`HangGuard`: ends a run that makes no progress, and reports which process blocks it, and in which call.

When one process of a run stops (a stuck file system, a dead link, a frozen device), all others wait for it in the next
collective, without a message, until torch's own timeout, which names the operation but not the process that is missing.
Here a thread of each process watches the training thread. When no step has ended for some time, each reports where its
training thread is, in the store that the processes met in. Those that wait in a collective are the victims; the one
that does not, or does not answer, is named. Then all end, so that `torchrun` can restart them from the last checkpoint.

On GPUs the training thread runs ahead of the device: a collective that hangs there is named by NCCL's own watchdog
(`timeout` of the strategy, `TORCH_NCCL_TRACE_BUFFER_SIZE` for its flight recorder).
"""

import os
import socket
import sys
import threading
import time
import traceback
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_gpt.checks import check_above

EXIT_CODE = 75
"""EX_TEMPFAIL of sysexits.h: a failure that trying again may cure."""
WAITS = "waits in "
FRAMEWORKS = ("/torch/", "/lightning/", "/threading.py")
"""Parts of the paths of files whose lines do not explain a hang."""


class HangGuard(Callback):
    """Ends a run in which no step ends, with the process that holds it up and the operation in which it is.

    Args:
        minutes: longest time without the end of a step, an evaluation batch or a save; longer than compiling takes.

    Raises:
        UserError: the time is not above 0.
    """

    def __init__(self, minutes: float = 30.0) -> None:
        check_above("minutes of HangGuard", minutes, 0)
        self.seconds = 60 * minutes
        # The others find out within a twentieth of the time, and a little more for the machine to be slow.
        self._grace = self.seconds / 10 + 2
        self._last = time.monotonic()
        self._step = 0
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start watching."""
        if trainer.world_size == 1:
            return
        self._note(trainer)
        self._stopped.clear()
        # A connection of its own: the training thread may be waiting in that of the process group, and on a dead link
        # an answer would take as long as a collective may.
        shared: Any = dist.distributed_c10d._get_default_store()
        store = dist.PrefixStore("hang_guard", shared.clone() if hasattr(shared, "clone") else shared)
        store.set_timeout(timedelta(seconds=self._grace))
        arguments = (threading.get_ident(), store, trainer.global_rank, trainer.world_size)
        self._thread = threading.Thread(target=self._watch, args=arguments, name="hang_guard", daemon=True)
        self._thread.start()

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Note that a step has ended."""
        self._note(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Note that an evaluation batch has ended."""
        self._note(trainer)

    def on_save_checkpoint(self, trainer: Trainer, *args: Any) -> None:
        """Note that a save has begun."""
        self._note(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop watching."""
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop watching."""
        self._stop()

    def _note(self, trainer: Trainer) -> None:
        self._last, self._step = time.monotonic(), trainer.global_step

    def _stop(self) -> None:
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _watch(self, training_thread: int, store: Any, rank: int, world_size: int) -> None:
        """Look at the clock until the run ends or hangs; runs in a thread of its own."""
        while not self._stopped.wait(self.seconds / 20):
            if time.monotonic() - self._last > self.seconds:
                break
        else:
            return
        grace = self._grace
        try:
            store.set(str(rank), f"{socket.gethostname()}\n{where(training_thread)}")
            self._stopped.wait(grace)
            found: dict[int, tuple[str, str]] = {}
            for other in range(world_size):
                known = store.check([str(other)])
                host, _, location = store.get(str(other)).decode().partition("\n") if known else ("", "", "")
                found[other] = (host, location)
            line = report(found, self._step, timedelta(seconds=self.seconds))
            store.set(f"{rank} has read", "")
            others = [f"{other} has read" for other, (_, location) in found.items() if location]
            end = time.monotonic() + 5 * grace
            # Process 0 may hold the store, so it ends last.
            while rank == 0 and not store.check(others) and time.monotonic() < end:
                time.sleep(0.1)
        except RuntimeError as error:
            if self._stopped.is_set():  # the training thread has found out itself, by an error
                return
            cause, location = str(error).partition("\n")[0], where(training_thread)
            line = (
                f"no step has ended for {timedelta(seconds=self.seconds)}, after step {self._step}: process {rank} on "
                f"{socket.gethostname()} {'' if location.startswith(WAITS) else 'is in '}{location}, and does not "
                f"reach process 0 ({cause})"
            )
        print(line, file=sys.stderr, flush=True)
        os._exit(EXIT_CODE)  # the training thread cannot be interrupted: it waits below Python


def where(thread: int) -> str:
    """Return the collective in which a thread waits, or else the line that it executes."""
    stack = traceback.extract_stack(sys._current_frames()[thread])
    # Innermost first: the operation is the first function of torch.distributed that is a collective or waits for one.
    own = next((f for f in reversed(stack) if not any(name in f.filename for name in FRAMEWORKS)), stack[-1])
    location = f"{own.name}, {own.filename}:{own.lineno}"
    operation = next((f.name for f in reversed(stack) if f.filename.endswith("distributed_c10d.py")), None)
    if operation is None:
        operation = next((f.name for f in reversed(stack) if "torch/distributed" in f.filename), None)
    if operation is None and "torch/autograd" in stack[-1].filename:
        operation = "the backward pass"  # runs below Python, as do the collectives of DDP and FSDP2 in it
    return f"{WAITS}{operation} ({location})" if operation is not None else location


def report(found: dict[int, tuple[str, str]], step: int, waited: timedelta) -> str:
    """Return one line that names the processes that hold up a run.

    Args:
        found: host and code location (`where`) of each process; empty texts: it did not answer.
        step: last step that ended.
        waited: time since then.
    """
    waiting = {rank: location for rank, (_, location) in found.items() if location.startswith(WAITS)}
    operations = sorted({location.removeprefix(WAITS) for location in waiting.values()})
    culprits = [
        f"process {rank}" + (f" on {host} is in {location}" if location else " does not answer")
        for rank, (host, location) in found.items()
        if rank not in waiting
    ]
    text = f"no step has ended for {waited}, after step {step}: "
    if culprits:
        text += f"{'; '.join(culprits)}; {len(waiting)} of {len(found)} processes wait for it"
    else:
        text += "all processes wait, in different collectives or on a dead link"
    return f"{text}, in {'; '.join(operations)}" if operations else text
