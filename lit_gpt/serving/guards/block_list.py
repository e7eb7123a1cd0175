"""Words, phrases and patterns that may not go in or out."""

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import regex

from lit_gpt.errors import UserError
from lit_gpt.serving.guards.base import Action, Guard, TextGuard
from lit_gpt.serving.guards.spans import CONTEXT_CHARACTERS, Span, SpanGuard

TAG = "<REMOVED>"
PATTERN_SECONDS = 1.0
"""For a pattern to find what it finds; beyond, the request fails rather than passes."""
_MAX_SPACES = 4


class BlockListGuard(Guard):
    """Stops texts that hold one of some words, phrases or patterns, or takes them out.

    Words and phrases are found whatever their case and spaces, as whole words.

    Args:
        input: What to do with them in requests.
        output: The same in answers.
        terms: Words and phrases.
        file: A file with one more on each line; empty lines and those that begin with # are left out.
        patterns: Regular expressions, of matches up to 256 characters.

    Raises:
        UserError: There is nothing to look for, the file cannot be read, or a pattern is none.
    """

    name = "block_list"

    def __init__(
        self,
        input: Action = "block",
        output: Action = "block",
        terms: list[str] | None = None,
        file: str | None = None,
        patterns: list[str] | None = None,
    ) -> None:
        super().__init__(input, output)
        words = [term for term in [*(terms or ()), *(_read(file) if file is not None else ())] if term.strip()]
        if not words and not patterns:
            raise UserError("the guard block_list has nothing to look for; give terms, a file or patterns")
        # The longest first, so that of two that begin alike the whole one is taken.
        literal = [_literal(word) for word in sorted(words, key=len, reverse=True)]
        self._pattern = _compiled([*literal, *(patterns or ())], patterns or ())
        longest = max((len(word) + _MAX_SPACES * len(word.split()) for word in words), default=0)
        self._window = max(longest, CONTEXT_CHARACTERS if patterns else 0)

    def text_guard(self, action: Action) -> TextGuard:
        """Return what looks at one text."""
        return _BlockedText(action, self._pattern, self._window)


class _BlockedText(SpanGuard):
    def __init__(self, action: Action, pattern: Any, window: int) -> None:
        super().__init__(action)
        self._pattern = pattern
        self._window = window

    def find(self, text: str) -> Iterable[Span]:
        found = self._pattern.finditer(text, timeout=PATTERN_SECONDS, concurrent=True)
        return [Span(match.start(), match.end(), TAG) for match in found if match.end() > match.start()]

    def open_from(self, text: str) -> int:
        # A partial match: the text from there on is the beginning of a match, or one that has come to the end.
        deadline = time.monotonic() + PATTERN_SECONDS  # of all places together
        for start in range(max(0, len(text) - self._window), len(text)):
            left = max(0.001, deadline - time.monotonic())
            if self._pattern.fullmatch(text, start, partial=True, timeout=left, concurrent=True) is not None:
                return start
        return len(text)


def _read(file: str) -> list[str]:
    try:
        lines = Path(file).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the file {file} of the guard block_list cannot be read: {error}") from error
    return [line.strip() for line in lines if not line.startswith("#")]


def _literal(term: str) -> str:
    spaces = rf"\s{{1,{_MAX_SPACES}}}"
    words = spaces.join(regex.escape(word) for word in term.split())
    before = r"(?<!\w)" if term.strip()[0].isalnum() else ""
    after = r"(?!\w)" if term.strip()[-1].isalnum() else ""
    return f"(?i:{before}{words}{after})"


def _compiled(alternatives: Sequence[str], own: Sequence[str]) -> Any:
    for pattern in own:
        try:
            empty = regex.compile(pattern).match("") is not None
        except regex.error as error:
            raise UserError(f"the pattern {pattern!r} of the guard block_list is none: {error}") from error
        if empty:
            raise UserError(f"the pattern {pattern!r} of the guard block_list matches the empty text, so everything")
    return regex.compile("|".join(f"(?:{alternative})" for alternative in alternatives))
