"""What a reward sees, and what every reward of the project shares."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lit_gpt.data.chat import Message


@dataclass(frozen=True)
class Sample:
    """One completion of one prompt, as a reward is given it.

    Attributes:
        prompt: The conversation that was to be answered.
        completion: The answer's text, without its stop token. It is text: nothing here ever runs it.
        row: Fields of the prompt's row, such as the right `answer`.
        num_tokens: Tokens of the completion, its stop token included.
        finished: Whether the model ended it itself, rather than a limit.
        where: `file:row` of the prompt, for messages.
    """

    prompt: list[Message]
    completion: str
    row: dict[str, Any] = field(default_factory=dict)
    num_tokens: int = 0
    finished: bool = True
    where: str = ""


RewardFunction = Callable[[Sample], float]
"""A plain function of a sample; larger is better."""


class Reward(ABC):
    """Base of the project's rewards; a YAML names one by `class_path`. Any function of a `Sample` is one as well."""

    @property
    def name(self) -> str:
        """What logs call it."""
        return reward_name(type(self))

    @abstractmethod
    def __call__(self, sample: Sample) -> float:
        """Return the reward of one sample, a finite number."""

    def check_row(self, row: dict[str, Any]) -> None:  # noqa: B027  (most rewards take any row)
        """Check, before anything is drawn, whether answers to a row's prompt can be rated; here any row will do.

        Raises:
            UserError: if the row lacks what the reward looks at.
        """

    def rate(self, samples: Sequence[Sample]) -> list[float]:
        """Return the rewards of many; one that a model computes does it in batches."""
        return [self(sample) for sample in samples]


def reward_name(reward: Any) -> str:
    """Return a short name for logs: a function's own, a class's in lower case with underscores."""
    named = getattr(reward, "name", None)
    if isinstance(named, str):
        return named
    text: str = getattr(reward, "__name__", type(reward).__name__)
    return "".join(f"_{c.lower()}" if c.isupper() and i else c.lower() for i, c in enumerate(text))
