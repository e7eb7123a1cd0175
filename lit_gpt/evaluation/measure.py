"""A measure: something that is asked of a model. One class each, named in the YAML by `class_path`."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from lit_gpt.evaluation.progress import Progress, no_progress
from lit_gpt.evaluation.result import Result
from lit_gpt.evaluation.subject import Subject

__all__ = ["Measure", "Progress", "no_progress"]


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
