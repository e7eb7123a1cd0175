"""A measure: something that is asked of a model. One class each, named in the YAML by `class_path`."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol, TypeVar

from lit_gpt.errors import UserError
from lit_gpt.evaluation.progress import Progress, no_progress
from lit_gpt.evaluation.result import Result
from lit_gpt.evaluation.subject import Subject


class Measure(ABC):
    """Base of all measures; a subclass in another project is named in the YAML by its own `class_path`.

    Its arguments are its constructor's; it is picklable data and loads its files in `run`.
    """

    @abstractmethod
    def run(self, subject: Subject, progress: Progress = no_progress) -> list[Result]:
        """Measure a model.

        Args:
            subject: The model.
            progress: Told how far it is.

        Returns:
            One result, or one for each task of a set of tasks.

        Raises:
            UserError: A file is missing, empty or has a bad row, or the model cannot be asked (the message says what
                would help).
        """

    def finish(self, own: list[Result], every: Sequence[Result]) -> list[Result]:
        """Complete its own results when every measure of the plan has run; most have nothing to add.

        Args:
            own: What `run` gave.
            every: The results of all measures.

        Returns:
            Its own results, completed.
        """
        return own


def limited(count: int, limit: int | None) -> int:
    """Returns how many items to take: `count`, or less by the `limit` that one sets for a whole plan.

    Raises:
        UserError: The limit is below 1.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit is {limit}; it must be at least 1, or null for all")
    return count if limit is None else min(count, limit)


class Seeded(Protocol):
    """A measure that draws, and may have a seed of its own."""

    own_seed: int | None
    seed: int


S = TypeVar("S", bound=Seeded)


def seeded(measure: S, seed: int) -> S:
    """Returns a measure that was given no seed of its own, with that of the plan."""
    found = copy.copy(measure)
    found.own_seed = found.seed = seed
    return found
