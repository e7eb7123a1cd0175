"""`fit`, `validate`, `test` and `predict`: Lightning's own CLI, subclassed.

What is added: this project's Trainer, values linked from data to model, a config that is saved in the run's folder,
and short errors that name the nearest key.
"""

import dataclasses
import os
import re
import sys
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch import Trainer as LightningTrainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger

# Imported for their names: whatever is imported here may be written in a YAML without its package.
import lit_gpt.callbacks
import lit_gpt.datamodules
import lit_gpt.modules
import lit_gpt.optim
import lit_gpt.plugins
from lit_gpt.atomic import atomic_file
from lit_gpt.callbacks import GracefulStop
from lit_gpt.errors import UserError
from lit_gpt.models import GPTConfig
from lit_gpt.suggest import close_matches
from lit_gpt.trainer import Trainer


class ArgumentParser(LightningArgumentParser):
    """Errors in one line, with the nearest name for one that does not exist."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the message and exit with status 2."""
        if os.environ.get("LIT_GPT_TRACEBACK") and ex is not None:
            raise ex
        print(f"lit_gpt: error: {short_message(message)}{self._nearest(message)}", file=sys.stderr)
        sys.exit(2)

    def _nearest(self, message: str) -> str:
        """The known names that look like the ones the message complains about."""
        unknown = re.findall(r"(?:[Oo]ption|keys:|arguments:|path string:) [{'\"-]*([\w.]+)", message)
        known = {part for key in self.get_defaults().keys() for part in key.split(".")}  # noqa: SIM118 (a Namespace)
        known |= {field.name for field in dataclasses.fields(GPTConfig)}
        for package in (lit_gpt.modules, lit_gpt.datamodules, lit_gpt.callbacks, lit_gpt.optim, lit_gpt.plugins):
            kinds = [kind for kind in (getattr(package, name) for name in package.__all__) if isinstance(kind, type)]
            known |= {kind.__name__ for kind in kinds}
            known |= {key for kind in kinds for base in kind.__mro__ for key in _arguments(base)}
        known |= {"trainer", "model", "data", "seed_everything", "ckpt_path", "class_path", "init_args"}
        words = {part for key in unknown for part in key.split(".")} - known
        near = {match for word in words for match in close_matches(word, known, count=3, cutoff=0.6)}
        return f" (nearest: {', '.join(sorted(near))})" if near else ""


def _arguments(kind: type) -> list[str]:
    code = getattr(vars(kind).get("__init__"), "__code__", None)  # None: inherited, or written in C
    return [] if code is None else list(code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount])


def short_message(message: str) -> str:
    """Return jsonargparse's message on one line, without its account of types and values."""
    line = " ".join(message.split())
    line = re.sub(r"Does not validate against any of the Union subtypes Subtypes: .*? Errors: - ", "", line)
    line = line.replace("- Expected a <class 'NoneType'>", "")
    return re.sub(r"\s*(Given value type:|Got value:).*", "", line)


class SaveRunConfig(SaveConfigCallback):
    """Save the whole configuration as `config.yaml` in the run's folder and as text in TensorBoard."""

    def setup(self, trainer: LightningTrainer, pl_module: LightningModule, stage: str) -> None:
        """Do nothing yet: `RunFolder` first makes sure that the folder belongs to this run."""

    def on_train_start(self, trainer: LightningTrainer, pl_module: LightningModule) -> None:
        """Write the file; on a resume, print what differs from the run so far."""
        if not isinstance(trainer, Trainer) or not trainer.is_global_zero:
            return
        text = self.parser.dump(self.config, skip_none=False)
        path = trainer.run_dir / self.config_filename
        if path.exists():
            for line in _differences(yaml.safe_load(path.read_text()), yaml.safe_load(text)):
                print(f"config: {line}")
        with atomic_file(path) as temporary:
            temporary.write_text(text)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text("config", f"```yaml\n{text}\n```", trainer.global_step)


def _differences(before: Any, after: Any, key: str = "") -> list[str]:
    """Lines `key: before -> after` for each leaf that changed."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = sorted(before.keys() | after.keys())
        return [
            line
            for k in keys
            if k not in ("config", "ckpt_path")
            for line in _differences(before.get(k), after.get(k), f"{key}.{k}" if key else k)
        ]
    return [] if before == after else [f"{key}: {before} -> {after}"]


class CLI(LightningCLI):
    """LightningCLI with this project's Trainer; models and DataModules of any package, this one's by short name."""

    def __init__(self, args: list[str]) -> None:
        self._command = args[0]
        super().__init__(
            model_class=LightningModule,
            datamodule_class=LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            trainer_class=Trainer,
            save_config_callback=SaveRunConfig,
            seed_everything_default=0,
            parser_class=ArgumentParser,
            auto_configure_optimizers=False,
            parser_kwargs={"prog": "python -m lit_gpt"},
            # Lightning warns about arguments that are passed while the process has its own.
            args=None if args == sys.argv[1:] else args,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Return the current command alone: the help of four would take four times as long."""
        return {self._command: LightningCLI.subcommands()[self._command]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Link the values that model and data share, so that they are written once, in the data."""
        for name in ("vocab_size", "block_size", "classes"):  # what a module does not accept is not passed
            parser.link_arguments(
                "data", f"model.init_args.{name}", compute_fn=_attribute(name), apply_on="instantiate"
            )
        for target in ("model", "data"):
            parser.link_arguments("seed_everything", f"{target}.init_args.seed")

    def before_validate(self) -> None:
        """Refuse to measure random weights."""
        self._require_weights()

    def before_test(self) -> None:
        """Refuse to measure random weights."""
        self._require_weights()

    def before_predict(self) -> None:
        """Refuse to measure random weights."""
        self._require_weights()

    def _require_weights(self) -> None:
        if self._get(self.config_init, "ckpt_path") is None and getattr(self.model, "init_from", None) is None:
            raise UserError(
                f"{self._command} needs weights: give --ckpt_path last (or best, or a checkpoint of the run "
                f"{self.trainer.run_dir}), or model.init_args.init_from"  # type: ignore[attr-defined]
            )

    def _parse_ckpt_path(self) -> None:
        """Do nothing: what the user wrote is never replaced by what a checkpoint holds (`GPTModule` compares)."""


def _attribute(name: str) -> Any:
    def read(data: LightningDataModule) -> int | None:
        return getattr(data, name, None)

    return read


def run(args: list[str]) -> int:
    """Run a Trainer command.

    Args:
        args: words of the command line, the command first.

    Returns:
        The exit status; 128 + the signal's number if one stopped the run.
    """
    sys.path.insert(0, str(Path.cwd()))  # `class_path: my_module.MyModule` from the working directory
    cli = CLI(args)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()  # gloo aborts a process whose peer leaves while it still talks
        torch.distributed.destroy_process_group()
    stops = [callback.stopped_by for callback in cli.trainer.callbacks if isinstance(callback, GracefulStop)]  # type: ignore[attr-defined]
    signals = [signal for signal in stops if signal is not None]
    return 128 + signals[0] if signals else 0
