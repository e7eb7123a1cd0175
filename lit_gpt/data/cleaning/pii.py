# ruff: noqa: RUF001 (punctuation and words of all scripts)
"""`pii`: replace personal data and secrets by tags, or drop the documents with them; counted by kind.

Tags rather than invented values, as in StarCoder (Li et al. 2023, arXiv:2305.06161, section 4): `<EMAIL>`, `<KEY>`.
Secrets are detected in `secret_patterns.py`; the tables of domains, calling codes and IBAN lengths are in
`pii_tables.py`.

Each finder yields (start, end) pairs. A pattern only proposes candidates, which are then verified: top-level domains,
public ranges, check digits, the words before. Doubtful numbers are kept, because prose and source code are full of
numbers (versions, dates, constants), and a wrong replacement would teach a model nonsense. All repeats are bounded, so
time is linear in the length of any text. What must not precede a match is checked after its first character: a pattern
that begins with a look-behind is tried at every position of the text, one that begins with a character only where that
character occurs. `JOINING` determines where a word ends, so that a Chinese or Thai letter may be adjacent to a match.
`benchmarks/pii.py` measures recall and precision of each kind in twelve languages, logs, code and URLs.
"""

import ipaddress
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from itertools import chain
from typing import Literal, NamedTuple

from lit_gpt.checks import check_one_of
from lit_gpt.data.cleaning.base import Doc, Rejected, Transform
from lit_gpt.data.cleaning.pii_tables import (
    ADDRESS_WORDS,
    ATTRIBUTES,
    CALLING_CODES,
    COUNTRIES,
    GENERIC,
    IBAN_LENGTHS,
    JOINING,
    PHONE_WORDS,
    VERSION_WORDS,
)
from lit_gpt.data.cleaning.secret_patterns import find_secrets
from lit_gpt.errors import UserError

Span = tuple[int, int]

# Email and IP addresses

_LETTER = r"A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f"  # including accented Latin letters: müller@bücher.de
_LOCAL = rf"{_LETTER}0-9._%+'\-"
_EMAIL, _EMAIL_IN_URL = (
    re.compile(
        rf"[{_LETTER}0-9_%+](?<![{_LETTER}0-9._%+\-@/\\].)[{_LOCAL}]{{0,63}}{at}"
        rf"(?P<domain>(?:[{_LETTER}0-9](?:[{_LETTER}0-9-]{{0,61}}[{_LETTER}0-9])?\.){{1,6}}"
        rf"(?P<top>[A-Za-z]{{2,18}}))(?!_{{0,2}}[{JOINING.replace('_', '')}]|[\-@]|\.[{JOINING}])"
    )
    for at in ("@", "%40")
)
# Path after a host: `git@host:user/repo.git`, `root@host:/etc`, `deploy@host:~/app`.
_REMOTE_PATH = re.compile(r":(?:[~/]|[\w.\-]{1,64}/|[\w.\-]{1,64}\.git\b)")


def find_emails(text: str) -> Iterator[Span]:
    """Yield email addresses: `name@host` with an existing top-level domain; `@` may be `%40`, as in a URL.

    The `user@host:` of a remote path and the matrix product `A@B.to(...)` in source code are excluded.
    """
    plain = _EMAIL.finditer(text) if "@" in text else ()
    for match in chain(plain, _EMAIL_IN_URL.finditer(text) if "%40" in text else ()):
        top = match["top"].lower()
        if top not in COUNTRIES and top not in GENERIC:
            continue
        local = text[match.start() : match.start("domain")].removesuffix("@").removesuffix("%40")
        end = match.end()
        following = text[end : end + 1]
        if not local or ".." in local or local[-1] in ".'" or (local == "git" and following == "/"):
            continue
        if following and following in "([" and top in ATTRIBUTES:
            continue
        if following == ":" and _REMOTE_PATH.match(text, end):
            continue
        yield match.span()


_OCTET = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_IPV4 = re.compile(rf"[0-9](?<![{JOINING}.+-].)\d{{0,2}}(?:\.{_OCTET}){{3}}(?![{JOINING}]|\.\d|-\d)")
_IPV6 = re.compile(rf"[23](?<![{JOINING}:.].)[0-9A-Fa-f]{{3}}(?::[0-9A-Fa-f]{{0,4}}){{2,7}}(?![{JOINING}:])")
_VERSION_BEFORE = re.compile(
    rf"(?i)(?:(?<![{JOINING}])(?:v|ver\.?)|{VERSION_WORDS}|§+|==|>=|<=|~=|[a-z]/)[\s:：=\"'(]{{0,3}}\Z"
)
_ADDRESS_BEFORE = re.compile(
    rf"(?i)(?:(?<![{JOINING}])(?:ips?(?![{JOINING}])|host|ping|ssh|from|dns|peer)|{ADDRESS_WORDS}|//|@)"
    r"[\w\s:：=\"'(\[]{0,12}\Z"
)


def find_ip_addresses(text: str) -> Iterator[Span]:
    """Yield public IP addresses; private ones and those reserved for examples identify nobody.

    Four small numbers with dots are a version or a section number: an address without a part of three digits, and with
    two or more of one digit (0.1 % of all), counts only after a word such as "address" or "host".
    """
    for match in _IPV4.finditer(text):
        before = text[max(0, match.start() - 24) : match.start()]
        if _VERSION_BEFORE.search(before):
            continue
        parts = match[0].split(".")
        long = sum(len(part) > 1 for part in parts)
        if max(map(len, parts)) < 3 and long < 3 and not _ADDRESS_BEFORE.search(before):
            continue
        try:
            address = ipaddress.IPv4Address(match[0])
        except ValueError:  # a part over 255, or with a leading zero
            continue
        if address.is_global and not address.is_multicast:
            yield match.span()
    if "::" not in text and text.count(":") < 7:
        return
    for match in _IPV6.finditer(text):
        end = match.end() - (match[0].endswith(":") and not match[0].endswith("::"))
        candidate = text[match.start() : end]
        groups = [group for group in candidate.split(":") if group]
        if len(groups) < 3 or (not any(character in "abcdefABCDEF" for character in candidate) and len(groups) < 8):
            continue
        try:
            address6 = ipaddress.IPv6Address(candidate)
        except ValueError:
            continue
        if address6.is_global:
            yield match.start(), end


# Payment cards and bank accounts

_CARD = re.compile(
    rf"[2-6](?<![{JOINING}.,+/@$£€\-].)(?:\d{{3}}(?P<s>[ \u00a0\-])\d{{4}}(?P=s)\d{{4}}(?P=s)\d{{4}}(?:(?P=s)\d{{3}})?"
    r"|\d{3}(?P<t>[ \u00a0\-])\d{6}(?P=t)\d{4,5}|\d{12,18})"
    rf"(?![{JOINING}]|[.,\-:/]\d|[ \u00a0]\d{{4}})"
)
# Issuer ranges (ISO/IEC 7812) and the lengths that the schemes use.
_SCHEMES = re.compile(
    r"4\d{12}(?:\d{3}(?:\d{3})?)?|(?:5[1-5]\d{2}|222[1-9]|22[3-9]\d|2[3-6]\d{2}|27[01]\d|2720)\d{12}|3[47]\d{13}|3(?:0[0-5]|[68]\d)\d{11}"
    r"|(?:6011|65\d{2}|64[4-9]\d)\d{12}|35(?:2[89]|[3-8]\d)\d{12}|62\d{14,17}"
)


def find_credit_cards(text: str) -> Iterator[Span]:
    """Yield payment card numbers: grouped as on a card or ungrouped, with a scheme's range and length, Luhn-valid."""
    for match in _CARD.finditer(text):
        digits = re.sub("[ \u00a0-]", "", match[0])
        in_one_piece = digits == match[0]
        if not _SCHEMES.fullmatch(digits) or not luhn_valid(digits) or len(set(digits)) == 1:
            continue
        if not (in_one_piece and _looks_like_time(digits)):
            yield match.span()


def _looks_like_time(digits: str) -> bool:
    """Return whether the digits start like YYYYMMDDhhmmss, as in file names and log lines."""
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
_JOINS = re.compile(rf"[{JOINING}]")


def find_ibans(text: str) -> Iterator[Span]:
    """Yield IBANs, ungrouped or in groups of four, with a country's length and valid check digits."""
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
        if iban_valid(compact) and not _JOINS.match(text, at):
            yield match.start(), at


def luhn_valid(digits: str) -> bool:
    """Return whether the last digit is the Luhn check digit of the others (ISO/IEC 7812-1, annex B).

    Args:
        digits: ASCII digits only.

    Example:
        >>> luhn_valid("4111111111111111"), luhn_valid("4111111111111112")
        (True, False)
    """
    total = 0
    for position, digit in enumerate(reversed(digits)):
        value = int(digit)
        if position % 2:
            value = value * 2 - 9 if value > 4 else value * 2
        total += value
    return total % 10 == 0


def iban_valid(iban: str) -> bool:
    """Return whether an IBAN's country, length and check digits are valid (ISO 13616, ISO 7064 mod 97-10).

    Args:
        iban: Capital letters and digits, without spaces.

    Example:
        >>> iban_valid("GB82WEST12345698765432"), iban_valid("GB82WEST12345698765433")
        (True, False)
    """
    if len(iban) != IBAN_LENGTHS.get(iban[:2]):
        return False
    return int("".join(str(int(character, 36)) for character in iban[4:] + iban[:4])) % 97 == 1


# Phone numbers: international (+ and an existing calling code), North American in their usual groups, and national ones
# after a word such as "Tel.".

_PHONE_INTERNATIONAL = re.compile(
    rf"\+(?<![{JOINING}+\-*/^)%$£€].)(?P<number>[1-9]\d{{0,3}}"
    r"(?:[ .\-\u00a0\u2011]?\(\d{1,4}\)|[ .\-\u00a0]\d(?=[ .\-\u00a0]))?"  # an area code: (0)30, or 4 in +33 4 54 ...
    rf"(?:[ .\-\u00a0\u2011/]?\d{{2,12}}){{1,6}})(?![{JOINING}+*^%]|[.,\-]\d)"
)
_PHONE_NORTH_AMERICA = re.compile(
    rf"[(1-9](?<![{JOINING}+.\-*/#$£€].)(?:(?<=1)[ .\-]\(?[2-9]|(?<=\()[2-9]|(?<=[2-9]))"
    r"\d\d(?:\)[ \u00a0\-]?|(?P<dash>[\-.\u2011]))[2-9]\d\d(?(dash)(?P=dash)|[ .\-\u2011])\d{4}"
    rf"(?![{JOINING}*]|[.,\-/]\d)"
)
_PHONE_NATIONAL = re.compile(
    rf"[(0-9](?=[\d() .\-/\u00a0]{{7}})(?<![{JOINING}.].)"  # most numbers are shorter and end here
    r"(?:(?<=\()0)?\d{0,5}\)?(?:(?:[ .\-/\u00a0]{1,2}\(?\d{2,9}\)?){1,4}|\d{4,10})"
    rf"(?![{JOINING}*]|[.,\-/]\d)"
)
_PHONE_WORD_BEFORE = re.compile(
    rf"(?i)(?<![{JOINING.replace('_', '')}])(?:{PHONE_WORDS}|(?P<verb>call))[\"'\]]{{0,2}}"
    r"(?:\.|[ _]?(?:no|number|nr|号码|號碼|番号|번호)\.?[\"'\]]{0,2})?\s{0,2}(?:[:=：＝]|是|为|は|is)?\s{0,3}[\"']?\Z"
)


def find_phone_numbers(text: str) -> Iterator[Span]:
    """Yield phone numbers of these three kinds."""
    for match in _PHONE_INTERNATIONAL.finditer(text):
        number = match["number"]
        digits = re.sub(r"\D", "", number)
        if not 8 <= len(digits) <= 15 or not any(digits[:n] in CALLING_CODES for n in (1, 2, 3)):
            continue
        if digits[0] == "1" and (len(digits) != 11 or digits[1] in "01" or digits[4] in "01"):
            continue
        if digits == number and (len(digits) < 10 or digits.endswith("000000")):
            continue  # a sum in code: +10000000
        if re.fullmatch(r"\d+\.\d+", number):
            continue  # a decimal fraction
        start = match.start()
        if start and text[start - 1] in ".=" and not _phone_word_before(text, start):
            continue  # x=+4912345678 in code, but phone=+4912345678
        yield match.span()
    for match in _PHONE_NORTH_AMERICA.finditer(text):
        yield match.span()
    for match in _PHONE_NATIONAL.finditer(text):
        if 8 <= sum(map(str.isdecimal, match[0])) <= 14:
            word = _phone_word_before(text, match.start())
            if word and (match[0].lstrip("(")[0] == "0" or match[0][0] == "(" or not word["verb"]):  # "call 12345678"
                yield match.span()


def _phone_word_before(text: str, start: int) -> re.Match[str] | None:
    return _PHONE_WORD_BEFORE.search(text[max(0, start - 32) : start])


# The transform

Action = Literal["replace", "drop", "keep"]
ACTIONS = ("replace", "drop", "keep")


class Kind(NamedTuple):
    """One kind of personal data.

    Attributes:
        name: Name in the counts, such as "email".
        tag: Replacement.
        find: Yields the (start, end) pairs of its occurrences in a text.
    """

    name: str
    tag: str
    find: Callable[[str], Iterator[tuple[int, int]]]


# Where two overlap, the first in this order wins.
KINDS: dict[str, Kind] = {
    "secrets": Kind("secret", "<SECRET>", find_secrets),
    "emails": Kind("email", "<EMAIL>", find_emails),
    "ibans": Kind("iban", "<IBAN>", find_ibans),
    "credit_cards": Kind("credit_card", "<CREDIT_CARD>", find_credit_cards),
    "ip_addresses": Kind("ip_address", "<IP_ADDRESS>", find_ip_addresses),
    "phone_numbers": Kind("phone_number", "<PHONE_NUMBER>", find_phone_numbers),
}


class Finding(NamedTuple):
    """One item of personal data in a text: characters `start` to `end`, and the option that it belongs to."""

    start: int
    end: int
    option: str


def find_pii(text: str, options: Sequence[str] = tuple(KINDS)) -> list[Finding]:
    """Return the personal data of a text in order, without overlaps.

    Args:
        text: Any text.
        options: Kinds of data to find, from `KINDS`.

    Example:
        >>> [finding.option for finding in find_pii("Write to ada@lovelace.org or call +44 20 7946 0958.")]
        ['emails', 'phone_numbers']
    """
    rank = {option: position for position, option in enumerate(KINDS)}
    found = [
        Finding(start, end, option) for option in KINDS if option in options for start, end in KINDS[option].find(text)
    ]
    kept: list[Finding] = []
    for finding in sorted(found, key=lambda f: (f.start, rank[f.option], -f.end)):
        if kept and finding.start < kept[-1].end:
            if rank[finding.option] < rank[kept[-1].option]:
                kept[-1] = finding
            continue
        kept.append(finding)
    return kept


class PII(Transform):
    """Replaces personal data and secrets by tags, or drops the documents with them.

    Each option is `replace`, `drop` (the document) or `keep`. Replacements are counted by kind: `email`, `ip_address`,
    `phone_number`, `credit_card`, `iban`, `secret`.

    Args:
        emails: Email addresses.
        ip_addresses: Public IPv4 and IPv6 addresses; private ones are kept.
        phone_numbers: International and North American numbers, and national ones after a word such as "Tel.".
        credit_cards: Payment card numbers with a valid check digit (Luhn).
        ibans: Bank accounts with valid check digits (mod 97).
        secrets: Private keys, keys and tokens of common services.

    Raises:
        UserError: Every kind is kept, so that nothing would be done.
    """

    name = "pii"
    removes_personal_data = True

    def __init__(
        self,
        emails: Action = "replace",
        ip_addresses: Action = "replace",
        phone_numbers: Action = "replace",
        credit_cards: Action = "replace",
        ibans: Action = "replace",
        secrets: Action = "replace",
    ) -> None:
        super().__init__()
        self.actions: dict[str, Action] = {
            "emails": emails,
            "ip_addresses": ip_addresses,
            "phone_numbers": phone_numbers,
            "credit_cards": credit_cards,
            "ibans": ibans,
            "secrets": secrets,
        }
        for option, action in self.actions.items():
            check_one_of(f"pii: {option}", action, ACTIONS)
        self.wanted = [option for option, action in self.actions.items() if action != "keep"]
        if not self.wanted:
            raise UserError("pii keeps every kind; set one to replace or drop, or remove pii")

    def apply(self, document: Doc) -> Doc | Rejected:
        """Return the document with tags in place of what was found, or the reason to drop it."""
        found = find_pii(document.text, self.wanted)
        if not found:
            return document
        for finding in found:
            if self.actions[finding.option] == "drop":
                kind = KINDS[finding.option].name
                number = sum(other.option == finding.option for other in found)
                return Rejected(f"pii_{kind}", f"{number} found")  # without the value, which a report must not contain
        parts, at = [], 0
        for finding in found:
            parts += [document.text[at : finding.start], KINDS[finding.option].tag]
            at = finding.end
            self.counts[KINDS[finding.option].name] += 1
        document.text = "".join(parts) + document.text[at:]
        return document
