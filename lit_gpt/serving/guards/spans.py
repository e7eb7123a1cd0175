"""Guards that find spans of text: the part that they share, which is when a text may pass on.

The text is looked at again with each piece, from some characters before what is held back (a detector may look at the
words before a number) to the end of what has come. `open_from` says from where on it may still change; a finding that
touches that place is held back whole.
"""

from abc import abstractmethod
from collections.abc import Iterable
from typing import NamedTuple

from lit_gpt.serving.guards.base import Action, Passed, TextGuard

CONTEXT_CHARACTERS = 256
"""Of what has passed on, that is looked at with what is new."""


class Span(NamedTuple):
    """Characters `start` to `end` of a text, and what stands in their place."""

    start: int
    end: int
    tag: str


class SpanGuard(TextGuard):
    """One text, by what is found in it.

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
        """Yield what is found in a text, in order and without overlaps."""

    @abstractmethod
    def open_from(self, text: str) -> int:
        """The place from which on more text could make, lengthen or unmake a finding."""

    def feed(self, text: str, last: bool = False) -> Passed:
        """Take the next piece and return what may pass on."""
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
