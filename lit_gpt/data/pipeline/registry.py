"""From a name and options in the recipe to a step, with errors that name the nearest, and the words of its help."""

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_gpt.data.cleaning.step import Step
from lit_gpt.hashing import sha256_file
from lit_gpt.instantiate import construct, import_object
from lit_gpt.suggest import unknown_name


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
    return import_object(classes[name].replace(":", "."), f"step {name}", "data")


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


def build_step(spec: StepSpec) -> Step:
    """Makes a step.

    Raises:
        UserError: for an unknown step or option, or a value that the step does not take.
    """
    where = f"step {spec.index} ({spec.name})"
    step: Step = construct(step_class(spec.name, f"at step {spec.index}"), spec.options, where)
    return step


def check_steps(specs: list[StepSpec]) -> None:
    """Makes every step once, so that a mistake in the last one shows before the first has run for hours."""
    for spec in specs:
        build_step(spec)
