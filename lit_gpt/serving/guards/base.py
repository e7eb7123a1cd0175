"""What a guard is: it looks at texts that go in and out of the server, and changes or stops them.

A guard gives a `TextGuard` for each text, which is fed piece by piece and gives back what may pass on. What may still
become a match is held back until it is known, so that the text of a stream is the same as if it had been looked at
whole. A text that is stopped passes nothing further on.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

from lit_gpt.errors import UserError

Action = Literal["pass", "redact", "block"]
"""Let it be; put a tag in its place; refuse the request, or end the answer."""
ACTIONS = ("pass", "redact", "block")
Direction = Literal["input", "output"]


@dataclass(frozen=True)
class Passed:
    """What a piece of text came to.

    Attributes:
        text: What may pass on.
        redacted: How many findings were replaced in it.
        blocked: Nothing else may pass.
    """

    text: str = ""
    redacted: int = 0
    blocked: bool = False


class TextGuard(ABC):
    """Looks at one text as it grows. It is used by one thread at a time."""

    @abstractmethod
    def feed(self, text: str, last: bool = False) -> Passed:
        """Take the next piece.

        Args:
            text: The piece; may be empty.
            last: Whether the text ends with it: then nothing is held back.
        """


class Guard(ABC):
    """Base of all guards; a YAML names one by `class_path`. It is shared by all requests, so it keeps no state of one.

    Args:
        input: What to do with findings in requests.
        output: What to do with findings in answers.

    Raises:
        UserError: An action is unknown, or both are `pass`.
    """

    name = "guard"
    """What metrics and errors call it."""

    def __init__(self, input: Action = "block", output: Action = "block") -> None:
        for direction, action in (("input", input), ("output", output)):
            if action not in ACTIONS:
                raise UserError(f"{direction} of {self.name} is {action!r}; it can be {', '.join(ACTIONS)}")
        if input == output == "pass":
            raise UserError(f"{self.name} passes everything; set input or output, or leave it out")
        self.actions: dict[Direction, Action] = {"input": input, "output": output}

    @abstractmethod
    def text_guard(self, action: Action) -> TextGuard:
        """Return what looks at one text.

        Args:
            action: `redact` or `block`.
        """
