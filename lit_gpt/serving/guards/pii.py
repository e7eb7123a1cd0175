"""Personal data and secrets, found as `prepare` finds them in training text (`lit_gpt.data.cleaning.pii`)."""

import re
from collections.abc import Iterable

from lit_gpt.data.cleaning.pii import KINDS, find_pii
from lit_gpt.errors import UserError
from lit_gpt.serving.guards.base import Action, Guard, TextGuard
from lit_gpt.serving.guards.spans import Span, SpanGuard
from lit_gpt.suggest import unknown_name

_MAX_SPACED_CHARACTERS = 96
"""Of a finding with spaces in it (numbers of accounts, cards, telephones), and of what a detector reads around it."""
_MAX_WORD_CHARACTERS = 16_384
_MAX_KEY_CHARACTERS = 20_480
_LAST_WORD = re.compile(r"(\S+)\s*\Z")
_KEY_BEGINS = "-----BEGIN "
_KEY_HEADER = re.compile(r"-----BEGIN (?P<kind>[A-Z0-9 ]{0,60})-----")
_KEY_ENDS = re.compile(r"-----END [A-Z0-9 ]{0,60}-----")


class PIIGuard(Guard):
    """Takes personal data and secrets out of texts, or stops them.

    Args:
        input: What to do with them in requests.
        output: The same in answers.
        kinds: What to look for: emails, phone_numbers, credit_cards, ibans, ip_addresses, secrets; null: all.

    Raises:
        UserError: A kind is unknown.
    """

    name = "pii"

    def __init__(self, input: Action = "redact", output: Action = "redact", kinds: list[str] | None = None) -> None:
        super().__init__(input, output)
        for kind in kinds or ():
            if kind not in KINDS:
                raise unknown_name("kind", kind, KINDS, "of the guard pii")
        if kinds is not None and not kinds:
            raise UserError("kinds of the guard pii is empty; name some, or leave it out for all")
        self.kinds = tuple(KINDS if kinds is None else kinds)

    def text_guard(self, action: Action) -> TextGuard:
        """Return what looks at one text."""
        return _PIIText(action, self.kinds)


class _PIIText(SpanGuard):
    def __init__(self, action: Action, kinds: tuple[str, ...]) -> None:
        super().__init__(action)
        self._kinds = kinds

    def find(self, text: str) -> Iterable[Span]:
        return [Span(one.start, one.end, KINDS[one.option].tag) for one in find_pii(text, self._kinds)]

    def open_from(self, text: str) -> int:
        return open_from(text)


def open_from(text: str) -> int:
    """The place in a text from which on more of it could make or change a finding.

    Nothing but numbers in groups, and private keys, goes across a space. So what stands before the last space is
    closed, unless the word before it could be one group of more.
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
    """Whether a word may be a group of a number that goes on behind a space, or begin a private key."""
    return (
        any(map(str.isdigit, word))
        or not any(map(str.isalpha, word))  # "(", "-"
        or (len(word) <= 4 and word.isupper())  # a group of an IBAN
    )
