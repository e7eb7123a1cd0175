"""Lightning's Trainer with this project's defaults: a run's folder, atomic checkpoints, logging and progress.

Nothing here is needed to train: a stock `lightning.Trainer` runs the same modules with `AtomicCheckpointIO` among
its plugins and whichever callbacks it is given. This class fills in the usual ones.
"""

import shutil
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_warn

from lit_gpt.callbacks import (
    GracefulStop,
    MixtureProportions,
    NonFiniteGuard,
    PredictionWriter,
    Preflight,
    RunCheckpoint,
    RunFolder,
    ThroughputMonitor,
    TokenProgressBar,
)
from lit_gpt.callbacks.run_folder import require_fresh
from lit_gpt.checkpoints.resolve import find_best, find_last_complete, list_checkpoints
from lit_gpt.errors import UserError
from lit_gpt.plugins import AtomicCheckpointIO


class Trainer(pl.Trainer):
    """A Lightning Trainer whose intervals are optimizer steps and whose checkpoints are complete or absent.

    A run lives in `<default_root_dir>/<name>/`: `config.yaml`, `lineage.json`, `tensorboard/`, `tokenizer/` and
    `checkpoints/`. A resumed run continues in the same folder.

    Args:
        name: of the run, and of its folder.
        default_root_dir: where runs live.
        max_steps: optimizer steps of the run; -1: no limit.
        max_epochs: passes over the training split; None: no limit.
        val_check_interval: validate every so many optimizer steps (an int) or fractions of an epoch (a float).
        log_every_n_steps: optimizer steps between two entries in the log.
        gradient_clip_val: largest norm of the whole gradient; None: no clipping.
        logger: TensorBoard in the run's folder by default; False: none.
        callbacks: in addition; an instance of one of the default callbacks replaces the default.
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
        log_every_n_steps: int = 25,
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
        if "://" in str(default_root_dir):
            raise UserError(
                f"default_root_dir is {default_root_dir}; runs live in a local folder: give one, and copy the run from "
                "there"
            )
        self.run_dir = Path(default_root_dir).expanduser() / name
        callbacks = [callbacks] if isinstance(callbacks, Callback) else list(callbacks or [])
        barebones = bool(kwargs.get("barebones"))  # Lightning's measure of its own overhead: nothing around the loop
        if default_callbacks and not barebones:
            callbacks = _missing(callbacks, kwargs) + callbacks
        if (logger is None or logger is True) and not barebones:
            logger = TensorBoardLogger(self.run_dir, name="tensorboard", version="")
        plugins = list(plugins) if isinstance(plugins, list | tuple) else [plugins] if plugins is not None else []
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            plugins.append(AtomicCheckpointIO())
        if isinstance(val_check_interval, int) and not isinstance(val_check_interval, bool):
            # Count steps over the whole run, not from the start of each epoch.
            kwargs["check_val_every_n_epoch"] = None
        super().__init__(
            default_root_dir=str(self.run_dir),
            max_steps=max_steps,
            max_epochs=-1 if max_epochs is None and max_steps == -1 else max_epochs,
            val_check_interval=val_check_interval,
            log_every_n_steps=None if barebones else log_every_n_steps,
            gradient_clip_val=gradient_clip_val,
            logger=logger,
            callbacks=callbacks,
            plugins=plugins,
            num_sanity_val_steps=num_sanity_val_steps,
            enable_model_summary=enable_model_summary,
            **kwargs,
        )

    def fit(  # type: ignore[override]
        self,
        model: pl.LightningModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: pl.LightningDataModule | None = None,
        ckpt_path: str | None = None,
    ) -> None:
        """Train.

        Args:
            model: the module.
            train_dataloaders: loader of training batches, if there is no DataModule.
            val_dataloaders: loaders of validation batches, if there is no DataModule.
            datamodule: the DataModule.
            ckpt_path: resume from this checkpoint; `last`: from the run's newest complete one.

        Raises:
            UserError: the run's folder holds a run and `ckpt_path` is None, or a setting is refused.
        """
        if ckpt_path is None and not self.fast_dev_run and self.checkpoint_callbacks:  # type: ignore[attr-defined]
            require_fresh(self.run_dir)
        existed = self.run_dir.exists()
        try:
            super().fit(model, train_dataloaders, val_dataloaders, datamodule, self._resolve(ckpt_path))
        except UserError:
            # Refused before the first step: the logger's empty file is all there is.
            if not existed and self.global_step == 0 and self.is_global_zero and not list_checkpoints(self.run_dir):
                shutil.rmtree(self.run_dir, ignore_errors=True)
            raise

    def validate(  # type: ignore[override]
        self,
        model: pl.LightningModule | None = None,
        dataloaders: Any = None,
        ckpt_path: str | None = None,
        verbose: bool = True,
        datamodule: pl.LightningDataModule | None = None,
    ) -> Any:
        """Measure on the validation split.

        Args:
            model: the module.
            dataloaders: loaders, if there is no DataModule.
            ckpt_path: weights to measure: a checkpoint, or `last` or `best` of the run.
            verbose: print the result.
            datamodule: the DataModule.
        """
        return super().validate(model, dataloaders, self._resolve(ckpt_path), verbose, datamodule)

    def test(  # type: ignore[override]
        self,
        model: pl.LightningModule | None = None,
        dataloaders: Any = None,
        ckpt_path: str | None = None,
        verbose: bool = True,
        datamodule: pl.LightningDataModule | None = None,
    ) -> Any:
        """Measure on the test split.

        Args:
            model: the module.
            dataloaders: loaders, if there is no DataModule.
            ckpt_path: weights to measure: a checkpoint, or `last` or `best` of the run.
            verbose: print the result.
            datamodule: the DataModule.
        """
        return super().test(model, dataloaders, self._resolve(ckpt_path), verbose, datamodule)

    def predict(  # type: ignore[override]
        self,
        model: pl.LightningModule | None = None,
        dataloaders: Any = None,
        datamodule: pl.LightningDataModule | None = None,
        return_predictions: bool = False,
        ckpt_path: str | None = None,
    ) -> Any:
        """Write the loss and bits per byte of each document to `predictions.jsonl` in the run's folder.

        Args:
            model: the module.
            dataloaders: loaders, if there is no DataModule.
            datamodule: the DataModule.
            return_predictions: also keep every batch's result in memory and return them.
            ckpt_path: weights to use: a checkpoint, or `last` or `best` of the run.
        """
        return super().predict(model, dataloaders, datamodule, return_predictions, self._resolve(ckpt_path))

    def _resolve(self, ckpt_path: str | None) -> str | None:
        if ckpt_path == "best":
            return str(find_best(self.run_dir))
        if ckpt_path != "last":
            return ckpt_path
        path, damaged = find_last_complete(self.run_dir)
        for problem in damaged:
            rank_zero_warn(f"skipped a damaged checkpoint: {problem}")
        return str(path)


def _missing(callbacks: list[Callback], arguments: dict[str, Any]) -> list[Callback]:
    """The default callbacks of which the user gave no instance, as far as the Trainer's arguments want them."""
    wanted: list[type[Callback]] = [
        RunFolder,
        Preflight,
        NonFiniteGuard,
        MixtureProportions,
        ThroughputMonitor,
        PredictionWriter,
    ]
    has_bar = any(isinstance(callback, ProgressBar) for callback in callbacks)  # Lightning takes one
    if arguments.get("enable_progress_bar", True) is not False and not has_bar:
        wanted.append(TokenProgressBar)
    if arguments.get("enable_checkpointing", True) is not False:
        wanted += [GracefulStop, RunCheckpoint]
    return [kind() for kind in wanted if not any(isinstance(callback, kind) for callback in callbacks)]
