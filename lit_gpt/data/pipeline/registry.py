"""From a name and options in the recipe to a step, with errors that name the nearest, and the words of its help."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from lit_gpt.data.cleaning.step import Step
from lit_gpt.data.file_hashes import sha256_file
from lit_gpt.data.pipeline.nearest import unknown_name
from lit_gpt.errors import UserError
from lit_gpt.extras import remedy


@dataclass(frozen=True)
class StepSpec:
    """One step of the recipe.

    Attributes:
        index: Its place among the steps, from 1.
        name: Its name in the registry.
        options: What the recipe sets.
    """

    index: int
    name: str
    options: dict[str, Any]

    @property
    def folder(self) -> str:
        """Name of its folders and files: sorted as the steps are."""
        return f"{self.index:02d}-{self.name}"


def step_classes() -> dict[str, str]:
    """Returns the steps there are: name → "module:Class"."""
    from lit_gpt.data.cleaning import STEPS

    return dict(STEPS)


def step_class(name: str, where: str = "") -> type:
    """Returns a step's class.

    Raises:
        UserError: if there is no such step, naming the nearest; or if the extra that it needs is missing.
    """
    classes = step_classes()
    if name not in classes:
        raise unknown_name("step", name, classes, where)
    return import_object(classes[name].replace(":", "."), f"step {name}")


def import_object(path: str, what: str, extra: str | None = "data") -> Any:
    """Imports `package.module.name`.

    Args:
        path: Where it is.
        what: What it is for, for the message.
        extra: Of this package, that would bring a library which is missing; None: nobody knows which.

    Raises:
        UserError: if it cannot be imported.
    """
    module_name, _, name = path.rpartition(".")
    if not module_name:
        raise UserError(f"{what}: class_path {path!r} has no module; write it as package.module.{path}")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and module_name.startswith(error.name):
            raise UserError(
                f"{what}: there is no module {error.name!r} for class_path {path!r}; "
                "is its folder on PYTHONPATH, or its package installed?"
            ) from error
        missing = (error.name or "").partition(".")[0]
        how = f"pip install {missing}" if extra is None else remedy(extra)
        raise UserError(f"{what} needs {missing}, which is not installed; {how}") from error
    if not hasattr(module, name):
        raise unknown_name("name", name, [n for n in vars(module) if not n.startswith("_")], f"in {module_name}")
    return getattr(module, name)


def code_stamp(class_path: str, what: str, version: str | int = "") -> str:
    """Returns what changes when the user's own code does: its `version`, or else the hash of the file it stands in.

    Args:
        class_path: Where the code is.
        what: What it is for, for messages.
        version: What the user calls it; with one, an edit that changes no document (a comment) changes nothing.
    """
    if version != "":
        return f"version {version}"
    try:
        return sha256_file(Path(inspect.getfile(import_object(class_path, what))))
    except (TypeError, OSError):  # built into Python, or made without a file: nothing that could be edited
        return "no file"


def parameters(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Returns the options that a class or function takes."""
    return {
        name: parameter
        for name, parameter in inspect.signature(target).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }


def call_checked(target: Callable[..., Any], options: Mapping[str, Any], where: str) -> Any:
    """Calls a class or function with options of the recipe, after checking their names and types.

    Args:
        target: What takes the options; types and defaults are those of its signature.
        options: What the recipe sets.
        where: Whose options they are: "step 3 (length)".

    Raises:
        UserError: naming the option, and the nearest one if it does not exist.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    known = parameters(target)
    for name in options:
        if name not in known:
            raise unknown_name("option", name, known, f"of {where}")
    missing = [name for name, p in known.items() if p.default is p.empty and name not in options]
    if missing:
        raise UserError(f"{where} needs {', '.join(missing)}; set it below the name, as in `{missing[0]}: ...`")
    hints = get_type_hints(target.__init__ if inspect.isclass(target) else target)
    values = {}
    for name, value in options.items():
        expected = hints.get(name, Any)
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument(f"--{name}", type=expected)
        try:
            values[name] = parser.parse_object({name: value})[name]
        except ArgumentError as error:
            words = inspect.formatannotation(expected).replace("typing.", "").replace("None", "null")
            raise UserError(f"{where}: {name} is {value!r}; it must be {words}") from error
    try:
        return target(**values)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def build_step(spec: StepSpec) -> Step:
    """Makes a step.

    Raises:
        UserError: for an unknown step or option, or a value that the step does not take.
    """
    where = f"step {spec.index} ({spec.name})"
    step: Step = call_checked(step_class(spec.name, f"at step {spec.index}"), spec.options, where)
    return step


def check_steps(specs: list[StepSpec]) -> None:
    """Makes every step once, so that a mistake in the last one shows before the first has run for hours."""
    for spec in specs:
        build_step(spec)
