"""`fit`, `validate`, `test` and `predict`: a subclass of Lightning's CLI.

It adds this project's Trainer, values linked from data to model, a config that is saved in the run's folder, and short
error messages that name the nearest key.
"""

import dataclasses
import enum
import functools
import inspect
import sys
import traceback
from pathlib import Path
from typing import Any

import lightning.pytorch.callbacks
import lightning.pytorch.plugins
import torch
import yaml
from jsonargparse import get_loader, set_loader
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch import Trainer as LightningTrainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.optim import Optimizer

# Imported for their names: classes imported here may be used in YAML files without their package.
import lit_gpt.callbacks
import lit_gpt.datamodules
import lit_gpt.modules
import lit_gpt.optim
import lit_gpt.plugins
from lit_gpt.adapters import AdapterConfig
from lit_gpt.atomic import atomic_file
from lit_gpt.callbacks import GracefulStop, PlanReceipt
from lit_gpt.errors import UserError, find_user_error
from lit_gpt.instantiate import read_yaml
from lit_gpt.models import GPTConfig
from lit_gpt.parser import CommandParser, HelpFormatter, Options
from lit_gpt.planning.receipt import PLAN
from lit_gpt.rehearsal import rehearse
from lit_gpt.trainer import ENVIRONMENT, Trainer, environment_variables, refusal

COMMON = (
    "help", "config", "print_config", "ckpt_path", "model", "model.help", "data", "data.help", "trainer.name",
    "trainer.default_root_dir", "trainer.max_steps", "trainer.max_epochs", "trainer.val_check_interval",
    "trainer.log_every_n_steps", "trainer.precision", "trainer.accelerator", "trainer.devices", "trainer.num_nodes",
    "trainer.strategy", "trainer.callbacks", "trainer.callbacks.help", "trainer.logger", "trainer.logger.help",
    "seed_everything",
)  # fmt: skip
"""Options that the help begins with."""

DESCRIPTION = """{summary}

  python -m lit_gpt {command} --config my.yaml --trainer.max_steps 100 --data.block_size 256
  python -m lit_gpt {command} --model.help PretrainModule          the options of a module
  python -m lit_gpt {command} --data.help TextDataModule           the options of a DataModule
  python -m lit_gpt {command} --config my.yaml --print_config      a YAML with every option"""


ONLY_FIT = {
    "--plan": ("plan.json", "hold the run to the forecast of `plan --out plan.json`"),
    "--rehearse": ("3m", "try it first: a few steps, a kill, resuming, validating, exporting"),
}
"""Options of `fit` that control how a run is started, not what is trained, and so are in no YAML: (example, help)."""


class ArgumentParser(CommandParser, LightningArgumentParser):
    """Lightning's parser with one-line errors, and help that begins with the usual options."""

    def options(self) -> Options:
        """Return where each option of the Trainer, the modules, the DataModules and what they take is set."""
        found: dict[str, list[str]] = {name: list(paths) for name, paths in super().options().items()}

        def add(name: str, path: str) -> None:
            paths = found.setdefault(name, [])
            if path not in paths:
                paths.append(path)

        for package, prefix in ((lit_gpt.modules, "model.init_args"), (lit_gpt.datamodules, "data.init_args")):
            for kind in _classes(package):
                add(kind.__name__, kind.__name__)
                for name in {name for base in kind.__mro__ for name in _arguments(base)} - {"self", "kwargs"}:
                    add(name, f"{prefix}.{name}")
        for kind in _classes(lit_gpt.callbacks) + _classes(lit_gpt.plugins):
            add(kind.__name__, kind.__name__)
            for name in _arguments(kind):
                add(name, f"{name} of {kind.__name__}")
        makers: dict[str, list[str]] = {}
        for kind in (torch.optim.AdamW, torch.optim.SGD, *_classes(lit_gpt.optim)):
            part = "optimizer" if issubclass(kind, torch.optim.Optimizer) else "schedule"
            add(kind.__name__, kind.__name__)
            for name in _arguments(kind):
                makers.setdefault(f"model.init_args.{part}.init_args.{name}", []).append(kind.__name__)
        for path, names in makers.items():
            add(path.rpartition(".")[2], f"{path} of {' or '.join(names[:3])}")
        for cls, part in ((GPTConfig, "overrides"), (AdapterConfig, "adapter")):
            for field in dataclasses.fields(cls):
                add(field.name, f"model.init_args.{part}.{field.name}")
        return found

    def hint(self, message: str, parser: Any) -> str:
        """Return what to write instead of unknown options, or where a whole configuration is found."""
        if "are required" in message:
            return "; give a YAML, such as --config configs/quickstart.yaml"
        return super().hint(message, parser)


def _classes(package: Any) -> list[type]:
    return [kind for kind in (getattr(package, name) for name in package.__all__) if isinstance(kind, type)]


def _arguments(kind: type) -> list[str]:
    code = getattr(vars(kind).get("__init__"), "__code__", None)  # None: inherited, or written in C
    return [] if code is None else list(code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount])


class SaveRunConfig(SaveConfigCallback):
    """Saves the complete configuration as `config.yaml` in the run's folder and as text in TensorBoard."""

    text = ""
    """The configuration as YAML, in a process that `ddp_spawn` started: parsers cannot be sent there."""

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process needs."""
        return self.__dict__ | {"text": self._text(), "parser": None, "config": None}

    def _text(self) -> str:
        return self.text or str(self.parser.dump(self.config, skip_none=False))

    def setup(self, trainer: LightningTrainer, pl_module: LightningModule, stage: str) -> None:
        """Do nothing: `RunFolder` must first check that the folder belongs to this run."""

    def on_train_start(self, trainer: LightningTrainer, pl_module: LightningModule) -> None:
        """Write the file; on a resume, print the differences from the run so far."""
        if not isinstance(trainer, Trainer) or not trainer.is_global_zero:
            return
        text = self._text()
        path = trainer.run_dir / self.config_filename
        if path.exists():
            for line in _differences(read_yaml(path, "the config of the run, or remove it"), yaml.safe_load(text)):
                print(f"config: {line}")
        with atomic_file(path) as temporary:
            temporary.write_text(text)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text("config", f"```yaml\n{text}\n```", trainer.global_step)


def _differences(before: Any, after: Any, key: str = "") -> list[str]:
    """Return a line `key: before -> after` for each leaf that changed."""
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
    """LightningCLI with this project's Trainer; built-in models and DataModules can be given by short name."""

    def __init__(self, args: list[str], plan: str | None = None) -> None:
        self._command, self._plan = args[0], plan
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
            parser_kwargs={"prog": "python -m lit_gpt", "allow_abbrev": False, "formatter_class": HelpFormatter},
            args=args,
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the arguments; Lightning would warn if the process has others of its own."""
        self.config = parser.parse_args(args)

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Return only the current command, because building the help of all four takes four times as long."""
        # A checkpoint never runs code, so weights_only has no effect.
        return {self._command: LightningCLI.subcommands()[self._command] | {"weights_only"}}

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        """Add the arguments, and arrange them for the help: the usual ones first, then the rest of the Trainer's."""
        summary = (getattr(klass, subcommand).__doc__ or "").partition("\n")[0]
        description = DESCRIPTION.format(summary=summary, command=subcommand)
        if subcommand == "fit":
            lines = [f"{option} {example}".ljust(32) + help for option, (example, help) in ONLY_FIT.items()]
            description += "".join(f"\n  python -m lit_gpt fit --config my.yaml {line}" for line in lines)
        kwargs["description"] = description
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        order = {name: position for position, name in enumerate(COMMON)}
        groups = parser._action_groups
        named = {
            max(a.option_strings, key=len).strip("-+"): a for g in groups for a in g._group_actions if a.option_strings
        }
        common, trainer = parser.add_argument_group("usual options"), parser.add_argument_group("Trainer")
        common._group_actions = [named[name] for name in sorted(named.keys() & order.keys(), key=order.__getitem__)]
        trainer._group_actions = [a for name, a in named.items() if name.startswith("trainer.") and name not in order]
        parser._action_groups = [common, trainer]
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Link the values that model and data share, so that they are set only once, in the data."""
        for name in ("vocab_size", "block_size", "classes"):  # passed only if the module accepts them
            parser.link_arguments(
                "data", f"model.init_args.{name}", compute_fn=_attribute(name), apply_on="instantiate"
            )
        for target in ("model", "data"):
            parser.link_arguments("seed_everything", f"{target}.init_args.seed", compute_fn=_seed)

    def instantiate_classes(self) -> None:
        """Build trainer, model and data; what Lightning or a missing package refuses is the user's to mend.

        Raises:
            UserError: A setting does not fit this machine, or a package is missing.
        """
        try:
            super().instantiate_classes()
        except (ImportError, MisconfigurationException, ValueError) as error:
            refused = _refusal(error)
            if refused is error:
                raise  # with its cause, which `raise error from error` would replace
            raise refused from error
        sealed = self.trainer.run_dir / PLAN  # type: ignore[attr-defined]
        if self._plan is None and self._get(self.config_init, "ckpt_path") is not None and sealed.exists():
            self._plan = str(sealed)  # a sealed run stays so when it is resumed
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        if self._command == "fit" and self._plan is not None and not any(isinstance(c, PlanReceipt) for c in callbacks):
            callbacks.append(PlanReceipt(self._plan))

    def before_validate(self) -> None:
        """Raise if the weights would be random."""
        self._require_weights()

    def before_test(self) -> None:
        """Raise if the weights would be random."""
        self._require_weights()

    def before_predict(self) -> None:
        """Raise if the weights would be random."""
        self._require_weights()

    def _require_weights(self) -> None:
        if self._get(self.config_init, "ckpt_path") is None and getattr(self.model, "init_from", None) is None:
            raise UserError(
                f"{self._command} needs weights: give --ckpt_path last (or best, or a checkpoint of the run "
                f"{self.trainer.run_dir}), or model.init_args.init_from"  # type: ignore[attr-defined]
            )

    def _parse_ckpt_path(self) -> None:
        """Do nothing: values from the user are never replaced by those in a checkpoint (`GPTModule` compares them)."""


def _refusal(error: BaseException) -> BaseException:
    """Return Lightning's refusal of a setting, or a missing package, as a `UserError`; any other error as it is."""
    root = error
    while root.__cause__ is not None and find_user_error(error) is None:  # jsonargparse wraps what a class raises
        root = root.__cause__
    frames = [frame for frame, _ in traceback.walk_tb(root.__traceback__)]
    in_lightning = bool(frames) and frames[-1].f_globals.get("__name__", "").startswith("lightning")
    refused = in_lightning or isinstance(root, (ImportError, MisconfigurationException))
    if find_user_error(error) is not None or not refused:
        return error
    return refusal(root)


def _attribute(name: str) -> Any:
    def read(data: LightningDataModule) -> int | None:
        return getattr(data, name, None)

    return read


def _seed(value: bool | int | None) -> int:
    if value is None or isinstance(value, bool) or not 0 <= value < 2**32:
        raise UserError(
            f"seed_everything is {value}; it must be a whole number from 0 to {2**32 - 1}, so that the run "
            "can be repeated"
        )
    return value


@functools.cache
def _full_paths() -> dict[str, str]:
    """Return the import paths of classes whose short names jsonargparse does not find, or finds elsewhere too.

    Lightning has callbacks of the same names, and bitsandbytes, once anything has imported it, optimizers.
    """
    optimizers = [kind for kind in vars(torch.optim).values() if inspect.isclass(kind)]
    names = {kind.__name__: f"torch.optim.{kind.__name__}" for kind in optimizers if issubclass(kind, Optimizer)}
    names |= {name: f"lightning.pytorch.plugins.{name}" for name in lightning.pytorch.plugins.__all__}
    names |= {name: f"lit_gpt.plugins.{name}" for name in lit_gpt.plugins.__all__}
    both = {name for name in lit_gpt.callbacks.__all__ if hasattr(lightning.pytorch.callbacks, name)}
    return names | {name: f"lit_gpt.callbacks.{name}" for name in both}


def _with_full_paths(value: Any) -> Any:
    """Expand short names in `class_path`: `plugins` may be anything to jsonargparse, and some names exist twice."""
    if isinstance(value, list):
        return [_with_full_paths(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: _full_paths().get(str(item), item) if key == "class_path" else _with_full_paths(item)
        for key, item in value.items()
    }


def take_fit_options(args: list[str]) -> tuple[list[str], dict[str, str]]:
    """Split the options of `ONLY_FIT` off the arguments of a command.

    Returns:
        The other arguments, and the values of the options that are given.

    Raises:
        UserError: an option has no value.
    """
    rest, found = [], {}
    words = iter(args)
    for word in words:
        name, equals, value = word.partition("=")
        if args[0] != "fit" or name not in ONLY_FIT:
            rest.append(word)
            continue
        value = value if equals else next(words, "")
        if not value or value.startswith("--"):
            raise UserError(f"{name} has no value; write `{name} {ONLY_FIT[name][0]}`")
        found[name] = value
    return rest, found


def run(args: list[str]) -> int:
    """Run a Trainer command.

    Args:
        args: command-line arguments, starting with the command.

    Returns:
        The exit status; 128 + the signal's number if a signal stopped the run.
    """
    args, options = take_fit_options(args)
    sys.path.insert(0, str(Path.cwd()))  # `class_path: my_module.MyModule` from the working directory
    # Lightning writes the configuration with PyYAML, which knows no enum: `Timer` has one as a default.
    yaml.SafeDumper.add_multi_representer(enum.Enum, lambda dumper, item: dumper.represent_data(item.value))
    load = get_loader("yaml")
    set_loader("yaml", lambda text: _with_full_paths(load(text)), (yaml.YAMLError,))
    for name in environment_variables():
        variable = ENVIRONMENT + name.upper()
        print(f"lit_gpt: {variable} is ignored on the command line; write --trainer.{name}", file=sys.stderr)
    if "--rehearse" in options:
        return rehearse(args[1:], options["--rehearse"])
    try:
        cli = CLI(args, options.get("--plan"))
    except MisconfigurationException as error:
        raise refusal(error) from error
    if torch.distributed.is_initialized():
        torch.distributed.barrier()  # gloo aborts a process whose peer exits during communication
        torch.distributed.destroy_process_group()
    stops = [callback.stopped_by for callback in cli.trainer.callbacks if isinstance(callback, GracefulStop)]  # type: ignore[attr-defined]
    signals = [signal for signal in stops if signal is not None]
    return 128 + signals[0] if signals else 0
