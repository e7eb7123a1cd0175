"""Generate the pages of the reference from the code: commands, classes, the model config and the presets."""

import ast
import importlib
import inspect
import os
import re
from pathlib import Path
from typing import Any, Literal

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page


def on_startup(command: Literal["build", "gh-deploy", "serve"], dirty: bool) -> None:
    """Encrypt the traffic with the notebooks' kernels, which print a warning otherwise."""
    os.environ.setdefault("JUPYTER_CONFIG_PATH", str(Path(__file__).parent))


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    pages = {
        "reference/commands.md": _commands(),
        "reference/modules.md": _classes("lit_gpt.modules", "Modules", "`model.class_path` of a YAML"),
        "reference/datamodules.md": _classes("lit_gpt.datamodules", "DataModules", "`data.class_path` of a YAML"),
        "reference/callbacks.md": _callbacks(),
        "reference/optim.md": _classes(
            "lit_gpt.optim", "Optimizers and schedules", "`optimizer` and `schedule` of a module"
        ),
        "reference/model-config.md": _model_config(),
        "reference/presets.md": _presets(),
    }
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Mark options in running text (`--ckpt_path last`), which the style sheet keeps together."""
    return re.sub(r"<code>(?=--\w)", '<code class="option">', html)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())


def _code(text: str) -> str:
    """Return a code span; a pipe in it does not end the cell."""
    return f"`{' '.join(text.split())}`" if text else ""


def _options(parser: Any, prefix: str = "") -> list[str]:
    """Return the rows of a table: option, type, default, meaning."""
    rows = []
    for action in parser._actions:
        name = action.dest
        hidden = name in ("help", "config", "print_config", "subcommand") or name.endswith(".help")
        if hidden or not action.option_strings:
            continue
        kind = getattr(action, "_typehint", None)
        written = inspect.formatannotation(kind).replace("typing.", "") if kind is not None else ""
        written = re.sub(r"(\w+\.)+", "", written) or getattr(action.type, "__name__", "")
        written = re.sub(r"^Optional\[(.*)\]$", r"\1 | None", written)
        default = "required" if action.required else _code(repr(action.default))
        rows.append(f"| `{prefix}{name}` | {_code(written)} | {default} | {_cell(str(action.help or ''))} |")
    return rows


_HEAD = ["", "| option | type | default | meaning |", "|---|---|---|---|"]


def _commands() -> str:
    from lit_gpt.cli import COMMANDS, TRAINER_COMMANDS, build_parser

    parser = build_parser()
    lines = ["# Commands", "", "`python -m lit_gpt <command> --help` prints the same.", "", "## Trainer commands", ""]
    lines += [f"- `{name}`: {description}." for name, description in TRAINER_COMMANDS.items()]
    lines += [
        "",
        "They take `--config` (one or several YAML files), and any argument of the YAML on the command line: "
        "`--trainer.max_steps 100`, `--model.init_args.preset tiny`, `--data.init_args.block_size 256`. "
        "`--ckpt_path` resumes: `last`, `best` or a checkpoint's folder. `--print_config` prints the complete YAML.",
    ]
    for name, tool in zip(COMMANDS, parser.tools, strict=True):
        group, _, word = name.partition("-")  # `plan fit-law` is one name for the parser
        title = f"{group} {word}" if group in COMMANDS else name
        lines += ["", f"## {title}", "", tool.description or "", *_HEAD, *_options(tool, "--")]
    return "\n".join(lines) + "\n"


def _classes(package: str, title: str, where: str) -> str:
    module = importlib.import_module(package)
    lines = [f"# {title}", "", f"Names for {where}. Classes of other packages are written by their import path."]
    for name in module.__all__:
        cls = getattr(module, name)
        if inspect.isclass(cls) and not inspect.isabstract(cls):
            lines += _class(cls)
    return "\n".join(lines) + "\n"


def _class(cls: type) -> list[str]:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    try:
        parser.add_class_arguments(cls, fail_untyped=False)
    except ValueError:  # built into torch
        return []
    summary = inspect.getdoc(cls) or ""
    return ["", f"## {cls.__name__}", "", summary.split("\nArgs:")[0].strip(), *_HEAD, *_options(parser)]


def _callbacks() -> str:
    text = _classes("lit_gpt.callbacks", "Callbacks and Trainer", "`trainer.callbacks` of a YAML")
    from lit_gpt.trainer import Trainer

    lines = ["", "## Trainer", "", (inspect.getdoc(Trainer) or "").split("\nArgs:")[0].strip()]
    return text + "\n".join(lines) + "\n"


def _model_config() -> str:
    from lit_gpt.models import GPTConfig

    lines = ["# Model config", "", "Fields of `GPTConfig`: `model.init_args.overrides` changes them in a preset."]
    nested = [GPTConfig]
    for cls in nested:
        source = ast.parse(inspect.getsource(inspect.getmodule(cls)))
        body = next(n for n in ast.walk(source) if isinstance(n, ast.ClassDef) and n.name == cls.__name__).body
        lines += ["", f"## {cls.__name__}", "", "| field | type | default | meaning |", "|---|---|---|---|"]
        for node, after in zip(body, [*body[1:], None], strict=True):
            if not isinstance(node, ast.AnnAssign):
                continue
            meaning = ""
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                meaning = str(after.value.value)
            default = ast.unparse(node.value) if node.value is not None else "required"
            kind = ast.unparse(node.annotation)
            field = ast.unparse(node.target)
            lines.append(f"| `{field}` | {_code(kind)} | {_code(default)} | {_cell(meaning)} |")
            value = inspect.getmodule(cls).__dict__.get(kind.split(" | ")[0])
            if inspect.isclass(value) and hasattr(value, "__dataclass_fields__") and value not in nested:
                nested.append(value)
    return "\n".join(lines) + "\n"


def _presets() -> str:
    from lit_gpt.models.families import get_preset, preset_names

    lines = ["# Presets", "", "`model.init_args.preset`, counted from the config of each.", ""]
    lines += ["| preset | family | parameters | layers | width | heads | context | vocabulary |"]
    lines += ["|---|---|--:|--:|--:|--:|--:|--:|"]
    for name in preset_names():
        c = get_preset(name)
        lines.append(
            f"| `{name}` | {c.family} | {c.num_parameters() / 1e6:,.1f} M | {c.n_layer} | {c.n_embd} | {c.n_head} | "
            f"{c.block_size:,} | {c.vocab_size:,} |"
        )
    return "\n".join(lines) + "\n"
