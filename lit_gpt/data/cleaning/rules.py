"""Simple rules: `length`, `lines`, and `predicate` for a user-defined rule."""

import inspect
from collections.abc import Callable
from typing import Any

from lit_gpt.checks import check_at_least, check_between, check_list
from lit_gpt.data.cleaning.base import Doc, Rejected, Transform, code_fingerprint
from lit_gpt.data.cleaning.words import share, split_words
from lit_gpt.errors import UserError
from lit_gpt.instantiate import construct, import_object


class Length(Transform):
    """Drops documents that are too short or too long. At least one bound must be set.

    Args:
        min_chars: Minimum number of characters, without leading and trailing white space.
        max_chars: Maximum number of characters.
        min_words: Minimum number of words, without punctuation.
        max_words: Maximum number of words.

    Raises:
        UserError: No bound is set.
    """

    name = "length"

    def __init__(
        self,
        min_chars: int | None = None,
        max_chars: int | None = None,
        min_words: int | None = None,
        max_words: int | None = None,
    ) -> None:
        super().__init__()
        if min_chars is max_chars is min_words is max_words is None:
            raise UserError("length has no bound; set one, such as min_chars: 200, or remove length")
        check_at_least("length: min_chars", min_chars, 0)
        check_at_least("length: max_chars", max_chars, max(min_chars or 0, 1))
        check_at_least("length: min_words", min_words, 0)
        check_at_least("length: max_words", max_words, max(min_words or 0, 1))
        self.min_chars = min_chars
        self.max_chars = max_chars
        self.min_words = min_words
        self.max_words = max_words

    def apply(self, document: Doc) -> Doc | Rejected:
        """Return the document, or the reason to drop it."""
        chars = len(document.text.strip())
        if self.min_chars is not None and chars < self.min_chars:
            return Rejected("too_short", f"{chars} characters < {self.min_chars}")
        if self.max_chars is not None and chars > self.max_chars:
            return Rejected("too_long", f"{chars} characters > {self.max_chars}")
        if self.min_words is None and self.max_words is None:
            return document
        words = sum(1 for word in split_words(document.text) if word[0].isalnum() or word[0] == "_")
        if self.min_words is not None and words < self.min_words:
            return Rejected("too_short", f"{words} words < {self.min_words}")
        if self.max_words is not None and words > self.max_words:
            return Rejected("too_long", f"{words} words > {self.max_words}")
        return document


class Lines(Transform):
    """Removes lines, and drops documents whose lines look wrong. At least one rule must be set.

    Empty lines are always kept. Counts `lines_removed`.

    Args:
        min_chars: Lines with fewer characters (without surrounding spaces) are removed.
        max_chars: Lines with more characters are removed.
        min_words: Lines with fewer words are removed.
        max_uppercase: Lines are removed if more than this share of their letters is uppercase (RefinedWeb removes lines
            of only uppercase letters; 0.9 allows for exceptions).
        max_digits: Lines are removed if more than this share of their visible characters are digits.
        containing: Lines that contain one of these phrases (ignoring case) are removed: `[subscribe now, sign in]`.
        max_removed: Documents are dropped if more than this share of their characters was removed (RefinedWeb: 0.05).
        max_mean_chars: Documents are dropped if their mean line length is greater (Codex: 100).
        max_longest_chars: Documents are dropped if their longest line is longer (Codex: 1000).
        min_alphanumeric: Documents are dropped if a smaller share of their characters are letters or digits (The Stack:
            0.25).

    Raises:
        UserError: No rule is set, or a phrase is empty.
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
            check_between(f"lines: {option}", value, 0, 1)
        if containing is not None:
            check_list("lines: containing", containing)
            if not all(phrase.strip() for phrase in containing):
                raise UserError("lines: containing has an empty phrase, which matches every line; remove it")
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
            raise UserError("lines has no rule; set one, such as max_chars: 1000, or remove lines")

    def apply(self, document: Doc) -> Doc | Rejected:
        """Return the document without the lines that break a rule, or the reason to drop it."""
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
        """Return whether a line satisfies all rules for lines."""
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


class Predicate(Transform):
    """Keeps the documents that a user-defined function accepts.

    The function takes a `Doc` (`.text`, `.id`, `.metadata`) and returns True to keep it, or False or the reason as a
    text to drop it. A class is constructed with `init_args`, and the instance is called. The result must depend only on
    the document, so that the output is the same for any number of workers.

    Args:
        class_path: Import path of the function or class: `my_package.my_module.keep`.
        init_args: Keyword arguments of a class; for a function, keyword arguments of each call.
        version: Version of the rule, to be changed when the rule changes. Without it, any change of the file that
            contains the rule counts as a change; set it if the rule depends on more than that file, or in order to edit
            comments freely.

    Raises:
        UserError: `class_path` is neither a function nor a class.
    """

    name = "predicate"

    def __init__(self, class_path: str, init_args: dict[str, Any] | None = None, version: str | int = "") -> None:
        super().__init__()
        target = import_object(class_path, "predicate")
        if not callable(target):
            raise UserError(f"predicate: {class_path} is a {type(target).__name__}; name a function or a class")
        self.class_path = class_path
        self.version = version
        self.init_args = dict(init_args or {})
        options = {} if inspect.isclass(target) else self.init_args
        if inspect.isclass(target):
            target = construct(target, self.init_args, f"predicate {class_path}")
        self._judge: Callable[..., Any] = target
        self._options: dict[str, Any] = options

    def input_fingerprints(self) -> str:
        """Return an identifier of the state of the rule's code."""
        return code_fingerprint(self.class_path, "predicate", self.version)

    def apply(self, document: Doc) -> Doc | Rejected:
        """Return the document, or a rejection with the function's reason.

        Raises:
            UserError: if the function fails or returns something else; the message names the document.
        """
        try:
            answer = self._judge(document, **self._options)
        except Exception as error:
            raise UserError(f"predicate {self.class_path} failed on document {document.id}: {error!r}") from error
        if answer is True:
            return document
        if answer is False:
            return Rejected("predicate", self.class_path)
        if isinstance(answer, str) and answer:
            return Rejected("predicate", answer)
        raise UserError(
            f"predicate {self.class_path} returned {answer!r} for document {document.id}; return True to keep it, "
            "False or the reason as a text to drop it"
        )
