"""`NonFiniteGuard`: stops the run or skips the step when the loss or a gradient is NaN or infinite.

After the backward pass, one number tells whether the loss and every gradient are finite on all processes, and which
process's loss is not. On a CPU it is read immediately, before the optimizer step. On an accelerator, synchronizing with
the host is avoided:

- `stop`: the flag is copied to the host asynchronously and read a few steps later, by which time the copy has
  completed. The optimizer has stepped by then, but no checkpoint is written before the flags of all its steps have been
  read, so checkpoints on disk are good.
- `skip`: a fused optimizer of PyTorch receives the flag itself (`found_inf`) and leaves weights and moments unchanged.
  Any other optimizer's step is skipped by setting its gradients to None, which requires synchronizing with the
  accelerator once per step.

With float16 gradient scaling, infinite gradients are handled by the scaler, and the guard checks only the loss.
"""

from collections import deque
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from lit_gpt.atomic import atomic_file
from lit_gpt.callbacks.run_folder import run_dir_of
from lit_gpt.checkpoints.resolve import list_checkpoints
from lit_gpt.checks import check_at_least, check_one_of
from lit_gpt.errors import UserError
from lit_gpt.models import SequencePart

LAG = 4
"""Number of steps that the host may run ahead of a flag that it has not read."""
MAX_SAVED = 10
"""Maximum number of batches that are saved when steps are skipped."""


@dataclass
class _PendingCheck:
    """The flag of a step, possibly still being copied to the host.

    The flag is 1: all is finite; 0: a gradient is not; -1 - rank: nor is the loss of this process.
    """

    step: int
    batch: Any
    finite: Tensor
    arrived: "torch.cuda.Event | None" = None

    @property
    def on_host(self) -> bool:
        """Whether the flag can be read without waiting."""
        return self.finite.device.type == "cpu"

    def read(self) -> int:
        if self.arrived is not None:
            self.arrived.synchronize()
        return int(self.finite)


class NonFiniteGuard(Callback):
    """Stops the run at a non-finite loss or gradient, or skips that step; saves the batch in either case.

    The batch is saved to `<run>/nonfinite-step-XXXXXXXX.pt` (with several processes one per process, `-rank-R`):
    `torch.load(path, weights_only=True)` returns `{"step": ..., "batch": ...}`.

    Args:
        action: `stop` ends the run with an error that names the step; `skip` drops the step's gradients.
        max_skips_in_a_row: number of consecutive skipped steps after which the run ends with an error.

    Raises:
        UserError: the action is unknown.
    """

    def __init__(self, action: Literal["stop", "skip"] = "stop", max_skips_in_a_row: int = 10) -> None:
        check_one_of("action of NonFiniteGuard", action, ("stop", "skip"))
        check_at_least("max_skips_in_a_row of NonFiniteGuard", max_skips_in_a_row, 1)
        self.action = action
        self.max_skips_in_a_row = max_skips_in_a_row
        self.num_skipped = 0
        self._in_a_row = 0
        self._batch: Any = None
        self._loss: Tensor | None = None
        self._pending: deque[_PendingCheck] = deque()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Discard pending flags."""
        self._pending.clear()
        self._loss = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep the batch, in case it must be saved."""
        self._batch = batch

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Keep the loss, to be checked before the optimizer step."""
        loss = loss.detach().sum()
        self._loss = loss if self._loss is None else self._loss + loss

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Check the step, and act on the result as early as the device allows."""
        check = _PendingCheck(trainer.global_step + 1, self._batch, self._is_finite(trainer, optimizer))
        skips_by_itself = getattr(optimizer, "_step_supports_amp_scaling", False)
        if check.on_host or (self.action == "skip" and not skips_by_itself):
            self._judge(check, trainer, optimizer)
        else:
            if self.action == "skip":
                optimizer.found_inf = (check.finite != 1).float()  # type: ignore[attr-defined]
            self._pending.append(_send_to_host(check))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Read flags whose copies have completed."""
        self._read(trainer, LAG)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read all flags, because validating ruined weights would be a waste."""
        self._read(trainer, 0)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read all flags."""
        self._read(trainer, 0)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Read all flags before a checkpoint is written."""
        self._read(trainer, 0)

    def state_dict(self) -> dict[str, Any]:
        """Return the number of skipped steps."""
        return {"num_skipped": self.num_skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the number of skipped steps."""
        self.num_skipped = state_dict["num_skipped"]

    # ---- checking ---------------------------------------------------------------------------------------------

    def _is_finite(self, trainer: Trainer, optimizer: Optimizer) -> Tensor:
        """Return () float32 flag of `_PendingCheck`, the same on every process."""
        loss, self._loss = self._loss, None
        wide, norms = torch.float32, []
        if getattr(trainer.precision_plugin, "scaler", None) is None:
            gradients = [
                _local(p.grad) for group in optimizer.param_groups for p in group["params"] if p.grad is not None
            ]
            # bfloat16 is summed in float32; float64 stays float64 (`precision: 64-true`).
            wide = torch.float64 if any(g.dtype == torch.float64 for g in gradients) else wide
            if gradients:
                norms = list(torch._foreach_norm(gradients, 2, wide))
        parts = norms if loss is None else [loss.to(wide), *norms]
        # NaN and infinity survive summation, so one check at the end replaces one per tensor.
        finite = torch.isfinite(torch.stack(parts).sum() if parts else torch.zeros(())).float()
        if loss is not None:
            finite = torch.where(torch.isfinite(loss), finite, -1.0 - trainer.global_rank)
        if trainer.world_size > 1:
            finite = finite.to(trainer.strategy.root_device)
            torch.distributed.all_reduce(finite, torch.distributed.ReduceOp.MIN)
        return finite

    def _read(self, trainer: Trainer, leave: int) -> None:
        while len(self._pending) > leave:
            self._judge(self._pending.popleft(), trainer, None)

    def _judge(self, check: _PendingCheck, trainer: Trainer, optimizer: Optimizer | None) -> None:
        """Act on a step's flag; `optimizer` is given if it has not stepped yet."""
        if check.read() == 1:
            self._in_a_row = 0
            return
        if self.action == "stop":
            self._pending.clear()
            raise UserError(self._what_happened(check, trainer) + self._remedy(trainer))
        self.num_skipped += 1
        self._in_a_row += 1
        if self._in_a_row >= self.max_skips_in_a_row:
            raise UserError(
                f"{self._in_a_row} steps in a row were not finite; {self._what_happened(check, trainer)}"
                f"{self._remedy(trainer)}"
            )
        if optimizer is not None:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None
        if self.num_skipped <= MAX_SAVED:
            rank_zero_warn(f"{self._what_happened(check, trainer)}; the step is skipped")
        for logger in trainer.loggers:
            logger.log_metrics({"train/skipped_steps": float(self.num_skipped)}, step=check.step)

    def _what_happened(self, check: _PendingCheck, trainer: Trainer) -> str:
        rank = f"-rank-{trainer.global_rank}" if trainer.world_size > 1 else ""
        path = run_dir_of(trainer) / f"nonfinite-step-{check.step:08d}{rank}.pt"
        batch = tree_map(_plain, check.batch)
        with atomic_file(path) as temporary:
            torch.save({"step": check.step, "batch": batch}, temporary)
        culprit = -1 - check.read()
        of = f" of process {culprit}" if culprit >= 0 and trainer.world_size > 1 else ""
        what = f"the loss{of}" if culprit >= 0 else "a gradient"
        return f"{what} is not finite at optimizer step {check.step} (its batch: {path})"

    def _remedy(self, trainer: Trainer) -> str:
        found = list_checkpoints(run_dir_of(trainer))
        good = f"the last good checkpoint is {found[0]}" if found else "there is no checkpoint yet"
        return (
            f"; {good}. Lower the learning rate, clip gradients (trainer.gradient_clip_val), warm up longer, or set "
            "action: skip of NonFiniteGuard"
        )


def _plain(leaf: Any) -> Any:
    """Return a value of a batch as `torch.load` reads it: tensors on the CPU, divided rows also as the whole ones."""
    if isinstance(leaf, SequencePart):
        return {name: _plain(value) for name, value in vars(leaf).items() if isinstance(value, Tensor)}
    return leaf.cpu() if isinstance(leaf, Tensor) else leaf


def _local(gradient: Tensor) -> Tensor:
    return gradient.to_local() if hasattr(gradient, "to_local") else gradient


def _send_to_host(check: _PendingCheck) -> _PendingCheck:
    """Start a non-blocking device-to-host copy of the flag."""
    if check.finite.device.type == "cuda":
        host = torch.empty_like(check.finite, device="cpu", pin_memory=True)
        host.copy_(check.finite, non_blocking=True)
        check.finite, check.arrived = host, torch.cuda.Event()
        check.arrived.record()
    return check
