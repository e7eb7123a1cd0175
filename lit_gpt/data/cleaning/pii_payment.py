"""Where payment cards and bank accounts stand in a text: their check digits tell them from other digits.

Linear in time, as in `pii_network.py`.
"""

import re
from collections.abc import Iterator
from datetime import date

from lit_gpt.data.cleaning.checksums import IBAN_LENGTHS, iban_valid, luhn_valid
from lit_gpt.data.cleaning.pii_network import Span

_CARD = re.compile(
    r"[2-6](?<![\w.,+/@$£€\-].)(?:\d{3}(?P<s>[ \-])\d{4}(?P=s)\d{4}(?P=s)\d{4}(?:(?P=s)\d{3})?"
    r"|\d{3}(?P<t>[ \-])\d{6}(?P=t)\d{4,5}|\d{12,18})"
    r"(?![\w]|[.,\-:/]\d|[ ]\d{4})"
)
# Issuer ranges (ISO/IEC 7812) and the lengths that the schemes issue.
_SCHEMES = re.compile(
    r"4\d{12}(?:\d{3}(?:\d{3})?)?|(?:5[1-5]\d{2}|222[1-9]|22[3-9]\d|2[3-6]\d{2}|27[01]\d|2720)\d{12}|3[47]\d{13}|3(?:0[0-5]|[68]\d)\d{11}"
    r"|(?:6011|65\d{2}|64[4-9]\d)\d{12}|35(?:2[89]|[3-8]\d)\d{12}|62\d{14,17}"
)


def find_credit_cards(text: str) -> Iterator[Span]:
    """Yields payment card numbers: grouped as on a card or in one piece, of a scheme's range and length, Luhn-valid."""
    for match in _CARD.finditer(text):
        digits = match[0].replace(" ", "").replace("-", "")
        in_one_piece = digits == match[0]
        if not _SCHEMES.fullmatch(digits) or not luhn_valid(digits) or len(set(digits)) == 1:
            continue
        if not (in_one_piece and _looks_like_time(digits)):
            yield match.span()


def _looks_like_time(digits: str) -> bool:
    """Returns whether the digits begin like YYYYMMDDhhmmss, as in names of files and log lines."""
    if not 14 <= len(digits) <= 17:
        return False
    year, month, day, hour, minute = (int(digits[a:b]) for a, b in ((0, 4), (4, 6), (6, 8), (8, 10), (10, 12)))
    try:
        date(year, month, day)
    except ValueError:
        return False
    return year < 2721 and hour < 24 and minute < 60


_IBAN_HEAD = re.compile(r"[A-Z](?<![A-Za-z0-9].)[A-Z]\d{2}(?= ?[A-Z0-9]{4})")
_IBAN_SPACES = " \u00a0"


def find_ibans(text: str) -> Iterator[Span]:
    """Yields IBANs, in one piece or in groups of four, of a country's length and with valid check digits."""
    for match in _IBAN_HEAD.finditer(text):
        length = IBAN_LENGTHS.get(match[0][:2])
        if length is None:
            continue
        compact, at = match[0], match.end()
        while len(compact) < length and at < len(text):
            character = text[at]
            if character in _IBAN_SPACES and len(compact) % 4 == 0 and text[at - 1] not in _IBAN_SPACES:
                at += 1
            elif character.isascii() and (character.isdigit() or character.isupper()):
                compact += character
                at += 1
            else:
                break
        if iban_valid(compact) and not (text[at : at + 1].isalnum()):
            yield match.start(), at
