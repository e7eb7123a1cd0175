"""`RunCheckpoint`: decides when to save checkpoints, and which ones to keep.

A checkpoint is saved at the end of an optimizer step, before Lightning's own bookkeeping of epochs, so that resuming
from it is exact; or, if a validation is due at that step, right after it, so that its result is known and the
resumed run does not repeat it. No checkpoint is saved at the end of training, where the state belongs to no step.

Checkpoints may be written in the background (`async_checkpoint`). The record of the best one, and the deletion of old
ones, then wait until the new one is published, so that no record names a checkpoint that does not exist.
"""

import json
import shlex
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from lit_gpt.atomic import atomic_file
from lit_gpt.callbacks.run_folder import run_dir_of
from lit_gpt.checkpoints.provenance import verify_sizes
from lit_gpt.checkpoints.resolve import BEST, TOKENIZER, list_checkpoints, read_best
from lit_gpt.checkpoints.step import CHECKPOINTS, checkpoint_name
from lit_gpt.checks import check_at_least, check_one_of
from lit_gpt.data.chat.template import has_template
from lit_gpt.data.tokenizers import load_tokenizer
from lit_gpt.errors import UserError
from lit_gpt.extensions import VARIABLE


def superfluous(
    newest_first: list[Path], is_complete: Callable[[Path], bool], keep_last: int, best: str | None
) -> list[Path]:
    """Return the checkpoints that can be deleted: all but the `keep_last` newest complete ones and the best.

    A damaged checkpoint does not count, so a complete one is never deleted in its favor.
    """
    complete = 0
    for position, path in enumerate(newest_first):
        complete += is_complete(path)
        if complete == keep_last:
            return [path for path in newest_first[position + 1 :] if path.name != best]
    return []


class RunCheckpoint(Checkpoint):
    """Saves `<run>/checkpoints/step-XXXXXXXX.ckpt`, and keeps the newest and the best checkpoints.

    A checkpoint is saved every `every_n_steps` optimizer steps, at the last step, at a step where a stop was requested,
    and after each validation that is better than all before. `best.json` names the best checkpoint.

    Args:
        every_n_steps: number of optimizer steps between two checkpoints.
        keep_last: number of the newest complete checkpoints to keep.
        save_best: save and keep the checkpoint of the best validation.
        monitor: metric that determines the best checkpoint.
        mode: whether smaller (`min`) or larger (`max`) is better.
        prompt: prompt in the command for trying the model, which is printed at the end.

    Raises:
        UserError: a number is below 1, or `mode` is unknown.
    """

    def __init__(
        self,
        every_n_steps: int = 1000,
        keep_last: int = 2,
        save_best: bool = True,
        monitor: str = "val/loss",
        mode: Literal["min", "max"] = "min",
        prompt: str = "The ",
    ) -> None:
        check_at_least("every_n_steps of RunCheckpoint", every_n_steps, 1)
        check_at_least("keep_last of RunCheckpoint", keep_last, 1)
        check_one_of("mode of RunCheckpoint", mode, ("min", "max"))
        self.every_n_steps = every_n_steps
        self.keep_last = keep_last
        self.save_best = save_best
        self.monitor = monitor
        self.mode = mode
        self.prompt = prompt
        self.run_dir = Path()
        self.last_model_path = ""
        self.best_value: float | None = None
        self.best_step: int | None = None
        self.seconds_saving = 0.0
        """Total time spent on saving, for `ThroughputMonitor`."""
        self._saved_step = -1
        self._waits_for_validation = False

    @property
    def best_model_path(self) -> str:
        """Path of the best checkpoint, for `trainer.test(ckpt_path="best")`; empty if there is none yet."""
        record = read_best(self.run_dir / CHECKPOINTS)
        return "" if record is None else str(self.run_dir / CHECKPOINTS / record["checkpoint"])

    @best_model_path.setter
    def best_model_path(self, path: str) -> None:
        """Take the run's folder from it: Lightning's launchers pass it back to a process without `setup`."""
        if path:
            self.run_dir = Path(path).parents[1]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the run's folder."""
        self.run_dir = run_dir_of(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the state of the run: its step is already saved, and its best checkpoint may be on disk."""
        self._saved_step = trainer.global_step if trainer.ckpt_path else -1
        self._waits_for_validation = False
        record = read_best(self.run_dir / CHECKPOINTS)
        if record is not None and record["monitor"] == self.monitor and self._is_better(record["value"]):
            self.best_value, self.best_step = record["value"], record["step"]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if this step is due, unless a validation is due too, which then saves."""
        if trainer.global_step % self.every_n_steps and not _is_last_step(trainer):
            return
        if _validation_follows(trainer):
            self._waits_for_validation = True
        else:
            self.save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save if the step is due, a stop was requested, or the validation is the best so far.

        Raises:
            UserError: validation did not log the metric; the step is saved before.
        """
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        if self.save_best and self.monitor not in trainer.callback_metrics:
            self.save(trainer)
        if self.best_step == trainer.global_step:
            # An earlier part of the run, before a resume, validated this step. Its weights will be replaced, so the new
            # ones are the best known of this step.
            self.best_value = None
        is_best = self.save_best and trainer.strategy.broadcast(self._is_better(self._monitored(trainer)))
        if is_best:  # before saving, so that the checkpoint contains it
            self.best_value, self.best_step = self._monitored(trainer), trainer.global_step
        if is_best or self._waits_for_validation or _is_last_step(trainer):
            self.save(trainer, is_best)
        self._waits_for_validation = False

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save if a stop was requested after this callback was called."""
        if trainer.should_stop:
            self.save(trainer)

    def save(self, trainer: Trainer, is_best: bool = False) -> None:
        """Save this step unless already saved, record whether it is the best, and delete superfluous checkpoints."""
        if getattr(trainer, "fast_dev_run", False):
            return
        start = time.perf_counter()
        folder = self.run_dir / CHECKPOINTS
        name = checkpoint_name(trainer.global_step)
        if trainer.global_step != self._saved_step:
            if self.best_step == trainer.global_step and not is_best:
                # The best checkpoint of an earlier part of the run is about to be overwritten by other weights without
                # a validation result, so there is no best checkpoint until the next validation.
                self.best_value = self.best_step = None
                if trainer.is_global_zero:
                    (folder / BEST).unlink(missing_ok=True)
            save = partial(trainer.save_checkpoint, folder / name, weights_only=False)
            _raise_together(trainer, save, barrier="Trainer.save_checkpoint")
            self._saved_step = trainer.global_step
        record = {"checkpoint": name, "step": self.best_step, "monitor": self.monitor, "value": self.best_value}

        def published() -> None:
            self.last_model_path = str(folder / name)
            if not trainer.is_global_zero:
                return
            if is_best:
                with atomic_file(folder / BEST) as path:
                    path.write_text(json.dumps(record) + "\n", encoding="utf-8")
            best = (read_best(folder) or {}).get("checkpoint")
            for path in superfluous(list_checkpoints(self.run_dir), _looks_complete, self.keep_last, best):
                trainer.strategy.remove_checkpoint(path)

        writer = _background_writer(trainer)
        if writer is None:
            published()
        else:
            writer.when_saved(published)
        self.seconds_saving += time.perf_counter() - start

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait for the last checkpoint, if it is written in the background.

        Raises:
            UserError: it could not be written.
        """
        writer = _background_writer(trainer)
        if writer is not None:
            _raise_together(trainer, writer.wait)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print where the model is and which commands to run next."""
        if not trainer.is_global_zero or not self.last_model_path:
            return
        record = read_best(self.run_dir / CHECKPOINTS)
        best = "" if record is None else f" (best: {record['checkpoint']}, {record['monitor']} {record['value']:.4g})"
        run, prompt = shlex.quote(str(self.run_dir)), shlex.quote(self.prompt)
        words = getattr(pl_module, "try_it", "generate --model {run} --prompt {prompt}")
        tokenizer = self.run_dir / TOKENIZER
        if words.startswith("generate") and _has_chat_template(tokenizer):
            words = "chat --model {run}"  # what was trained on conversations is asked through its template
        print(f"\ncheckpoint  {self.last_model_path}{best}")
        builder = getattr(pl_module, "builder", None)  # the class of a model with third-party parts
        module = "" if builder is None else f"{VARIABLE}={builder['class'].rpartition('.')[0]} "
        print(f"try it      {module}python -m lit_gpt {words.format(run=run, prompt=prompt)}")
        config = self.run_dir / "config.yaml"
        if config.exists():
            print(f"resume      python -m lit_gpt fit --config {shlex.quote(str(config))} --ckpt_path last")

    def state_dict(self) -> dict[str, Any]:
        """Return the best validation so far."""
        return {"monitor": self.monitor, "best_value": self.best_value, "best_step": self.best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best validation so far, if it used the same metric."""
        if state_dict["monitor"] == self.monitor:
            self.best_value, self.best_step = state_dict["best_value"], state_dict["best_step"]

    def _monitored(self, trainer: Trainer) -> float:
        value = trainer.callback_metrics.get(self.monitor)
        if value is None:
            logged = ", ".join(sorted(trainer.callback_metrics)) or "nothing"
            raise UserError(
                f"RunCheckpoint monitors {self.monitor!r}, but validation logged {logged}; set its monitor to one of "
                "them, or save_best to false"
            )
        return float(value)

    def _is_better(self, value: float) -> bool:
        if value != value:  # NaN
            return False
        if self.best_value is None:
            return True
        return value < self.best_value if self.mode == "min" else value > self.best_value


def _background_writer(trainer: Trainer) -> Any:
    """Return what may write checkpoints in the background: the strategy, or its CheckpointIO; None: neither."""
    for owner in (trainer.strategy, trainer.strategy.checkpoint_io):
        if hasattr(owner, "when_saved"):
            return owner
    return None


def _raise_together(trainer: Trainer, work: Callable[[], None], barrier: str | None = None) -> None:
    """Save or wait; if only one process writes, raise its error on all, which would otherwise wait forever.

    Args:
        trainer: the Trainer.
        work: what every process calls.
        barrier: name of the barrier at the end of `work`, where the others wait for a process that fails before.
    """
    failure: str | None = None
    try:
        work()
    except UserError as error:
        failure = str(error)
        if barrier is not None:
            trainer.strategy.barrier(barrier)
    failure = trainer.strategy.broadcast(failure)
    if failure is not None:
        raise UserError(failure)


def _is_last_step(trainer: Trainer) -> bool:
    if trainer.should_stop or (trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps):
        return True
    last_epoch = trainer.max_epochs not in (None, -1) and trainer.current_epoch + 1 >= (trainer.max_epochs or 0)
    return last_epoch and trainer.is_last_batch


def _validation_follows(trainer: Trainer) -> bool:
    """Return whether Lightning will validate right after this step, by evaluating its own condition early."""
    loop = trainer.fit_loop.epoch_loop
    if loop._skip_next_val or not trainer.enable_validation or not sum(trainer.num_val_batches):
        return False
    fetcher = trainer.fit_loop._data_fetcher
    return fetcher is not None and loop._should_check_val_fx(fetcher)


def _looks_complete(path: Path) -> bool:
    try:
        verify_sizes(path)
    except UserError:
        return False
    return True


def _has_chat_template(tokenizer: Path) -> bool:
    """Return whether a run's tokenizer has a chat template; one that cannot be read must not fail a finished run."""
    try:
        return tokenizer.is_dir() and has_template(load_tokenizer(tokenizer))
    except UserError:
        return False
