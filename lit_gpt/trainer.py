"""Lightning's Trainer with this project's defaults: a folder per run, atomic checkpoints, logging and progress.

Nothing here is required for training: a stock `lightning.Trainer` runs the same modules with `AtomicCheckpointIO` among
its plugins and any callbacks. This class adds the usual ones.
"""

import ast
import functools
import inspect
import os
import re
import shutil
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.fabric.connector import _PRECISION_INPUT
from lightning.fabric.plugins import CheckpointIO, ClusterEnvironment
from lightning.pytorch.accelerators import AcceleratorRegistry, CPUAccelerator, CUDAAccelerator
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.plugins import LayerSync, Precision
from lightning.pytorch.strategies import Strategy, StrategyRegistry
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.exceptions import MisconfigurationException

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
from lit_gpt.checkpoints.huggingface.tensors import read_json
from lit_gpt.checkpoints.provenance import LINEAGE
from lit_gpt.checkpoints.resolve import find_best, find_last_complete, list_checkpoints
from lit_gpt.checkpoints.step import step_of
from lit_gpt.checks import check_at_least, check_one_of, local_path
from lit_gpt.errors import UserError
from lit_gpt.planning.hardware import fast_precision
from lit_gpt.plugins import AtomicCheckpointIO, TorchrunEnvironment
from lit_gpt.plugins.strategy import check_processes, unset_node_variables

DEFAULT_CALLBACKS: tuple[type[Callback], ...] = (
    RunFolder,
    Preflight,
    NonFiniteGuard,
    MixtureProportions,
    ThroughputMonitor,
    PredictionWriter,
    TokenProgressBar,
    GracefulStop,
    RunCheckpoint,
)
"""The `Trainer` adds one callback of each of these kinds unless the user gives one."""


ENVIRONMENT = "PL_TRAINER_"
"""Prefix of environment variables that replace defaults of the Trainer's arguments, as in Lightning."""


def environment_variables() -> dict[str, Any]:
    """Return the arguments of Lightning's Trainer that the environment sets, by name.

    Raises:
        UserError: it sets an argument of this class only, which Lightning would pass to its own Trainer.
    """
    for name in ("name", "default_callbacks"):
        if os.environ.get(ENVIRONMENT + name.upper()):
            raise UserError(
                f"{ENVIRONMENT}{name.upper()} is set, but {name} is not an argument of Lightning's Trainer; unset it"
            )
    found = {}
    for name in inspect.signature(pl.Trainer).parameters:
        value = os.environ.get(ENVIRONMENT + name.upper())
        if value:
            try:
                found[name] = ast.literal_eval(value)
            except (ValueError, SyntaxError):  # a string
                found[name] = value
    return found


def _defaults_from_environment(init: Callable[..., None]) -> Callable[..., None]:
    """Let environment variables replace defaults; Lightning's own decorator does not handle arguments of subclasses."""

    @functools.wraps(init)
    def with_defaults(self: Any, *args: Any, **kwargs: Any) -> None:
        given = dict(zip(list(inspect.signature(init).parameters)[1:], args, strict=False)) | kwargs
        init(self, **(environment_variables() | given))

    return with_defaults


class _RunLogger(TensorBoardLogger):
    """TensorBoard events in the run's folder itself, so that TensorBoard shows the run under its own name.

    Args:
        run_dir: the folder; a run that was started with a folder `tensorboard` in it goes on there.
    """

    def __init__(self, run_dir: Path) -> None:
        super().__init__(run_dir, name="tensorboard" if (run_dir / "tensorboard").is_dir() else "", version="")

    def save(self) -> None:
        """Write what is pending, without Lightning's `hparams.yaml`: `config.yaml` has the settings."""
        self.experiment.flush()


class Trainer(pl.Trainer):
    """A Lightning Trainer whose intervals are optimizer steps and whose checkpoints are written atomically.

    A run is stored in `<default_root_dir>/<name>/`: `config.yaml`, `lineage.json`, TensorBoard's events,
    `tokenizer/` and `checkpoints/`. A resumed run continues in the same folder.

    Under `torchrun`, `devices: auto` is its number of processes on all nodes, and a run whose processes it has started
    again resumes from the newest complete checkpoint, also with fewer or more of them.

    Args:
        name: name of the run, and of its folder.
        default_root_dir: folder that contains the folders of runs.
        max_steps: number of optimizer steps of the run; -1: no limit.
        max_epochs: number of passes over the training split; None: no limit.
        val_check_interval: validate every this many optimizer steps (an int) or every fraction of an epoch (a float).
        log_every_n_steps: number of optimizer steps between two log entries.
        precision: as in Lightning, or `auto`: `bf16-mixed` where the devices compute in bfloat16 (GPUs, and CPUs with
            BF16 or AMX units), else `32-true`; a resumed run keeps the precision that it started with.
        gradient_clip_val: maximum norm of the total gradient; None: no clipping.
        logger: None: TensorBoard in the run's folder; False: no logger.
        callbacks: callbacks in addition to the defaults; an instance of a default callback's class replaces it.
        default_callbacks: whether to add the project's default callbacks.
        plugins: Lightning plugins; checkpoints are written by `AtomicCheckpointIO` unless another is given.
        num_sanity_val_steps: number of validation batches to run before training.
        enable_model_summary: print Lightning's table of the module's children (the size is printed in any case).
        kwargs: every other argument of `lightning.pytorch.Trainer`.

    Raises:
        UserError: an argument is invalid, or several callbacks are of one default kind.
    """

    @_defaults_from_environment
    def __init__(
        self,
        name: str = "default",
        default_root_dir: str | None = "runs",
        max_steps: int = -1,
        max_epochs: int | None = None,
        val_check_interval: int | float | str | timedelta | dict[str, int] | None = None,
        log_every_n_steps: int = 25,
        precision: Literal["auto"] | _PRECISION_INPUT | None = None,
        gradient_clip_val: float | None = 1.0,
        logger: Logger | Iterable[Logger] | bool | None = None,
        callbacks: list[Callback] | Callback | None = None,
        default_callbacks: bool = True,
        plugins: Any = None,
        num_sanity_val_steps: int = 0,
        enable_model_summary: bool = False,
        **kwargs: Any,
    ) -> None:
        self.run_dir = _run_folder("runs" if default_root_dir is None else default_root_dir, name)
        callbacks = [callbacks] if isinstance(callbacks, Callback) else list(callbacks or [])
        _check_kinds("callbacks", callbacks, Callback)
        if logger is not None and not isinstance(logger, bool):
            logger = [logger] if isinstance(logger, Logger) else list(logger)
            _check_kinds("logger", logger, Logger)
        for kind in DEFAULT_CALLBACKS:
            if sum(isinstance(callback, kind) for callback in callbacks) > 1:
                raise UserError(f"callbacks has two of {kind.__name__}; a run needs one: combine their options in one")
        barebones = bool(
            kwargs.get("barebones")
        )  # Lightning's mode for measuring its own overhead: no extras around the loop
        if default_callbacks and not barebones:
            callbacks = _missing(callbacks, kwargs) + callbacks
        self._own_logger: _RunLogger | None = None
        if (logger is None or logger is True) and not barebones:
            logger = self._own_logger = _RunLogger(self.run_dir)
        plugins = list(plugins) if isinstance(plugins, list | tuple) else [plugins] if plugins is not None else []
        _check_kinds("plugins", plugins, Precision, CheckpointIO, ClusterEnvironment, LayerSync)
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            plugins.append(AtomicCheckpointIO())
        if TorchrunEnvironment.detect() and not any(isinstance(plugin, ClusterEnvironment) for plugin in plugins):
            plugins.append(TorchrunEnvironment())
        val_check_interval = _validation_interval(val_check_interval)
        if "TORCHELASTIC_RUN_ID" in os.environ and kwargs.get("devices", "auto") == "auto":
            kwargs["devices"] = int(os.environ["LOCAL_WORLD_SIZE"])
            if kwargs.get("num_nodes", 1) == 1:
                kwargs["num_nodes"] = int(os.environ["WORLD_SIZE"]) // kwargs["devices"]
        self.chooses_precision = precision == "auto"
        chosen: Any = self._choose_precision(kwargs.get("accelerator", "auto")) if self.chooses_precision else precision
        _check_arguments(
            kwargs
            | {
                "max_steps": max_steps,
                "max_epochs": max_epochs,
                "log_every_n_steps": log_every_n_steps,
                "gradient_clip_val": gradient_clip_val,
                "num_sanity_val_steps": num_sanity_val_steps,
            }
        )
        if isinstance(val_check_interval, int):
            # Count steps over the whole run, not from the start of each epoch.
            kwargs["check_val_every_n_epoch"] = None
        try:
            super().__init__(
                default_root_dir=str(self.run_dir),
                max_steps=max_steps,
                max_epochs=-1 if max_epochs is None and max_steps == -1 else max_epochs,
                val_check_interval=val_check_interval,
                log_every_n_steps=None if barebones else log_every_n_steps,
                precision=chosen,
                gradient_clip_val=gradient_clip_val,
                logger=logger,
                callbacks=callbacks,
                plugins=plugins,
                num_sanity_val_steps=num_sanity_val_steps,
                enable_model_summary=enable_model_summary,
                **kwargs,
            )
        except (MisconfigurationException, TypeError, ValueError, ImportError) as error:
            raise refusal(error) from error
        check_processes(self, unset_node_variables())

    def fit(  # type: ignore[override]
        self,
        model: pl.LightningModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: pl.LightningDataModule | None = None,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Train the module.

        Args:
            model: the module.
            train_dataloaders: loader of training batches, if there is no DataModule.
            val_dataloaders: loaders of validation batches, if there is no DataModule.
            datamodule: the DataModule.
            ckpt_path: resume from this checkpoint; `last`: from the run's newest complete one; `auto`: likewise, if the
                run has one, else start it, so that one command starts a run and resumes it; None: start a new
                run, or `auto` if `torchrun` started the processes again.
            weights_only: as in Lightning; in any case, a checkpoint never runs code.

        Raises:
            UserError: the run's folder contains a run and `ckpt_path` is None, or a setting is invalid.
        """
        if ckpt_path is None and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)):
            ckpt_path = "auto"
        if ckpt_path == "auto":
            ckpt_path = "last" if list_checkpoints(self.run_dir) else None
            if ckpt_path is not None:
                rank_zero_info(f"resuming {self.run_dir} from its newest checkpoint")
        if ckpt_path is None and not self.fast_dev_run and self.checkpoint_callbacks:  # type: ignore[attr-defined]
            require_fresh(self.run_dir)
        existed = self.run_dir.exists()
        checkpoint = self._resolve(ckpt_path)
        step = None if checkpoint is None else step_of(Path(checkpoint))
        if self._own_logger is not None and step is not None:
            # TensorBoard then hides what an earlier part of the run logged beyond the step that it is resumed from.
            self._own_logger._kwargs["purge_step"] = step + 1
        try:
            super().fit(model, train_dataloaders, val_dataloaders, datamodule, checkpoint, weights_only)
        except UserError:
            # Rejected before the first step: the folder contains only the logger's empty file.
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
        weights_only: bool | None = None,
    ) -> Any:
        """Evaluate on the validation split.

        Args:
            model: the module.
            dataloaders: loaders, if there is no DataModule.
            ckpt_path: weights to evaluate: a checkpoint, or `last` or `best` of the run.
            verbose: whether to print the result.
            datamodule: the DataModule.
            weights_only: see `fit`.
        """
        return super().validate(model, dataloaders, self._resolve(ckpt_path), verbose, datamodule, weights_only)

    def test(  # type: ignore[override]
        self,
        model: pl.LightningModule | None = None,
        dataloaders: Any = None,
        ckpt_path: str | None = None,
        verbose: bool = True,
        datamodule: pl.LightningDataModule | None = None,
        weights_only: bool | None = None,
    ) -> Any:
        """Evaluate on the test split.

        Args:
            model: the module.
            dataloaders: loaders, if there is no DataModule.
            ckpt_path: weights to evaluate: a checkpoint, or `last` or `best` of the run.
            verbose: whether to print the result.
            datamodule: the DataModule.
            weights_only: see `fit`.
        """
        return super().test(model, dataloaders, self._resolve(ckpt_path), verbose, datamodule, weights_only)

    def predict(  # type: ignore[override]
        self,
        model: pl.LightningModule | None = None,
        dataloaders: Any = None,
        datamodule: pl.LightningDataModule | None = None,
        return_predictions: bool = False,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
    ) -> Any:
        """Write the loss and bits per byte of each document to `predictions.jsonl` in the run's folder.

        Args:
            model: the module.
            dataloaders: loaders, if there is no DataModule.
            datamodule: the DataModule.
            return_predictions: whether to also keep every batch's result in memory and return them.
            ckpt_path: weights to use: a checkpoint, or `last` or `best` of the run.
            weights_only: see `fit`.
        """
        return super().predict(
            model, dataloaders, datamodule, return_predictions, self._resolve(ckpt_path), weights_only
        )

    def _choose_precision(self, accelerator: Any) -> Any:
        """Return the precision of the run in the folder, or else the one that is fast on its devices."""
        path = self.run_dir / LINEAGE
        if list_checkpoints(self.run_dir) and path.exists():
            recorded = read_json(path, "restore it, or set trainer.precision").get("precision")
            if recorded is not None:
                rank_zero_info(f"precision auto: {recorded}, as {self.run_dir} was started")
                return recorded
        if isinstance(accelerator, CUDAAccelerator) or accelerator in ("gpu", "cuda"):
            kind = "cuda"
        elif accelerator == "auto":
            kind = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        else:
            kind = "cpu" if isinstance(accelerator, CPUAccelerator) else str(accelerator)
        chosen = fast_precision(kind)
        has = "has" if chosen == "bf16-mixed" else "has no"
        rank_zero_info(f"precision auto: {chosen} ({kind} {has} bfloat16 units)")
        return chosen

    def _resolve(self, ckpt_path: str | None) -> str | None:
        if ckpt_path in ("auto", "hpc") or str(ckpt_path).startswith("registry"):
            raise UserError(f"ckpt_path is {ckpt_path}; it must be last, best, or a step-*.ckpt folder of the run")
        if ckpt_path == "best":
            return str(find_best(self.run_dir))
        if ckpt_path != "last":
            return None if ckpt_path is None else str(local_path("ckpt_path", ckpt_path))
        path, damaged = find_last_complete(self.run_dir)
        for problem in damaged:
            rank_zero_warn(f"skipped a damaged checkpoint: {problem}")
        return str(path)


def _run_folder(default_root_dir: str, name: str) -> Path:
    """Return the folder of a run.

    Raises:
        UserError: it cannot be a folder, or its name is reserved.
    """
    if not isinstance(name, str) or Path(name).name != name or name in ("", ".", ".."):
        raise UserError(f"name is {name!r}; it must be the name of a folder under default_root_dir {default_root_dir}")
    if step_of(Path(name)) is not None:
        raise UserError(f"name is {name!r}, which is reserved for checkpoints; choose another name")
    run_dir = local_path("default_root_dir", default_root_dir) / name
    for path in (run_dir, *run_dir.parents):
        if path.exists() and not path.is_dir():
            raise UserError(f"default_root_dir {default_root_dir} with name {name}: {path} is a file, not a folder")
    return run_dir


COUNTS = {
    "num_nodes": 1,
    "fast_dev_run": 0,
    "max_epochs": -1,
    "min_epochs": 0,
    "max_steps": -1,
    "min_steps": 0,
    "check_val_every_n_epoch": 1,
    "num_sanity_val_steps": -1,
    "log_every_n_steps": 0,
    "reload_dataloaders_every_n_epochs": 0,
}
"""The Trainer's arguments that are whole numbers, each with its smallest value."""

FRACTIONS = (
    "limit_train_batches",
    "limit_val_batches",
    "limit_test_batches",
    "limit_predict_batches",
    "overfit_batches",
)
"""The Trainer's arguments that are a number of batches or a fraction of them."""


def _check_arguments(arguments: dict[str, Any]) -> None:
    """Check the numbers of which Lightning accepts any and fails later, or on which it fails without their name.

    Raises:
        UserError: a number is of another type, or out of bounds.
    """
    for name, value in arguments.items():
        if value is None and name not in ("max_steps", "detect_anomaly"):
            continue
        if name in COUNTS:
            if not isinstance(value, int) or (isinstance(value, bool) and name != "fast_dev_run"):
                remedy = "; -1 means no limit" if COUNTS[name] == -1 else ""
                raise UserError(f"{name} is {value}; it must be a whole number, at least {COUNTS[name]}{remedy}")
            check_at_least(name, value, COUNTS[name])
        elif name in FRACTIONS:
            if not isinstance(value, int | float) or not (0 <= value <= 1 or (value > 0 and isinstance(value, int))):
                raise UserError(
                    f"{name} is {value}; it must be a whole number of batches, at least 0, or a fraction of them (0.25)"
                )
        elif name == "gradient_clip_val":
            if not isinstance(value, int | float):
                raise UserError(f"{name} is {value}; it must be a number, at least 0; leave it out for no clipping")
            check_at_least(name, value, 0, "null or 0 means no clipping")
        elif name == "detect_anomaly":
            check_one_of(name, value, (True, False))
        elif name == "max_time" and not _is_duration(value):
            raise UserError(f"{name} is {value}; it must be {_DURATION}")
        elif name == "accelerator" and isinstance(value, str):
            check_one_of(name, value, ["auto", "gpu", *AcceleratorRegistry.available_accelerators()])
        elif name == "strategy" and not isinstance(value, Strategy):
            if str(value).startswith("{"):  # jsonargparse takes for text what it cannot read as a class
                raise UserError(f"strategy is {value}, which has no class that can be imported, or a wrong argument")
            known = ["auto", *StrategyRegistry.available_strategies()]
            if value not in known:  # the message leaves the variants out
                check_one_of(name, value, [one for one in known if "_find_" not in one and "stage" not in one])
        elif name == "devices":
            _check_devices(value, arguments.get("accelerator", "auto"))


def _check_devices(devices: Any, accelerator: Any) -> None:
    """Raise unless `devices` is a number of devices or a list of GPUs; a CPU has only a number of processes."""
    if accelerator not in ("auto", "cpu", "gpu", "cuda", "mps") or devices == "auto":
        return  # Lightning asks the accelerator
    indices = [part.strip() for part in str(devices).strip("[]() ").split(",")]
    whole = all(re.fullmatch("-?[0-9]+", part) for part in indices)
    has_gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    if accelerator == "cpu" or (accelerator == "auto" and not has_gpu):
        if isinstance(devices, list) or len(indices) > 1 or not whole or int(indices[0]) < 1:
            raise UserError(f"devices is {devices}; on a CPU it must be a number of processes, at least 1, or auto")
    elif not whole or (indices == ["0"] and not isinstance(devices, list)) or len(set(indices)) < len(indices):
        raise UserError(
            f"devices is {devices}; it must be a number of GPUs, at least 1, a list of their indices ([0, 1]), or "
            "-1 or auto for all of them"
        )


def _is_duration(value: Any) -> bool:
    """Return whether a value is a time above 0 as Lightning reads it."""
    try:
        if isinstance(value, dict):
            value = timedelta(**value)
        elif isinstance(value, str) and re.fullmatch(r"\d+:\d\d:\d\d:\d\d", value):
            days, hours, minutes, seconds = map(int, value.split(":"))
            value = timedelta(days, seconds, hours=hours, minutes=minutes)
    except TypeError:  # a key of another name, or text in place of a number
        return False
    return isinstance(value, timedelta) and value > timedelta(0)


def _check_kinds(name: str, values: list[Any], *kinds: type) -> None:
    """Raise unless all elements of the argument `name` are instances of one of Lightning's classes `kinds`."""
    for value in values:
        if not isinstance(value, kinds):
            raise UserError(
                f"{name} contains {value!r}, which is no {' or '.join(kind.__name__ for kind in kinds)} of Lightning; "
                "create one, or in YAML write `class_path: <its class>`"
            )


_DURATION = 'a time above 0: "00:12:00:00" (days, hours, minutes, seconds) or {hours: 12}'


def _validation_interval(interval: Any) -> Any:
    """Return `val_check_interval`, with an integer as an int even if it was written as `1e3`.

    Raises:
        UserError: a number is out of bounds, or it is no number and no time.
    """
    if interval is None or _is_duration(interval):
        return interval
    if isinstance(interval, int | float) and not isinstance(interval, bool):
        if interval > 1 and float(interval).is_integer():
            return int(interval)
        if 0 < interval <= 1:
            return interval
    raise UserError(
        f"val_check_interval is {interval}; it must be a whole number of optimizer steps, at least 1, a fraction of an "
        f"epoch (0.25), or {_DURATION}; to disable validation, set limit_val_batches to 0"
    )


def refusal(error: BaseException) -> UserError:
    """Return Lightning's refusal of a setting as a `UserError`, with the remedy if this machine has no GPU."""
    message = " ".join(str(error).split())
    if not torch.cuda.is_available() and re.search("gpu|cuda|accelerator", message, re.IGNORECASE):
        message += (
            " Here torch finds no GPU: set trainer.accelerator to auto or cpu and trainer.strategy to auto, or install "
            "a torch with CUDA (`python -m lit_gpt doctor` shows what there is)"
        )
    return UserError(message)


def _missing(callbacks: list[Callback], arguments: dict[str, Any]) -> list[Callback]:
    """Return the default callbacks of which the user gave no instance, if the Trainer's arguments enable them."""
    unwanted: list[type[Callback]] = []
    has_bar = any(isinstance(callback, ProgressBar) for callback in callbacks)  # Lightning allows only one
    if arguments.get("enable_progress_bar", True) is False or has_bar:
        unwanted.append(TokenProgressBar)
    if arguments.get("enable_checkpointing", True) is False:
        unwanted += [GracefulStop, RunCheckpoint]
    wanted = [kind for kind in DEFAULT_CALLBACKS if kind not in unwanted]
    return [kind() for kind in wanted if not any(isinstance(callback, kind) for callback in callbacks)]
