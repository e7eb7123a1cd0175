"""The command line: `python -m lit_gpt <command>`.

`fit`, `validate`, `test` and `predict` are handled by LightningCLI (`lightning_cli.py`); tool commands are functions in
`commands/`, whose arguments jsonargparse derives from their signatures. This module imports neither torch nor
Lightning, so that `--help` is fast.
"""

import importlib
import inspect
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from lit_gpt.checks import check_one_of
from lit_gpt.commands import COMMANDS
from lit_gpt.errors import find_user_error
from lit_gpt.extras import need, versions
from lit_gpt.parser import CommandParser, HelpFormatter
from lit_gpt.quiet import silence_libraries

TRAINER_COMMANDS = {
    "fit": "train a model with any objective (config: trainer, model, data)",
    "validate": "evaluate a checkpoint on the validation split",
    "test": "evaluate a checkpoint on the test split",
    "predict": "write the loss and bits per byte of every document",
}

EPILOG = """examples:
  python -m lit_gpt fit --config configs/quickstart.yaml
  python -m lit_gpt fit --config configs/quickstart.yaml --trainer.max_steps 100 --model.init_args.preset tiny
  python -m lit_gpt fit --config runs/quickstart/config.yaml --ckpt_path last
  python -m lit_gpt generate --model runs/quickstart --prompt "def "

`python -m lit_gpt <command> --help` describes a command. `lit-gpt --completion bash` prints a script that completes
commands and options (also zsh, tcsh). LIT_GPT_TRACEBACK=1 shows the traceback of an error."""


def main(args: list[str] | None = None) -> int:
    """Run one command.

    Args:
        args: command-line arguments; None: those of the process.

    Returns:
        The exit status: 0 on success; 2 for an error that the user can correct; 130 or 143 for a training run that
        saved a checkpoint after Ctrl-C or SIGTERM; or the command's own status (`evaluate`: 3 for a missed gate).
    """
    words = _with_option(sys.argv[1:] if args is None else args)
    silence_libraries()
    try:
        if words[:1] == ["--completion"]:
            print(completion_script(words[1] if len(words) > 1 else "bash"))
            return 0
        if words and words[0] in TRAINER_COMMANDS:
            from lit_gpt.lightning_cli import run

            return run(words)
        parser = build_parser()
        namespace = parser.parse_args(_with_lists(words))
        name = namespace.subcommand
        arguments = namespace[name]
        while "subcommand" in arguments:
            arguments, name = arguments[arguments.subcommand], f"{name} {arguments.subcommand}"
        values = arguments.as_dict()
        function = _load(name)
        if "config" not in inspect.signature(function).parameters:  # jsonargparse's own --config, already applied
            values.pop("config")
        status = function(**values)
    except ValueError as error:
        cause = find_user_error(error)
        if cause is None or os.environ.get("LIT_GPT_TRACEBACK"):
            raise
        print(f"lit_gpt {words[0]}: error: {cause}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `... | head` closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        return 130
    return status or 0


def build_parser() -> CommandParser:
    """Return the parser of all commands; Trainer commands are only listed here and are parsed by LightningCLI."""
    parser = CommandParser(
        prog="python -m lit_gpt",
        description="The complete life cycle of a language model as PyTorch Lightning plugins.",
        epilog=EPILOG,
        version=versions(),
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subcommands(required=True)
    for name, description in TRAINER_COMMANDS.items():
        commands.add_subcommand(name, CommandParser(description=description), help=description)
    groups: dict[str, Any] = {}
    tools: list[CommandParser] = []
    for name in COMMANDS:
        function = _load(name)
        group, _, word = name.partition(" ")
        if word and group not in groups:
            description = (sys.modules[function.__module__].__doc__ or "").strip().splitlines()[0]
            group_parser = CommandParser(description=description)
            commands.add_subcommand(group, group_parser, help=description)
            groups[group] = group_parser.add_subcommands(required=True)
        summary = (function.__doc__ or "").strip().splitlines()[0]
        tool = CommandParser(description=summary)
        tools.append(tool)
        if "config" not in inspect.signature(function).parameters:
            tool.add_argument("--config", action="config", help="YAML file with values for the arguments below")
        tool.add_function_arguments(function, as_positional=False, sub_configs=True)
        tool._action_groups[-1].title = "arguments"  # the summary stands above already
        (groups[group] if word else commands).add_subcommand(word or group, tool, help=summary)
    parser.tools = tools
    return parser


def completion_script(shell: str) -> str:
    """Return the script that completes `lit-gpt`'s commands and the options of its tools in a shell.

    Args:
        shell: bash, zsh or tcsh.

    Raises:
        UserError: If the shell is another, or shtab is not installed.
    """
    shtab = need("shtab", "completion", "shell completion")
    check_one_of("--completion", shell, shtab.SUPPORTED_SHELLS)
    parser = build_parser()
    parser.prog = "lit-gpt"  # a shell completes programs, not `python -m lit_gpt`
    return str(parser.get_completion_script(f"shtab-{shell}"))


def _with_option(words: Sequence[str]) -> list[str]:
    """Put `--model` or `--config` before a first argument without a name: `chat runs/my-run`, `fit my.yaml`."""
    if len(words) < 2 or words[1].startswith("-"):
        return list(words)
    if words[0] in COMMANDS and "model" in inspect.signature(_load(words[0])).parameters:
        return [words[0], "--model", *words[1:]]
    if words[0] in {*TRAINER_COMMANDS, "prepare", "inspect"}:
        run = os.path.join(words[1], "config.yaml")  # the folder of a run stands for its configuration
        return [words[0], "--config", run if os.path.isfile(run) else words[1], *words[2:]]
    return list(words)


def _with_lists(words: Sequence[str]) -> list[str]:
    """Rewrite options to jsonargparse's form: `--files a b` becomes `--files '["a", "b"]'`.

    An `--explain` without a value becomes `--explain topics`, a switch such as `--chat` becomes `--chat true`, and
    `plan fit-law` becomes one word.
    """
    if "-".join(words[:2]) in COMMANDS:
        words = ["-".join(words[:2]), *words[2:]]
    if words[:1] == ["plan-score"] and len(words) > 1 and not words[1].startswith("-"):
        words = [words[0], "--runs", *words[1:]]
    command = next((name for name in (" ".join(words[:2]), " ".join(words[:1])) if name in COMMANDS), None)
    if command is None:
        return list(words)
    parameters = inspect.signature(_load(command)).parameters.values()
    kinds = {f"--{parameter.name}": str(parameter.annotation) for parameter in parameters}
    alone = {f"--{parameter.name}": "true" for parameter in parameters if parameter.annotation is bool}
    alone["--explain"] = "topics"
    gathered: list[str] = []
    rest = list(words)
    while rest:
        gathered.append(rest.pop(0))
        kind = kinds.get(gathered[-1], "")
        if kind.startswith("list[") and rest and not rest[0].startswith(("[", "--")):
            items: list[str] = []
            while rest and not rest[0].startswith("--"):
                items.append(rest.pop(0))
            gathered.append(json.dumps(items) if kind.startswith("list[str]") else f"[{', '.join(items)}]")
        elif gathered[-1] in alone and (not rest or rest[0].startswith("--")):
            gathered.append(alone[gathered[-1]])
    return gathered


def _load(name: str) -> Callable[..., int | None]:
    module, _, function = COMMANDS[name].partition(":")
    return getattr(importlib.import_module(module), function)
