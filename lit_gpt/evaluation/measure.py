"""Base class of all measures; a YAML names a measure's class by `class_path`."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol, TypeVar

from lit_gpt.checks import check_at_least
from lit_gpt.evaluation.progress import Progress, no_progress
from lit_gpt.evaluation.result import Result
from lit_gpt.evaluation.subject import Subject


class Measure(ABC):
    """Base class of all measures; one in another project is named in the YAML by its `class_path`.

    Its settings are the arguments of its constructor. It is picklable and loads its files in `run`.
    """

    @abstractmethod
    def run(self, subject: Subject, progress: Progress = no_progress) -> list[Result]:
        """Measure a model.

        Args:
            subject: The model.
            progress: Called with the amount done and the total.

        Returns:
            One result, or one for each task of a set of tasks.

        Raises:
            UserError: If a file is missing, empty or has a bad row, or the model cannot be measured, with a remedy.
        """

    def finish(self, own: list[Result], every: Sequence[Result]) -> list[Result]:
        """Complete this measure's results after all measures of the plan have run; most have nothing to add.

        Args:
            own: The results of `run`.
            every: The results of all measures.

        Returns:
            The completed results.
        """
        return own


def limited(count: int, limit: int | None) -> int:
    """Return the smaller of `count` and the `limit` of the plan.

    Raises:
        UserError: If the limit is below 1.
    """
    check_at_least("limit", limit, 1, "null for all")
    return count if limit is None else min(count, limit)


class Seeded(Protocol):
    """A measure that samples and may have its own seed."""

    own_seed: int | None
    seed: int


S = TypeVar("S", bound=Seeded)


def seeded(measure: S, seed: int) -> S:
    """Return a copy of a measure without its own seed, with the plan's seed."""
    found = copy.copy(measure)
    found.own_seed = found.seed = seed
    return found
