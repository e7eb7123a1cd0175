"""Rewards that compare a completion with a known answer or with a format."""

import re
from fractions import Fraction
from typing import Any

from lit_gpt.checks import check_at_least, check_between
from lit_gpt.errors import UserError
from lit_gpt.rewards.sample import Reward, Sample

_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:/\d+)?")


class ExactAnswer(Reward):
    """1 if the completion's final answer equals the row's, else 0; answers follow `####` as in GSM8K.

    Numbers are compared as numbers (`1,200`, `$1200.00` and `1200` are equal), anything else as text, ignoring case and
    surrounding spaces.

    Args:
        column: Field of the row with the answer, with or without the marker.
        marker: String before the final answer; its last occurrence in a text counts.
        needs_marker: Whether a completion without the marker gets 0; False takes its last number (or the whole
            completion).

    Raises:
        UserError: the marker is empty.
    """

    def __init__(self, column: str = "answer", marker: str = "####", needs_marker: bool = True) -> None:
        if not marker:
            raise UserError("marker of ExactAnswer is empty; give the string before an answer, such as ####")
        self.column = column
        self.marker = marker
        self.needs_marker = needs_marker

    def __call__(self, sample: Sample) -> float:
        """Return 1 or 0.

        Raises:
            UserError: if the row has no such field, or it is empty.
        """
        wanted = self._wanted(sample.row)
        _, marker, given = sample.completion.rpartition(self.marker)
        if not marker:
            if self.needs_marker:
                return 0.0
            numbers = _NUMBER.findall(given.replace(",", ""))
            given = numbers[-1] if numbers and as_number(wanted) is not None else given
        given = given.strip().split("\n")[0]
        return 1.0 if _same(given, wanted) else 0.0

    def check_row(self, row: dict[str, Any]) -> None:
        """Check that the row has the field and that it is not empty."""
        self._wanted(row)

    def _wanted(self, row: dict[str, Any]) -> str:
        if row.get(self.column) is None:
            raise UserError(
                f"no field {self.column!r} to compare with; its fields are {', '.join(map(repr, row)) or 'none'}"
            )
        wanted = str(row[self.column]).rpartition(self.marker)[2]
        if not wanted.strip():
            raise UserError(f"the field {self.column!r} contains no answer: {str(row[self.column])[-40:]!r}")
        return wanted


def as_number(text: str) -> Fraction | None:
    """Return a text's value if it is a number; commas, a currency or percent sign and a period are allowed."""
    plain = text.strip().rstrip(".").replace(",", "").replace(" ", "").strip("$€£%")
    if not _NUMBER.fullmatch(plain) or len(plain) > 1000:
        return None
    try:
        return Fraction(plain)
    except (ValueError, ZeroDivisionError):
        return None


def _same(given: str, wanted: str) -> bool:
    one, other = as_number(given), as_number(wanted)
    if one is not None or other is not None:
        return one == other
    return given.strip().casefold() == wanted.strip().casefold()


class MatchesFormat(Reward):
    r"""1 if the completion matches a regular expression, else 0.

    Args:
        pattern: Regular expression (Python's `re`; `.` also matches line ends), such as `<think>.*</think>.*####.*`.
        whole: Whether the whole completion must match, except for surrounding spaces; False: some part of it.

    Raises:
        UserError: the pattern is not a regular expression.
    """

    def __init__(self, pattern: str, whole: bool = True) -> None:
        try:
            self.pattern = re.compile(pattern, re.DOTALL)
        except re.error as error:
            raise UserError(f"pattern {pattern!r} of MatchesFormat is not a regular expression: {error}") from error
        self.whole = whole

    def __call__(self, sample: Sample) -> float:
        """Return 1 or 0."""
        text = sample.completion.strip()
        return 1.0 if (self.pattern.fullmatch(text) if self.whole else self.pattern.search(text)) else 0.0


class Length(Reward):
    """0 for completions of an acceptable length, falling to -1 outside (DAPO's soft overlong punishment, equation 13).

    Args:
        max_tokens: Length from which on the reward is -1.
        margin: Number of tokens before `max_tokens` over which the reward falls from 0 to -1.
        min_tokens: Minimum length; shorter completions get -1.
        must_finish: Whether a completion that was ended by a limit gets -1, regardless of its length.
    """

    def __init__(self, max_tokens: int, margin: int = 0, min_tokens: int = 0, must_finish: bool = False) -> None:
        check_at_least("max_tokens of Length", max_tokens, 1)
        check_between("margin of Length", margin, 0, max_tokens, "the margin ends at max_tokens")
        check_between("min_tokens of Length", min_tokens, 0, max_tokens - margin, "it must be below the margin")
        self.max_tokens = max_tokens
        self.margin = margin
        self.min_tokens = min_tokens
        self.must_finish = must_finish

    def __call__(self, sample: Sample) -> float:
        """Return a number from -1 to 0."""
        length = sample.num_tokens
        if length < self.min_tokens or (self.must_finish and not sample.finished):
            return -1.0
        start = self.max_tokens - self.margin
        if length <= start:
            return 0.0
        return -1.0 if length >= self.max_tokens else (start - length) / self.margin
