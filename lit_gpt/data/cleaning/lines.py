"""`lines`: rules about lines, for prose and for code. Every rule is off until a recipe sets it.

Two groups, in this order:

1. rules that remove single lines (RefinedWeb's line-wise corrections, Penedo et al. 2023, arXiv:2306.01116, appendix
   G.2: lines of capitals, of digits, of one word, of a call to action);
2. rules that drop the document for how its lines look (Chen et al. 2021, arXiv:2107.03374, section 3.1, for code: mean
   line length at most 100, longest line at most 1000, enough alphanumeric characters), judged on what is left.
"""

from lit_gpt.data.cleaning.base import PerDocumentStep, check_at_least, check_fraction, check_list
from lit_gpt.data.cleaning.step import Doc, Rejected
from lit_gpt.data.cleaning.words import share, split_words
from lit_gpt.errors import UserError


class Lines(PerDocumentStep):
    """Removes single lines, and drops documents whose lines look wrong. Set at least one rule.

    Empty lines always stay. Counts `lines_removed`.

    Args:
        min_chars: A line with fewer characters (spaces around it not counted) is removed.
        max_chars: A line with more characters is removed.
        min_words: A line with fewer words is removed.
        max_uppercase: A line is removed if more than this share of its letters are capitals (RefinedWeb: lines of
            capitals only; 0.9 allows for exceptions).
        max_digits: A line is removed if more than this share of its visible characters are digits.
        containing: A line that holds one of these phrases is removed (capitals or not): `[subscribe now, sign in]`.
        max_removed: The document is dropped if more than this share of its characters was removed (RefinedWeb: 0.05).
        max_mean_chars: The document is dropped if its lines are longer on average (Codex: 100).
        max_longest_chars: The document is dropped if it has a longer line (Codex: 1000).
        min_alphanumeric: The document is dropped if fewer of its characters are letters or digits (The Stack: 0.25).
    """

    name = "lines"

    def __init__(
        self,
        min_chars: int | None = None,
        max_chars: int | None = None,
        min_words: int | None = None,
        max_uppercase: float | None = None,
        max_digits: float | None = None,
        containing: list[str] | None = None,
        max_removed: float | None = None,
        max_mean_chars: float | None = None,
        max_longest_chars: int | None = None,
        min_alphanumeric: float | None = None,
    ) -> None:
        super().__init__()
        check_at_least("lines: min_chars", min_chars, 0)
        check_at_least("lines: max_chars", max_chars, max(min_chars or 0, 1))
        check_at_least("lines: min_words", min_words, 0)
        check_at_least("lines: max_mean_chars", max_mean_chars, 1)
        check_at_least("lines: max_longest_chars", max_longest_chars, 1)
        for option, value in (
            ("max_uppercase", max_uppercase),
            ("max_digits", max_digits),
            ("max_removed", max_removed),
            ("min_alphanumeric", min_alphanumeric),
        ):
            check_fraction(f"lines: {option}", value)
        if containing is not None:
            check_list("lines: containing", containing)
            if not all(phrase.strip() for phrase in containing):
                raise UserError("lines: containing has an empty phrase, which every line holds; remove it")
        self.min_chars = min_chars
        self.max_chars = max_chars
        self.min_words = min_words
        self.max_uppercase = max_uppercase
        self.max_digits = max_digits
        self.containing = tuple(phrase.lower() for phrase in containing or ())
        self.max_removed = max_removed
        self.max_mean_chars = max_mean_chars
        self.max_longest_chars = max_longest_chars
        self.min_alphanumeric = min_alphanumeric
        self._of_lines = bool(self.containing) or any(
            value is not None for value in (min_chars, max_chars, min_words, max_uppercase, max_digits)
        )
        of_documents = (max_removed, max_mean_chars, max_longest_chars, min_alphanumeric)
        if not self._of_lines and all(value is None for value in of_documents):
            raise UserError("lines has no rule; set one, such as max_chars: 1000, or leave the step out")

    def apply(self, document: Doc) -> Doc | Rejected:
        """Returns the document without the lines that break a rule, or why it is dropped."""
        before = len(document.text)
        if self._of_lines:
            lines = document.text.split("\n")
            kept = [line for line in lines if self.keeps(line)]
            if len(kept) < len(lines):
                document.text = "\n".join(kept)
                if not document.text.strip():
                    return Rejected("lines_none_left", f"all {len(lines)} lines were removed")
                removed = share(before - len(document.text), before)
                if self.max_removed is not None and removed > self.max_removed:
                    return Rejected("lines_many_removed", f"{removed:.0%} of the characters > {self.max_removed:.0%}")
                self.counts["lines_removed"] += len(lines) - len(kept)
        return self._look(document.text) or document

    def keeps(self, line: str) -> bool:
        """Returns whether a line breaks none of the rules for lines."""
        visible = line.strip()
        if not visible:
            return True
        if self.min_chars is not None and len(visible) < self.min_chars:
            return False
        if self.max_chars is not None and len(line) > self.max_chars:
            return False
        if self.min_words is not None and not _has_words(visible, self.min_words):
            return False
        if self.containing:
            lower = visible.lower()
            if any(phrase in lower for phrase in self.containing):
                return False
        if self.max_digits is not None:
            characters = "".join(visible.split())
            if share(sum(map(str.isdecimal, characters)), len(characters)) > self.max_digits:
                return False
        if self.max_uppercase is not None:
            capitals = sum(map(str.isupper, visible))
            return share(capitals, sum(map(str.isalpha, visible))) <= self.max_uppercase
        return True

    def _look(self, text: str) -> Rejected | None:
        if self.max_mean_chars is not None:
            mean = len(text) / (text.count("\n") + 1)
            if mean > self.max_mean_chars:
                return Rejected("lines_long_on_average", f"{mean:.0f} characters > {self.max_mean_chars}")
        if self.max_longest_chars is not None:
            longest = max(map(len, text.split("\n")))
            if longest > self.max_longest_chars:
                return Rejected("lines_too_long", f"one of {longest} characters > {self.max_longest_chars}")
        if self.min_alphanumeric is not None:
            alphanumeric = share(sum(map(str.isalnum, text)), len(text))
            if alphanumeric < self.min_alphanumeric:
                return Rejected(
                    "few_alphanumeric", f"{alphanumeric:.0%} of the characters < {self.min_alphanumeric:.0%}"
                )
        return None


def _has_words(line: str, least: int) -> bool:
    words = (word for word in split_words(line) if any(map(str.isalnum, word)))
    return sum(1 for _ in zip(words, range(least), strict=False)) >= least
