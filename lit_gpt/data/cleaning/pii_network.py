"""Where addresses of the network stand in a text: emails, IP addresses.

Each finder yields (start, end) pairs. A pattern only proposes, and a check decides: top-level domains, public ranges,
the words before. In doubt a number stays, because prose and source code are full of numbers (versions, dates,
constants), and a wrong replacement teaches a model nonsense. All repeats are bounded, so time is linear in the text,
whatever it holds. What must not stand before a match is checked after its first character, because a pattern that
begins with a look-behind is tried at every place of the text, one that begins with a character only where that is.
"""

import ipaddress
import re
from collections.abc import Iterator

from lit_gpt.data.cleaning.top_level_domains import COUNTRIES, GENERIC

Span = tuple[int, int]

_LOCAL = r"A-Za-z0-9._%+'\-"
_EMAIL = re.compile(
    rf"[A-Za-z0-9_%+](?<![A-Za-z0-9._%+\-@/\\=&?].)[{_LOCAL}]{{0,63}}@"
    r"(?P<domain>(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,6}"
    r"(?P<top>[A-Za-z]{2,18}))(?![\w\-(\[@:]|\.\w)"
)


def find_emails(text: str) -> Iterator[Span]:
    """Yields email addresses: `name@host` with a top-level domain that exists, not the `git@host:` of a remote."""
    if "@" not in text:
        return
    for match in _EMAIL.finditer(text):
        top = match["top"].lower()
        if top not in COUNTRIES and top not in GENERIC:
            continue
        local = text[match.start() : match.start("domain") - 1]
        if ".." not in local and local[-1] not in ".'" and not (local == "git" and text[match.end() :][:1] == "/"):
            yield match.span()


_OCTET = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_IPV4 = re.compile(rf"[0-9](?<![\w.+-].)\d{{0,2}}(?:\.{_OCTET}){{3}}(?![\w]|\.\d|-\d)")
_IPV6 = re.compile(r"[23](?<![\w:.].)[0-9A-Fa-f]{3}(?::[0-9A-Fa-f]{0,4}){2,7}(?![\w:])")
_VERSION_BEFORE = re.compile(
    r"(?i)(?:\bv|\bver\.?|versions?|release[sd]?|build|revision|rev\.?|patch|section|sec\.|chapter|clause|appendix|"
    r"§+|figure|fig\.|table|==|>=|<=|~=|oid|firmware|driver|python|chrome|firefox|safari|opera|edge|kernel|[a-z]/)[\s:=\"'(]{0,3}\Z"
)
_ADDRESS_BEFORE = re.compile(
    r"(?i)(?:\bips?\b|address|addr|\bhost|server|\bping|\bssh|\bfrom|client|gateway|\bdns|nameserver|proxy|remote|//|@|"
    r"\bpeer|listen|connect)[\w\s:=\"'(\[]{0,12}\Z"
)


def find_ip_addresses(text: str) -> Iterator[Span]:
    """Yields public IP addresses: private ones, and those reserved for examples, tell nothing about anyone.

    Four small numbers with dots are a version or a section: an address without a part of three digits, and with two or
    more of one digit (0.1 % of all), counts only after a word such as "address" or "host".
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
