"""The sample that a reward function receives, and the base class of rewards."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lit_gpt.data.chat import Message


@dataclass(frozen=True)
class Sample:
    """One completion of one prompt, as passed to a reward function.

    Attributes:
        prompt: The conversation to be answered.
        completion: Text of the answer, without its stop token. It is never executed here.
        row: Fields of the prompt's row, such as the correct `answer`.
        num_tokens: Number of tokens of the completion, including its stop token.
        finished: Whether the model ended it, rather than a limit.
        where: `file:row` of the prompt, for messages.
    """

    prompt: list[Message]
    completion: str
    row: dict[str, Any] = field(default_factory=dict)
    num_tokens: int = 0
    finished: bool = True
    where: str = ""


RewardFunction = Callable[[Sample], float]
"""A plain function of a sample; higher is better."""


class Reward(ABC):
    """Base class of rewards; a YAML names one by `class_path`. Functions of a `Sample` are accepted, too."""

    @property
    def name(self) -> str:
        """Name in logs."""
        return reward_name(type(self))

    @abstractmethod
    def __call__(self, sample: Sample) -> float:
        """Return the reward of one sample, a finite number."""

    def check_row(self, row: dict[str, Any]) -> None:  # noqa: B027  (most rewards take any row)
        """Check, before sampling, whether answers to a row's prompt can be rated; by default any row can.

        Raises:
            UserError: if the row lacks something that the reward needs.
        """

    def rate(self, samples: Sequence[Sample]) -> list[float]:
        """Return the rewards of many samples; a reward computed by a model uses batches."""
        return [self(sample) for sample in samples]


def reward_name(reward: Any) -> str:
    """Return a short name for logs: that of a function, or of a class in snake case."""
    named = getattr(reward, "name", None)
    if isinstance(named, str):
        return named
    text: str = getattr(reward, "__name__", type(reward).__name__)
    return "".join(f"_{c.lower()}" if c.isupper() and i else c.lower() for i, c in enumerate(text))
