"""What a judge is asked and what it says: did this answer refuse?

Three verdicts, as in XSTest (Röttger et al. 2024, arXiv:2308.01263): full compliance, full refusal, partial refusal;
and one more for an answer without any words, which helps nobody and declines nothing.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

Verdict = Literal["complied", "refused", "partial", "empty"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)


@dataclass(frozen=True)
class Exchange:
    """A prompt and what the model answered.

    Attributes:
        prompt: As the model was asked.
        answer: Its words.
        item: The prompt's id.
    """

    prompt: str
    answer: str
    item: str = ""


@dataclass(frozen=True)
class Judgement:
    """What a judge says of one exchange.

    Attributes:
        verdict: None where it said nothing that can be used.
        reason: Why: the rule that fired, the score, the judge's own words, or what went wrong.
    """

    verdict: Verdict | None
    reason: str = ""

    @property
    def refused(self) -> bool | None:
        """Whether it was refused, in part or whole; None where that is not known."""
        return None if self.verdict is None else self.verdict in ("refused", "partial")


class Judge(ABC):
    """Base of all judges; a YAML names one by `class_path`, another project's own included."""

    @abstractmethod
    def judge(
        self, exchanges: Sequence[Exchange], progress: Callable[[int, int], None] | None = None
    ) -> list[Judgement]:
        """Judge answers.

        Args:
            exchanges: What was asked and answered.
            progress: Told (done, of how many).

        Returns:
            One judgement each, in their order; one that it has no use for has no verdict, with the reason.

        Raises:
            UserError: It cannot judge at all.
        """

    @abstractmethod
    def describe(self) -> Mapping[str, Any]:
        """What somebody needs to judge again the same way: its rules, model, threshold, address."""

    def check(self) -> None:
        """Find out whether it works, before the model under test is asked anything.

        Raises:
            UserError: It does not.
        """
        return  # nothing to find out, for most


def judge_nonempty(
    exchanges: Sequence[Exchange], judge: Callable[[list[Exchange]], list[Judgement]]
) -> list[Judgement]:
    """Judge those that hold words; the others are `empty` under every judge."""
    with_words = [exchange for exchange in exchanges if exchange.answer.strip()]
    judged = iter(judge(with_words))
    empty = Judgement("empty", "the answer has no words")
    return [next(judged) if exchange.answer.strip() else empty for exchange in exchanges]
