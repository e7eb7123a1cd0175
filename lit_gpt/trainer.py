"""Lightning's Trainer with the house's defaults: a run's folder, whole checkpoints, and what one sees.

Nothing here is needed to train: a stock `lightning.Trainer` runs the same modules with `AtomicCheckpointIO` among
its plugins and whichever callbacks it is given. This class fills in the usual ones.
"""

from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_warn

from lit_gpt.callbacks import (
    GracefulStop,
    NonFiniteGuard,
    PredictionWriter,
    Preflight,
    RunCheckpoint,
    RunFolder,
    ThroughputMonitor,
    TokenProgressBar,
)
from lit_gpt.callbacks.run_folder import require_fresh
from lit_gpt.checkpoints.resolve import find_best, find_last_whole
from lit_gpt.errors import UserError
from lit_gpt.plugins import AtomicCheckpointIO


class Trainer(pl.Trainer):
    """A Lightning Trainer whose intervals are optimizer steps and whose checkpoints are whole or absent.

    A run lives in `<default_root_dir>/<name>/`: `config.yaml`, `lineage.json`, `tensorboard/`, `tokenizer/` and
    `checkpoints/`. A resume goes on in the same folder.

    Args:
        name: of the run, and of its folder.
        default_root_dir: where runs live.
        max_steps: optimizer steps of the run; -1: no limit of its own.
        max_epochs: passes over the training split; None: no limit of its own.
        val_check_interval: validate every so many optimizer steps (an int) or fractions of an epoch (a float).
        log_every_n_steps: optimizer steps between two entries in the log.
        gradient_clip_val: largest norm of the whole gradient; None: no clipping.
        logger: TensorBoard in the run's folder by default; False: none.
        callbacks: your own; an instance of one of the default callbacks replaces the default.
        default_callbacks: add the project's default callbacks.
        plugins: Lightning plugins; checkpoints are written by `AtomicCheckpointIO` unless you pass another.
        num_sanity_val_steps: validation batches to try before training.
        enable_model_summary: Lightning's table of the module's children (the size is printed without it too).
        kwargs: every other argument of `lightning.pytorch.Trainer`.
    """

    def __init__(
        self,
        name: str = "default",
        default_root_dir: str = "runs",
        max_steps: int = -1,
        max_epochs: int | None = None,
        val_check_interval: int | float | str | timedelta | dict[str, int] | None = None,
        log_every_n_steps: int = 10,
        gradient_clip_val: float | None = 1.0,
        logger: Logger | Iterable[Logger] | bool | None = None,
        callbacks: list[Callback] | Callback | None = None,
        default_callbacks: bool = True,
        plugins: Any = None,
        num_sanity_val_steps: int = 0,
        enable_model_summary: bool = False,
        **kwargs: Any,
    ) -> None:
        if not name or Path(name).name != name:
            raise UserError(f"name {name!r} names a folder under default_root_dir {default_root_dir!r}: no slashes")
        self.run_dir = Path(default_root_dir) / name
        callbacks = [callbacks] if isinstance(callbacks, Callback) else list(callbacks or [])
        if default_callbacks:
            callbacks = _missing(callbacks, kwargs) + callbacks
        if logger is None or logger is True:
            logger = TensorBoardLogger(self.run_dir, name="tensorboard", version="")
        plugins = list(plugins) if isinstance(plugins, list | tuple) else [plugins] if plugins is not None else []
        if not any(isinstance(plugin, pl.plugins.io.CheckpointIO) for plugin in plugins):
            plugins.append(AtomicCheckpointIO())
        if isinstance(val_check_interval, int) and not isinstance(val_check_interval, bool):
            # Count steps over the whole run, not from the start of each epoch.
            kwargs["check_val_every_n_epoch"] = None
        super().__init__(
            default_root_dir=str(self.run_dir),
            max_steps=max_steps,
            max_epochs=-1 if max_epochs is None and max_steps == -1 else max_epochs,
            val_check_interval=val_check_interval,
            log_every_n_steps=log_every_n_steps,
            gradient_clip_val=gradient_clip_val,
            logger=logger,
            callbacks=callbacks,
            plugins=plugins,
            num_sanity_val_steps=num_sanity_val_steps,
            enable_model_summary=enable_model_summary,
            **kwargs,
        )

    def fit(self, model: Any, *args: Any, ckpt_path: str | None = None, **kwargs: Any) -> None:
        """Train; `ckpt_path` resumes from a checkpoint, or from the newest whole one with `last`."""
        if ckpt_path is None and not self.fast_dev_run and self.checkpoint_callbacks:
            require_fresh(self.run_dir)
        super().fit(model, *args, ckpt_path=self._resolve(ckpt_path), **kwargs)

    def _resolve(self, ckpt_path: str | None) -> str | None:
        if ckpt_path == "best":
            return str(find_best(self.run_dir))
        if ckpt_path != "last":
            return ckpt_path
        path, damaged = find_last_whole(self.run_dir)
        for problem in damaged:
            rank_zero_warn(f"passed over: {problem}")
        return str(path)


def _missing(callbacks: list[Callback], arguments: dict[str, Any]) -> list[Callback]:
    """The default callbacks of which the user gave no instance, as far as the Trainer's arguments want them."""
    wanted: list[type[Callback]] = [RunFolder, Preflight, NonFiniteGuard, ThroughputMonitor, PredictionWriter]
    if arguments.get("enable_progress_bar", True) is not False:
        wanted.append(TokenProgressBar)
    if arguments.get("enable_checkpointing", True) is not False:
        wanted += [GracefulStop, RunCheckpoint]
    return [kind() for kind in wanted if not any(isinstance(callback, kind) for callback in callbacks)]
