"""What the parsers of all commands share: errors in one line that name the right option, and help that is short.

`cli.py` parses the tool commands and `lightning_cli.py` those of the Trainer. Both derive their parser from
`CommandParser` and print their help through `HelpFormatter`. This module imports neither torch nor Lightning.
"""

import math
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, DefaultHelpFormatter

from lit_gpt.suggest import close_matches, unknown_name

Options = Mapping[str, Sequence[str]]
"""The last word of each option (`block_size`) and where an option of that name is set (`data.init_args.block_size`)."""

OTHER_NAMES = {
    "batch_size": ("global_batch_size", "micro_batch_size", "max_batch_size"),
    "per_device_train_batch_size": ("micro_batch_size",),
    "gradient_accumulation_steps": ("global_batch_size", "micro_batch_size"),
    "learning_rate": ("lr",),
    "warmup": ("warmup_steps",),
    "warmup_ratio": ("warmup_steps",),
    "max_grad_norm": ("gradient_clip_val",),
    "grad_clip": ("gradient_clip_val",),
    "epochs": ("max_epochs",),
    "num_epochs": ("max_epochs",),
    "num_train_epochs": ("max_epochs",),
    "steps": ("max_steps",),
    "max_iters": ("max_steps",),
    "eval_steps": ("val_check_interval",),
    "eval_interval": ("val_check_interval",),
    "logging_steps": ("log_every_n_steps",),
    "log_interval": ("log_every_n_steps",),
    "save_steps": ("every_n_steps",),
    "seed": ("seed_everything",),
    "dtype": ("precision",),
    "bf16": ("precision",),
    "fp16": ("precision",),
    "gpus": ("devices",),
    "num_gpus": ("devices",),
    "report_to": ("logger",),
    "run_name": ("name",),
    "output_dir": ("default_root_dir", "out"),
    "out_dir": ("default_root_dir", "out"),
    "output": ("out",),
    "resume": ("ckpt_path",),
    "resume_from_checkpoint": ("ckpt_path",),
    "checkpoint": ("ckpt_path", "model"),
    "model_name_or_path": ("init_from", "model"),
    "pretrained": ("init_from",),
    "dataset": ("files",),
    "train_file": ("files",),
    "max_seq_length": ("block_size",),
    "max_seq_len": ("block_size",),
    "seq_len": ("block_size",),
    "context_length": ("block_size",),
    "max_length": ("block_size", "max_new_tokens"),
    "max_tokens": ("max_new_tokens",),
    "n_embed": ("n_embd",),
    "d_model": ("n_embd",),
    "hidden_size": ("n_embd",),
    "n_layers": ("n_layer",),
    "num_layers": ("n_layer",),
    "num_hidden_layers": ("n_layer",),
    "n_heads": ("n_head",),
    "num_heads": ("n_head",),
    "num_attention_heads": ("n_head",),
    "gradient_checkpointing": ("activation_checkpointing",),
    "lora_r": ("adapter",),
    "lora_rank": ("adapter",),
    "text": ("prompt",),
    "input": ("prompt", "files"),
    "num_return_sequences": ("num_samples",),
}
"""What transformers, TRL, litgpt, nanoGPT and lm-eval call it, and our names; the first ones that exist are named."""

_BASES = {
    "BaseFinetuning", "BasePredictionWriter", "Callback", "Checkpoint", "DummyLogger", "GPTModule",
    "LightningDataModule", "LightningModule",
    "Optimizer", "ProgressBar", "RowDataModule", "SaveConfigCallback", "SaveRunConfig", "Schedule",
    "ScoringModule", "StepDataModule", "TokenDataModule", "WindowDataModule",
}  # fmt: skip
"""Classes that others derive from; nobody names them in a YAML."""


class HelpFormatter(DefaultHelpFormatter):
    """Help without a screen of usage, Sphinx marks and base classes; line breaks of descriptions are kept."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "".join(indent + line for line in text.splitlines(keepends=True))

    def _format_usage(self, usage: str | None, actions: Iterable[Any], groups: Any, prefix: str | None) -> str:
        actions = list(actions)
        words = [self._prog.replace(" [options]", "")]
        required = [action for action in actions if action.required and action.option_strings]
        words += [f"{action.option_strings[0]} {action.metavar or action.dest.upper()}" for action in required]
        if prefix == "":  # argparse asks for the name under which subcommands are called
            return f"{words[0]}\n\n"
        commands = any(not action.option_strings for action in actions)
        return f"usage: {' '.join(words)} {'<command> ...' if commands else '[options]'}\n\n"

    def _expand_help(self, action: Any) -> str:
        text = plain_text(super()._expand_help(action))
        return re.sub(r"known subclasses: ([\w., ]+)", lambda found: f"classes: {_short_names(found[1])}", text)


def plain_text(text: str) -> str:
    """Return the text of a docstring without Sphinx's marks and without defaults, which are printed anyway."""
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"\1", text)  # :class:`~datetime.timedelta`
    text = re.sub(r"\s*Default: ?(``[^`]*``|[\w.]+)\.(?=\s|$)", "", text)
    return text.replace("``", "`")


def _short_names(paths: str) -> str:
    """Return class names in place of import paths, ours first; a name that two classes share keeps its path."""
    names: dict[str, str] = {}
    for path in sorted(paths.split(", "), key=lambda path: not path.startswith("lit_gpt.")):
        name = path.rpartition(".")[2]
        if name not in _BASES:
            names[path if name in names else name] = path
    return ", ".join(names)


class CommandParser(ArgumentParser):
    """A parser whose errors are one line with the command, the value and what to write instead.

    Attributes:
        tools: Parsers of its subcommands.
        class_name: Name of the class in a YAML whose arguments it parses; "" for a command.
    """

    tools: "Sequence[CommandParser]" = ()
    class_name: str = ""

    def options(self) -> Options:
        """Return where each option is set, by the last word of its name."""
        found: dict[str, list[str]] = {}
        for option in (option for parser in (self, *self.tools) for option in parser._option_string_actions):
            if option.startswith("--") and option.strip("-+") not in found.get(_last(option.strip("-+")), ()):
                found.setdefault(_last(option.strip("-+")), []).append(option.strip("-+"))
        return found

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the message and exit with status 2.

        The parser of a class in a YAML, too: its message is the innermost, which jsonargparse would wrap in others.
        """
        if os.environ.get("LIT_GPT_TRACEBACK") and ex is not None:
            raise ex
        parser = getattr(ex, "subcommand_parser", None) or self
        command = _command(parser).removeprefix("python -m ")
        text, hint = short_message(message), self.hint(message, parser)
        missing = re.search("arguments are required: (.*)", message)
        if missing and self.class_name:
            text, hint = (
                f"{self.class_name} needs {missing[1]}",
                f"; add `init_args: {{{missing[1].split(',')[0]}: ...}}`",
            )
        elif self.class_name:
            text = f"{self.class_name}: {text}"
        print(f"{command}: error: {text}{hint}", file=sys.stderr)
        sys.exit(2)

    def add_class_arguments(self, theclass: type, *args: Any, **kwargs: Any) -> list[str]:
        """Add the arguments of a class; the parser of a single class has its name."""
        if not args and not kwargs.get("nested_key"):
            self.class_name = theclass.__name__
        added: list[str] = super().add_class_arguments(theclass, *args, **kwargs)
        return added

    def hint(self, message: str, parser: Any) -> str:
        """Return what to write instead of the unknown options in a message; "" if it names none.

        Args:
            message: jsonargparse's message.
            parser: The parser of the command that failed, which may be a subcommand of this one.
        """
        words = _unknown_options(message)
        if not words:
            return ""
        asked = parser if isinstance(parser, CommandParser) else self
        # A class's own arguments come first; only what none of them resembles is looked for elsewhere.
        own = CommandParser.options(asked) if asked.class_name else {}
        hints = [hint for word in words for hint in _where(word, own) or _where(word, asked.options())]
        mapping = re.match(r'Parser key "([\w.]+)":.*Unexpected keys: ', message, re.DOTALL)
        if mapping:
            # A field of a mapping can only be meant to be another field of it.
            hints = [hint for hint in hints if f"{mapping[1]}." in hint] or hints
        if hints:
            return f" (nearest: {', '.join(dict.fromkeys(hints))})"
        return f"; `{_command(parser)} --help` lists the options" if "path string" not in message else ""


def _command(parser: ArgumentParser) -> str:
    """Return the words that call a parser; those of classes in a YAML have no command of their own."""
    return parser.prog.replace(" [options]", "") if parser.prog.startswith("python") else "python -m lit_gpt"


def _unknown_options(message: str) -> list[str]:
    """Return the last words of the options that a message complains about."""
    unrecognized = re.search(r"unrecognized arguments: (.*)", message, re.DOTALL)
    if unrecognized:
        return [_last(word.lstrip("-").partition("=")[0]) for word in unrecognized[1].split() if word[:2] == "--"]
    names: list[str] = re.findall(r"(?:[Oo]ption|keys:|path string:) [{'\"-]*([\w.]+)", message)
    return [_last(name) for name in dict.fromkeys(names)]


def _where(word: str, options: Options) -> list[str]:
    """Return where an option is set that is called so here, elsewhere, or nearly so."""
    same = list(options.get(word, ()))
    same += [path for name in OTHER_NAMES.get(word, ()) for path in options.get(name, ())]
    return same or [path for name in close_matches(word, options, count=3, cutoff=0.6) for path in options[name]]


# ------------------------------------------------------------------ messages


KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "list": "a list",
    "dict": "a mapping",
    "NoneType": "null",
}
"""Types in jsonargparse's messages, and how they are described to users."""


def short_message(message: str) -> str:
    """Return jsonargparse's message on one line: the key, its value and the expected type."""
    line = re.sub(r"^Call to compute_fn of link .*? failed: ", "", " ".join(message.split()))
    wrong_class = _wrong_class(line)
    if wrong_class:
        return wrong_class
    line = re.sub("- Expected a path but .*? invalid - |- Expected a dot import path string: [^ ]+", "", line)
    if line.startswith("Unexpected config:"):
        what = line.partition(":")[2].strip() or "empty"
        return f"the config is {what}; it must be a mapping with the keys trainer, model and data"
    absent = re.search("File does not exist: '(.*)'", line)
    if absent:
        return _absent_file(Path(absent[1]))
    missing = re.search(r"the following arguments are required: (.*)", line)
    if missing:
        names = [f"--{_last(name)}" for name in missing[1].split(", ")]
        return f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} missing"
    command = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", line)
    if command and "subcommand" in line:
        return str(unknown_name("command", command[1], re.findall(r"[\w-]+", command[2])))
    unexpected = re.match(r'Parser key "([\w.]+)": .*Unexpected keys: \{(.*?)\}', line)
    if unexpected:
        return f"{unexpected[1]} has no field {unexpected[2].replace(chr(39), '')}"
    nested = re.search(r"NestedArg\(key='([\w.]+)', val='?(.*?)'?\)", line)  # one field of a mapping
    if nested:
        line = re.sub(r'Parser key "([\w.]+)"', rf'Parser key "\1.{nested[1]}"', line).replace(nested[0], nested[2])
    found = re.fullmatch(r'Parser key "([\w.]+)": (.*)', line)
    wanted = [] if found is None else re.findall(r"Expected a (<class '[\w.]+'>|typing\.Literal\[[^]]*\])", found[2])
    if found is not None and wanted and not re.search(r"Unexpected|subclass|path string|Option|path but", found[2]):
        outer, inner = (re.search(rf"{words}: (.*?)(?= - Expected| Given value|$)", found[2]) for words in VALUES)
        value = next((match[1] for match in (outer, inner) if match), "")
        if outer and inner and outer[1].startswith(("{", "[")):  # the mistake is in the mapping or list
            return f"{found[1]} is {outer[1]}; {inner[1]} in it must be {_kind(wanted[0])}"
        kinds = list(dict.fromkeys(_kind(one) for one in wanted))
        return f"{found[1]} is {value}; it must be {' or '.join(kinds)}{_remedy(value, kinds)}"
    line = re.sub(r"Does not validate against any of the Union subtypes Subtypes: .*? Errors: - ", "", line)
    line = line.replace("- Expected a <class 'NoneType'>", "")
    return re.sub(r"\s*(Given value type:|Got value:).*", "", line)


VALUES = ("Given value", "Got value")


def _absent_file(path: Path) -> str:
    """Return that a file does not exist, with the nearest name in its folder, as paths from the working directory."""
    near = close_matches(path.name, [found.name for found in path.parent.glob("*")], cutoff=0.8)
    hint = f"; did you mean {os.path.relpath(path.with_name(near[0]))}?" if near else ""
    return f"the file {os.path.relpath(path)} does not exist{hint}"


def _wrong_class(line: str) -> str:
    """Return what is wrong with the class that an option names: unknown or no class; else ""."""
    found = re.match(r'Parser key "([\w.]+)": (.*)', line)
    if found is None:
        return ""
    key, rest = found.groups()
    unknown = re.search(r"Expected a dot import path string: (\S+)", rest)
    value = (re.findall(r"Given value: (.*?)(?= - |$)", rest) or [""])[-1]
    if unknown and not re.search("Expected a <class '(int|float)'>", rest):  # AdamW's lr is a number or a tensor
        return (
            f"{key} has {unknown[1]}, which is no class that can be imported; write `class_path: <class>`, with the "
            "import path (my_package.MyClass) for a class of your own"
        )
    kind = re.search(r"Not a valid subclass of (\w+)", rest)
    if kind and "class_path" not in value:
        return f"{key} is {value}; it must be a {kind[1]}: {{class_path: <class>, init_args: {{...}}}}"
    return ""


def _kind(wanted: str) -> str:
    if wanted.startswith("typing.Literal"):
        return f"one of {wanted.partition('[')[2][:-1]}"
    name = wanted.split("'")[1].rpartition(".")[2]
    return KINDS.get(name, f"a {name}")


def _remedy(value: str, kinds: list[str]) -> str:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if "a whole number" in kinds and number.is_integer():
        return f"; write {int(number)}"
    if "text" in kinds and "a whole number" not in kinds:
        return "; write it in quotes"
    return ""


def _last(name: str) -> str:
    return name.rpartition(".")[2]
