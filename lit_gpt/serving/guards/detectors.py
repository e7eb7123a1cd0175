"""Built-in guards: personal data, a block list, and a custom classifier."""

import math
import re
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import regex

from lit_gpt.checks import check_at_least
from lit_gpt.data.cleaning.pii import KINDS, find_pii
from lit_gpt.errors import UserError
from lit_gpt.instantiate import import_object
from lit_gpt.serving.guards.base import CONTEXT_CHARACTERS, Action, Guard, Passed, Span, SpanGuard, TextGuard
from lit_gpt.suggest import unknown_name

# ------------------------------------------------------------------ personal data

_MAX_SPACED_CHARACTERS = 96
"""Length limits of a finding that contains spaces (account, card, phone numbers), and of a detector's context."""
_MAX_WORD_CHARACTERS = 16_384
_MAX_KEY_CHARACTERS = 20_480
_LAST_WORD = re.compile(r"(\S+)\s*\Z")
_KEY_BEGINS = "-----BEGIN "
_KEY_HEADER = re.compile(r"-----BEGIN (?P<kind>[A-Z0-9 ]{0,60})-----")
_KEY_ENDS = re.compile(r"-----END [A-Z0-9 ]{0,60}-----")


class PIIGuard(Guard):
    """Redacts or blocks personal data and secrets, using the detectors of `prepare`.

    Args:
        input: What to do with findings in requests.
        output: What to do with findings in answers.
        kinds: Kinds to find: emails, phone_numbers, credit_cards, ibans, ip_addresses, secrets; null: all.

    Raises:
        UserError: If a kind is unknown.
    """

    name = "pii"

    def __init__(self, input: Action = "redact", output: Action = "redact", kinds: list[str] | None = None) -> None:
        super().__init__(input, output)
        for kind in kinds or ():
            if kind not in KINDS:
                raise unknown_name("kind", kind, KINDS, "of the guard pii")
        if kinds is not None and not kinds:
            raise UserError("kinds of the guard pii is empty; name some, or omit it for all")
        self.kinds = tuple(KINDS if kinds is None else kinds)

    def text_guard(self, action: Action) -> TextGuard:
        """Return the checker of one text."""
        return _PIIText(action, self.kinds)


class _PIIText(SpanGuard):
    def __init__(self, action: Action, kinds: tuple[str, ...]) -> None:
        super().__init__(action)
        self._kinds = kinds

    def find(self, text: str) -> Iterable[Span]:
        return [Span(one.start, one.end, KINDS[one.option].tag) for one in find_pii(text, self._kinds)]

    def open_from(self, text: str) -> int:
        """Return the index from which on more text could create or change a finding.

        Only grouped numbers and private keys extend across a space. So the text before the last space is certain,
        unless the word before that space could be a group of a longer number.
        """
        at = len(text)
        least = len(text) - _MAX_SPACED_CHARACTERS
        finished = text[-1:].isspace()
        while at > 0:
            word = _LAST_WORD.search(text, max(0, at - _MAX_WORD_CHARACTERS), at)
            if word is None or (finished and not (_may_join(word[1]) and word.start() >= least)):
                break
            at, finished = word.start(), True
        at = max(at, len(text) - _MAX_WORD_CHARACTERS)
        key = text.rfind(_KEY_BEGINS)
        if key >= 0 and len(text) - key < _MAX_KEY_CHARACTERS:
            header = _KEY_HEADER.match(text, key)
            if header is None or ("PRIVATE KEY" in header["kind"] and not _KEY_ENDS.search(text, header.end())):
                at = min(at, key)
        return at


def _may_join(word: str) -> bool:
    """Return whether a word may be a group of a number that continues after a space, or the start of a private key."""
    return (
        any(map(str.isdigit, word))
        or not any(map(str.isalpha, word))  # "(", "-"
        or (len(word) <= 4 and word.isupper())  # a group of an IBAN
    )


# ------------------------------------------------------------------ block list

REMOVED_TAG = "<REMOVED>"
PATTERN_SECONDS = 1.0
"""Time limit for a pattern search in a text; beyond it, the request fails rather than passes."""
_MAX_SPACES = 4


class BlockListGuard(Guard):
    """Blocks or redacts texts that contain certain words, phrases or patterns.

    Words and phrases are matched as whole words, ignoring case and spacing.

    Args:
        input: What to do with findings in requests.
        output: What to do with findings in answers.
        terms: Words and phrases.
        file: File with further terms, one per line; empty lines and those that start with # are ignored.
        patterns: Regular expressions, whose matches may have up to 256 characters.

    Raises:
        UserError: If there is nothing to look for, the file cannot be read, or a pattern is not a regular expression.
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
        # Longest first, so that of two terms with the same beginning the longer one is found.
        literal = [_literal(word) for word in sorted(words, key=len, reverse=True)]
        self._pattern = _compiled([*literal, *(patterns or ())], patterns or ())
        longest = max((len(word) + _MAX_SPACES * len(word.split()) for word in words), default=0)
        self._window = max(longest, CONTEXT_CHARACTERS if patterns else 0)

    def text_guard(self, action: Action) -> TextGuard:
        """Return the checker of one text."""
        return _BlockedText(action, self._pattern, self._window)


class _BlockedText(SpanGuard):
    def __init__(self, action: Action, pattern: Any, window: int) -> None:
        super().__init__(action)
        self._pattern = pattern
        self._window = window

    def find(self, text: str) -> Iterable[Span]:
        found = self._pattern.finditer(text, timeout=PATTERN_SECONDS, concurrent=True)
        return [Span(match.start(), match.end(), REMOVED_TAG) for match in found if match.end() > match.start()]

    def open_from(self, text: str) -> int:
        # A partial match: from there on, the text is the start of a match, or a match that extends to the end.
        deadline = time.monotonic() + PATTERN_SECONDS  # for all positions together
        for start in range(max(0, len(text) - self._window), len(text)):
            left = max(0.001, deadline - time.monotonic())
            if self._pattern.fullmatch(text, start, partial=True, timeout=left, concurrent=True) is not None:
                return start
        return len(text)


def _read(file: str) -> list[str]:
    try:
        lines = Path(file).expanduser().read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the file {file} of the guard block_list cannot be read: {error}") from error
    return [line.strip() for line in lines if not line.startswith("#")]


def _literal(term: str) -> str:
    spaces = rf"\s{{1,{_MAX_SPACES}}}"
    words = spaces.join(regex.escape(word) for word in term.split())
    before = r"(?<!\w)" if term.strip()[0].isalnum() else ""
    after = r"(?!\w)" if term.strip()[-1].isalnum() else ""
    return f"(?i:{before}{words}{after})"


def _compiled(alternatives: Sequence[str], patterns: Sequence[str]) -> Any:
    for pattern in patterns:
        try:
            empty = regex.compile(pattern).match("") is not None
        except regex.error as error:
            raise UserError(f"the pattern {pattern!r} of the guard block_list is not valid: {error}") from error
        if empty:
            raise UserError(f"the pattern {pattern!r} of the guard block_list matches the empty text, so everything")
    return regex.compile("|".join(f"(?:{alternative})" for alternative in alternatives))


# ------------------------------------------------------------------ classifier

Classifier = Callable[[str], float]
"""Maps the whole text so far to a score, such as the probability that it must not pass."""


class ClassifierGuard(Guard):
    """Blocks texts to which a classifier assigns a score of at least `threshold`.

    An answer is held back until the classifier has seen it, some characters at a time; each time it sees the whole
    answer so far. Calls are serialized.

    Args:
        class_path: Import path of a class whose instances are called with a text.
        init_args: Arguments of the class.
        threshold: Minimum score at which a text is blocked.
        every_characters: Number of new characters of an answer between two checks.
        max_characters: Maximum number of characters passed to the classifier, the last ones of the text.
        input: What to do with such requests: pass or block.
        output: What to do with such answers: pass or block.

    Raises:
        UserError: If there is no such class, it does not accept its arguments, or a setting is out of bounds.
    """

    name = "classifier"

    def __init__(
        self,
        class_path: str,
        init_args: dict[str, Any] | None = None,
        threshold: float = 0.5,
        every_characters: int = 200,
        max_characters: int = 20_000,
        input: Action = "block",
        output: Action = "block",
    ) -> None:
        super().__init__(input, output)
        if "redact" in (input, output):
            raise UserError("the guard classifier judges whole texts, so it cannot redact; set block or pass")
        check_at_least("every_characters of the guard classifier", every_characters, 1)
        check_at_least("max_characters of the guard classifier", max_characters, 1)
        if not math.isfinite(threshold):
            raise UserError(f"threshold of the guard classifier is {threshold}; it must be a finite number")
        self.threshold, self.every_characters, self.max_characters = threshold, every_characters, max_characters
        self._class_path = class_path
        target = import_object(class_path, "guard classifier")
        try:
            self._classifier: Classifier = target(**(init_args or {}))
        except TypeError as error:
            raise UserError(f"the guard classifier: {class_path} does not accept {init_args} ({error})") from error
        if not callable(self._classifier):
            raise UserError(f"the guard classifier: an instance of {class_path} cannot be called with a text")
        self._lock = threading.Lock()

    def blocks(self, text: str) -> bool:
        """Return whether a text must not pass.

        Raises:
            TypeError: If the classifier did not return a number.
        """
        with self._lock:
            value = float(self._classifier(text[-self.max_characters :]))
        if math.isnan(value):
            raise TypeError(f"{self._class_path} gave nan")
        return value >= self.threshold

    def text_guard(self, action: Action) -> TextGuard:
        """Return the checker of one text."""
        return _ClassifiedText(self)


class _ClassifiedText(TextGuard):
    def __init__(self, guard: ClassifierGuard) -> None:
        self._guard = guard
        self._seen = self._held = ""
        self._blocked = False

    def feed(self, text: str, last: bool = False) -> Passed:
        self._held += text
        if not self._blocked and self._held and (last or len(self._held) >= self._guard.every_characters):
            self._seen = (self._seen + self._held)[-self._guard.max_characters :]
            self._blocked = self._guard.blocks(self._seen)
            if not self._blocked:
                passed, self._held = self._held, ""
                return Passed(passed)
        return Passed(blocked=self._blocked)
