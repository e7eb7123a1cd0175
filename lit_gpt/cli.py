"""The door: `python -m lit_gpt <command>`.

`fit`, `validate`, `test` and `predict` go to the LightningCLI (`lightning_cli.py`); tool commands are functions in
`commands/`, parsed by jsonargparse as well. This file imports neither torch nor Lightning, so that help is instant.
"""

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from jsonargparse import ArgumentParser, DefaultHelpFormatter

from lit_gpt import __version__
from lit_gpt.commands import COMMANDS
from lit_gpt.errors import UserError

TRAINER_COMMANDS = {
    "fit": "train a model: pretraining, and every other objective (config: trainer, model, data)",
    "validate": "measure a checkpoint on the validation split",
    "test": "measure a checkpoint on the test split",
    "predict": "write the loss and bits per byte of each document",
}

EPILOG = """examples:
  python -m lit_gpt fit --config configs/quickstart.yaml
  python -m lit_gpt fit --config configs/quickstart.yaml --trainer.max_steps 100 --model.init_args.preset tiny
  python -m lit_gpt fit --config runs/quickstart/config.yaml --ckpt_path last
  python -m lit_gpt generate --model runs/quickstart --prompt "def "

`python -m lit_gpt <command> --help` says more about each. LIT_GPT_TRACEBACK=1 shows the traceback of an error."""


class HelpFormatter(DefaultHelpFormatter):
    """Keep the line breaks of the examples."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "".join(indent + line for line in text.splitlines(keepends=True))


def main(args: list[str] | None = None) -> int:
    """Run one command.

    Args:
        args: words of the command line; None: those of the process.

    Returns:
        The exit status: 0; 2 for something that the user can put right; 130 or 143 for a training run that Ctrl-C
        or SIGTERM ended after it had saved its checkpoint.
    """
    words = sys.argv[1:] if args is None else args
    try:
        if words and words[0] in TRAINER_COMMANDS:
            from lit_gpt.lightning_cli import run

            return run(words)
        parser = build_parser()
        namespace = parser.parse_args(words)
        name = namespace.subcommand
        arguments = namespace[name]
        while "subcommand" in arguments:
            arguments, name = arguments[arguments.subcommand], f"{name} {arguments.subcommand}"
        values = arguments.as_dict()
        values.pop("config")
        _load(name)(**values)
    except ValueError as error:
        cause = _user_error(error)
        if cause is None or os.environ.get("LIT_GPT_TRACEBACK"):
            raise
        print(f"lit_gpt {words[0]}: error: {cause}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `... | head` closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        return 130
    return 0


def _user_error(error: BaseException | None) -> UserError | None:
    """The `UserError` in a chain of exceptions: jsonargparse wraps what a class raises when it is made."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__ or error.__context__
    return error


def build_parser() -> ArgumentParser:
    """Every command in one help; the Trainer's are named here and parsed by the LightningCLI."""
    parser = ArgumentParser(
        prog="python -m lit_gpt",
        description="The whole life of a language model as PyTorch Lightning plugins.",
        epilog=EPILOG,
        version=__version__,
        formatter_class=HelpFormatter,
    )
    commands = parser.add_subcommands(required=True)
    for name, description in TRAINER_COMMANDS.items():
        commands.add_subcommand(name, ArgumentParser(description=description), help=description)
    groups: dict[str, Any] = {}
    for name in COMMANDS:
        function = _load(name)
        group, _, word = name.partition(" ")
        if word and group not in groups:
            description = (sys.modules[function.__module__].__doc__ or "").strip().splitlines()[0]
            group_parser = ArgumentParser(description=description)
            commands.add_subcommand(group, group_parser, help=description)
            groups[group] = group_parser.add_subcommands(required=True)
        summary = (function.__doc__ or "").strip().splitlines()[0]
        tool = ArgumentParser(description=summary)
        tool.add_argument("--config", action="config", help="read the arguments below from this YAML file")
        tool.add_function_arguments(function, as_positional=False, sub_configs=True)
        (groups[group] if word else commands).add_subcommand(word or group, tool, help=summary)
    return parser


def _load(name: str) -> Callable[..., None]:
    module, _, function = COMMANDS[name].partition(":")
    return getattr(importlib.import_module(module), function)
