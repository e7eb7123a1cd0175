"""`Preflight`: rejects settings that would waste a run before its first step."""

import copy
import warnings
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from lit_gpt.callbacks.throughput import planned_steps
from lit_gpt.checkpoints.step import to_plain
from lit_gpt.data_info import read_data_info
from lit_gpt.errors import UserError
from lit_gpt.plugins import AtomicCheckpointIO, ParallelStrategy
from lit_gpt.suggest import close_matches

LOOK_AHEAD = 100_000
"""Maximum number of steps of a schedule searched for a learning rate above 0; usually the first step has one."""


class Preflight(Callback):
    """Rejects settings that cannot train or whose checkpoints would not be safe.

    Before the model is built: limits that leave no step, gradient accumulation by the Trainer, non-atomic checkpoints,
    a tokenizer larger than the vocabulary, a context longer than learned positions. Before the first step: a learning
    rate that is always 0, a callback that monitors a metric that validation does not log, hyperparameters that no
    checkpoint can hold. A finished run that is resumed is told which limit to raise.
    """

    def __init__(self) -> None:
        self._trained = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check everything that is known before the model is built.

        Raises:
            UserError: with the value, the bound and the remedy.
        """
        _check_sizes(trainer, pl_module)
        if stage == "fit":
            _check_limits(trainer)
            _check_accumulation(trainer)
            _check_checkpoints(trainer)
            _check_plain(trainer, pl_module)
            if any(name not in getattr(pl_module, "always_logs", ()) for name in _monitors(trainer)):
                # What a validation logs is known after one: Lightning's sanity check, of which nothing else remains.
                trainer.num_sanity_val_steps = max(2, trainer.num_sanity_val_steps)

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that validation logs what the callbacks monitor.

        Raises:
            UserError: it does not.
        """
        logged = sorted(trainer.callback_metrics)
        for name, owner in _monitors(trainer).items():
            if name not in logged:
                near = close_matches(name, logged)
                hint = f"did you mean {near[0]}? " if near else ""
                raise UserError(
                    f"{owner} monitors {name!r}, which validation does not log; {hint}set its monitor to one of "
                    f"{', '.join(logged) or 'nothing'}"
                )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the learning rate over the whole schedule.

        Raises:
            UserError: it is always 0.
        """
        steps = planned_steps(trainer, pl_module) if trainer.max_steps != -1 else None
        for optimizer in trainer.optimizers:
            schedulers = [c for c in trainer.lr_scheduler_configs if c.scheduler.optimizer is optimizer]
            if any(c.reduce_on_plateau for c in schedulers):
                schedulers = []
            if not any(_rates(optimizer)) and not any(_ever_moves(c.scheduler, steps) for c in schedulers):
                names = " and ".join(type(c.scheduler).__name__ for c in schedulers)
                raise UserError(
                    "the learning rate is 0 in every parameter group at every step"
                    + (f" of {names}" if names else "")
                    + ", so nothing would train; set the optimizer's lr above 0 and check the schedule"
                )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that there is something to train."""
        self._trained = True

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print which limits to raise, if the resumed run had already reached one of them."""
        if self._trained or not trainer.is_global_zero or not trainer.global_step:
            return
        limits = {"trainer.max_steps": trainer.max_steps, "trainer.max_epochs": trainer.max_epochs}
        limits["model.max_tokens"] = getattr(pl_module, "max_tokens", None)
        found = " or ".join(f"--{name} ({value:,})" for name, value in limits.items() if value not in (None, -1))
        print(f"nothing left to train at step {trainer.global_step:,}: to continue the run, raise {found}")


def _check_sizes(trainer: Trainer, pl_module: LightningModule) -> None:
    config = getattr(pl_module, "config", None)
    info = read_data_info(trainer)
    tokenizer_size, block_size = info.vocab_size, info.block_size
    model_size, positions = getattr(config, "vocab_size", None), getattr(config, "block_size", None)
    if tokenizer_size is not None and model_size is not None and tokenizer_size > model_size:
        raise UserError(
            f"the tokenizer has {tokenizer_size} tokens, but the model's vocab_size is {model_size}; set vocab_size "
            f"to at least {tokenizer_size}, or use a smaller tokenizer"
        )
    if block_size is not None and positions is not None and block_size > positions:
        raise UserError(
            f"block_size {block_size} of the data is longer than the {positions} positions of the model; lower it to "
            "that, or set the model's block_size"
        )


def _check_limits(trainer: Trainer) -> None:
    """Raise if a limit leaves no step to train: the run would end with success and have nothing."""
    for name in ("max_steps", "max_epochs", "limit_train_batches"):
        if getattr(trainer, name) == 0:
            raise UserError(f"{name} is 0, so nothing would be trained; set it above 0, or use validate")


def _check_accumulation(trainer: Trainer) -> None:
    if trainer.accumulate_grad_batches != 1:
        raise UserError(
            f"trainer.accumulate_grad_batches is {trainer.accumulate_grad_batches}, it must be 1: accumulation follows "
            "from global_batch_size and micro_batch_size of the DataModule; set those instead"
        )


def _monitors(trainer: Trainer) -> dict[str, str]:
    """Return the validation metrics that callbacks watch, each with the name of the callback's class."""
    found = {}
    for callback in getattr(trainer, "callbacks", []):
        name = getattr(callback, "monitor", None)
        if isinstance(name, str) and not name.startswith("train") and getattr(callback, "save_best", True):
            found[name] = type(callback).__name__
    return found


def _check_plain(trainer: Trainer, pl_module: LightningModule) -> None:
    """Refuse hyperparameters that the first checkpoint could not hold."""
    if not trainer.checkpoint_callbacks or getattr(trainer, "fast_dev_run", False):
        return
    for owner in (pl_module, getattr(trainer, "datamodule", None)):
        hyperparameters = getattr(owner, "hparams", None)  # of save_hyperparameters()
        if hyperparameters:
            to_plain(dict(hyperparameters), f"hyperparameters of {type(owner).__name__}")


def _check_checkpoints(trainer: Trainer) -> None:
    if not trainer.checkpoint_callbacks or getattr(trainer, "fast_dev_run", False):
        return
    strategy = trainer.strategy
    if isinstance(strategy, ParallelStrategy) and strategy.saves_shards:
        return
    if type(strategy).__name__ in ("ModelParallelStrategy", "FSDPStrategy", "DeepSpeedStrategy"):
        raise UserError(
            f"{type(strategy).__name__} bypasses every CheckpointIO, so a process that is killed while "
            "saving leaves an incomplete checkpoint; use strategy lit_gpt.plugins.ParallelStrategy"
        )
    io: Any = strategy.checkpoint_io
    inner = getattr(io, "checkpoint_io", None)  # a plugin that wraps another one, such as AsyncCheckpointIO
    if not isinstance(io, AtomicCheckpointIO) and not isinstance(inner, AtomicCheckpointIO):
        raise UserError(
            f"checkpoints would be written by {type(io).__name__}, which a kill or a full disk can leave incomplete; "
            "add "
            "lit_gpt.plugins.AtomicCheckpointIO() to the Trainer's plugins, or use lit_gpt.Trainer, which has it"
        )


def _rates(optimizer: Optimizer) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]


def _ever_moves(scheduler: Any, steps: int | None) -> bool:
    """Return whether any learning rate rises above 0 within the run, found by stepping a copy of the schedule."""
    twin = _twin(scheduler, {})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's "step the optimizer first" does not apply to the copy
        for _ in range(min(LOOK_AHEAD, LOOK_AHEAD if steps is None else steps)):
            twin.step()
            if any(_rates(twin.optimizer)):
                return True
    return False


def _twin(scheduler: Any, optimizers: dict[int, Optimizer]) -> Any:
    """Copy a scheduler with an optimizer that has one empty parameter per group, so that stepping it costs nothing."""
    original = scheduler.optimizer
    if id(original) not in optimizers:
        groups = [{**group, "params": [torch.zeros(1)]} for group in original.param_groups]
        optimizers[id(original)] = torch.optim.SGD(groups, lr=0.0)
    twin = copy.copy(scheduler)
    twin.optimizer = optimizers[id(original)]
    if hasattr(scheduler, "_schedulers"):  # SequentialLR, ChainedScheduler
        twin._schedulers = [_twin(part, optimizers) for part in scheduler._schedulers]
    return twin
