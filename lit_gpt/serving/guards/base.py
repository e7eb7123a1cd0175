"""Base classes of guards: a guard checks texts that go in and out of the server, and redacts or blocks them.

A guard creates a `TextGuard` for each text, which is fed piece by piece and returns what may pass. What may still
become part of a match is held back until it is certain, so that a stream shows the same text as if it had been checked
as a whole. After a text is blocked, nothing more of it passes.

`SpanGuard` is shared by guards that find spans of text. With each piece it checks the text again, from some characters
before what is held back (a detector may use the words before a number) to the end of what has arrived. `open_from`
returns the index from which the text may still change; a finding that overlaps it is held back completely.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from lit_gpt.checks import check_one_of
from lit_gpt.errors import UserError

Action = Literal["pass", "redact", "block"]
"""Ignore a finding; replace it by a tag; refuse the request or end the answer."""
ACTIONS = ("pass", "redact", "block")
Direction = Literal["input", "output"]
CONTEXT_CHARACTERS = 256
"""Number of characters that have passed and are checked again together with new text."""


@dataclass(frozen=True)
class Passed:
    """The result of checking a piece of text.

    Attributes:
        text: Text that may pass.
        redacted: Number of findings that were replaced in it.
        blocked: Whether nothing more may pass.
    """

    text: str = ""
    redacted: int = 0
    blocked: bool = False


class TextGuard(ABC):
    """Checks one text as it grows. It is used by one thread at a time."""

    @abstractmethod
    def feed(self, text: str, last: bool = False) -> Passed:
        """Check the next piece.

        Args:
            text: The piece; may be empty.
            last: Whether the text ends with it, so that nothing is held back.
        """


class Guard(ABC):
    """Base class of all guards; a YAML names one by `class_path`. All requests share it, so it must be stateless.

    Args:
        input: What to do with findings in requests.
        output: What to do with findings in answers.

    Raises:
        UserError: If an action is unknown, or both are `pass`.
    """

    name = "guard"
    """Name in metrics and errors."""

    def __init__(self, input: Action = "block", output: Action = "block") -> None:
        for direction, action in (("input", input), ("output", output)):
            check_one_of(f"{direction} of {self.name}", action, ACTIONS)
        if input == output == "pass":
            raise UserError(f"{self.name} passes everything; set input or output, or remove it")
        self.actions: dict[Direction, Action] = {"input": input, "output": output}

    @abstractmethod
    def text_guard(self, action: Action) -> TextGuard:
        """Return the checker of one text.

        Args:
            action: `redact` or `block`.
        """


class Span(NamedTuple):
    """Characters `start` to `end` of a text, and the tag that replaces them."""

    start: int
    end: int
    tag: str


class SpanGuard(TextGuard):
    """Checks one text by finding spans in it.

    Args:
        action: `redact` or `block`.
    """

    def __init__(self, action: Action) -> None:
        self._action = action
        self._before = ""
        self._held = ""
        self._blocked = False

    @abstractmethod
    def find(self, text: str) -> Iterable[Span]:
        """Yield the findings in a text, in order and without overlaps."""

    @abstractmethod
    def open_from(self, text: str) -> int:
        """Return the index from which on more text could create, lengthen or remove a finding."""

    def feed(self, text: str, last: bool = False) -> Passed:
        """Check the next piece and return what may pass."""
        if self._blocked:
            return Passed(blocked=True)
        self._held += text
        whole = self._before + self._held
        start = len(self._before)
        end = len(whole) if last else max(start, self.open_from(whole))
        if end == start and not last:
            return Passed()
        out: list[str] = []
        redacted, at = 0, start
        for span in self.find(whole):
            if span.end <= start:
                continue
            if span.start >= end:
                break
            if span.end > end:
                end = max(span.start, at)
                break
            if self._action == "block":
                self._blocked = True
                return Passed("".join([*out, whole[at : max(at, span.start)]]), redacted, True)
            out += [whole[at : max(at, span.start)], span.tag]
            at, redacted = max(at, span.end), redacted + 1
        out.append(whole[at:end])
        self._before, self._held = whole[max(0, end - CONTEXT_CHARACTERS) : end], whole[end:]
        return Passed("".join(out), redacted)
