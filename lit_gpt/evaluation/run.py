"""Running a plan: one measure after another, each for itself, so that one that fails loses nobody else's results."""

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tqdm import tqdm

from lit_gpt.errors import UserError, find_user_error
from lit_gpt.evaluation.plan import Plan, PlannedMeasure
from lit_gpt.evaluation.progress import Progress, no_progress
from lit_gpt.evaluation.result import Result
from lit_gpt.evaluation.subject import Subject
from lit_gpt.pages.text import visible

Shown = Callable[[PlannedMeasure], Progress]
"""Called as a measure starts; returns what is told how far it is."""


@dataclass(frozen=True)
class Failure:
    """A measure that gave no result.

    Attributes:
        measure: Its label in the plan.
        error: Why, in one line.
        is_mistake: Whether the user can put it right (a `UserError`); else it is a fault of the code.
    """

    measure: str
    error: str
    is_mistake: bool


@dataclass(frozen=True)
class Outcome:
    """What a plan gave.

    Attributes:
        results: Of the measures that ran to their end, in order, no name twice.
        failures: Of the others.
    """

    results: tuple[Result, ...]
    failures: tuple[Failure, ...]

    @property
    def status(self) -> int:
        """Exit status: 0, 2 where a measure failed for something the user can put right, 1 for a fault of ours."""
        if not self.failures:
            return 0
        return 2 if all(failure.is_mistake for failure in self.failures) else 1


def run_plan(plan: Plan, subject: Subject, shown: Shown | None = None) -> Outcome:
    """Run all measures of a plan.

    Args:
        plan: What is to be measured.
        subject: The model; its seed is the plan's already.
        shown: Shows progress.
    """
    ran: list[tuple[PlannedMeasure, list[Result]]] = []
    failures: list[Failure] = []
    for planned in plan.measures:
        progress = no_progress if shown is None else shown(planned)
        try:
            found = planned.measure.run(subject, progress)
            if not found:
                raise UserError("it gave no result; is what it reads empty?")
            ran.append((planned, found))
        except Exception as error:
            failures.append(_failure(planned, error))
    every = [result for _, found in ran for result in found]
    results: list[Result] = []
    for planned, found in ran:
        try:
            results += planned.measure.finish(found, every)
        except Exception as error:
            results += found
            failures.append(_failure(planned, error))
    return Outcome(uniquely_named(results), tuple(failures))


def _failure(planned: PlannedMeasure, error: Exception) -> Failure:
    """Report a failure at once, and keep it for the report."""
    cause = find_user_error(error)
    told = " ".join((str(cause) if cause is not None else f"{type(error).__name__}: {error}").split())
    lines = visible(f"{planned.label}: failed: {told}")
    if cause is None or os.environ.get("LIT_GPT_TRACEBACK"):
        lines = visible("".join(traceback.format_exception(error)), keep="\n\t") + lines
    tqdm.write(lines, file=sys.stderr)  # clear of a bar that is there
    return Failure(planned.label, told, cause is not None)


def uniquely_named(results: Sequence[Result]) -> tuple[Result, ...]:
    """Number results of equal names: two measures of a class in one plan."""
    taken: set[str] = set()
    named = []
    for result in results:
        name, number = result.name, 1
        while name in taken:
            number += 1
            name = f"{result.name}_{number}"
        taken.add(name)
        named.append(result if name == result.name else replace(result, name=name))
    return tuple(named)
