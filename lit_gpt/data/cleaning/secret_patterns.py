"""Find secrets in text: private keys, and keys of common services, which are recognized by their issuers' prefixes.

Every rule is anchored at a fixed string, which is found with `str.find`, so that a document without it costs one quick
scan; the pattern, whose repeats are bounded, is tried only there. Time is therefore linear in the text. The formats are
those that the issuers document for secret scanning (GitHub's list of supported patterns, the rules of gitleaks).
"""

import math
import re
from collections import Counter
from collections.abc import Iterator

from lit_gpt.data.cleaning.pii_tables import JOINING

_END = r"(?![A-Za-z0-9_\-])"
_BEFORE = r"(?<![A-Za-z0-9_\-])"

# name, anchor (searched with `find`), pattern (matched at the anchor)
RULES: tuple[tuple[str, str, re.Pattern[str]], ...] = tuple(
    (name, anchor, re.compile(_BEFORE + pattern + _END))
    for name, anchor, pattern in (
        ("aws_access_key", "AKIA", r"AKIA[A-Z0-9]{16}"),
        ("aws_access_key", "ASIA", r"ASIA[A-Z0-9]{16}"),
        ("github_token", "ghp_", r"ghp_[A-Za-z0-9]{36,251}"),
        ("github_token", "gho_", r"gho_[A-Za-z0-9]{36,251}"),
        ("github_token", "ghu_", r"ghu_[A-Za-z0-9]{36,251}"),
        ("github_token", "ghs_", r"ghs_[A-Za-z0-9]{36,251}"),
        ("github_token", "ghr_", r"ghr_[A-Za-z0-9]{36,251}"),
        ("github_token", "github_pat_", r"github_pat_[A-Za-z0-9_]{50,255}"),
        ("gitlab_token", "glpat-", r"glpat-[A-Za-z0-9_\-.]{20,300}"),
        ("slack_token", "xox", r"xox[abeoprs]-(?=[^\s]{0,30}\d)[A-Za-z0-9\-]{20,250}"),
        (
            "slack_webhook",
            "hooks.slack.com/services/T",
            r"hooks\.slack\.com/services/T[A-Z0-9]{6,12}/B[A-Z0-9]{6,12}/[A-Za-z0-9]{20,30}",
        ),
        ("stripe_key", "sk_live_", r"sk_live_[A-Za-z0-9]{16,247}"),
        ("stripe_key", "rk_live_", r"rk_live_[A-Za-z0-9]{16,247}"),
        ("stripe_key", "sk_test_", r"sk_test_[A-Za-z0-9]{16,247}"),
        ("google_api_key", "AIza", r"AIza[A-Za-z0-9_\-]{35}"),
        ("google_oauth_secret", "GOCSPX-", r"GOCSPX-[A-Za-z0-9_\-]{28}"),
        ("openai_key", "sk-", r"sk-(?:(?:proj|svcacct|admin)-[A-Za-z0-9_\-]{40,250}|[A-Za-z0-9]{48})"),
        ("anthropic_key", "sk-ant-", r"sk-ant-[a-z0-9]{3,10}-[A-Za-z0-9_\-]{60,120}"),
        ("huggingface_token", "hf_", r"hf_[A-Za-z0-9]{34,40}"),
        ("npm_token", "npm_", r"npm_[A-Za-z0-9]{36}"),
        ("pypi_token", "pypi-AgEIcHlwaS5vcmc", r"pypi-AgEIcHlwaS5vcmc[A-Za-z0-9_\-]{50,250}"),
        ("sendgrid_key", "SG.", r"SG\.[A-Za-z0-9_\-]{22}\.[A-Za-z0-9_\-]{43}"),
        ("digitalocean_token", "dop_v1_", r"dop_v1_[a-f0-9]{64}"),
        ("shopify_token", "shpat_", r"shpat_[a-fA-F0-9]{32}"),
        ("json_web_token", "eyJ", r"eyJ[A-Za-z0-9_\-]{10,4000}\.eyJ[A-Za-z0-9_\-]{10,8000}\.[A-Za-z0-9_\-]{20,1000}"),
        ("azure_storage_key", "AccountKey=", r"AccountKey=[A-Za-z0-9+/]{86}=="),
    )
)
_TELEGRAM_REST = re.compile(rf":AA[A-Za-z0-9_\-]{{33}}{_END}")
_TELEGRAM_ID = re.compile(rf"(?<![{JOINING}.])\d{{8,10}}\Z")
_KEY_BODY = re.compile(r"(?:[A-Za-z0-9+/=:,.\-() ]{0,120}(?:\r\n|\n|\\r\\n|\\n|$)[ \t\"'+]{0,40}){1,400}")
_PRIVATE_KEY = re.compile(r"-----BEGIN (?:[A-Z0-9]{1,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----")
_PRIVATE_KEY_END = re.compile(r"-----END (?:[A-Z0-9]{1,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----")
_BASE64 = re.compile(r"[A-Za-z0-9+/]{40}")
_MAX_KEY_CHARS = 20_000

# A name that suggests a secret, an equals sign or colon, and a value, quoted or not, that must look random.
_ASSIGNED = re.compile(
    r"[:=]>?=?[ \t]{0,4}[\"']?(?P<value>[A-Za-z0-9_+/\-]{20,100}={0,2})"
    rf"(?![{JOINING}+/(\[]|\.[{JOINING}])"
)
_SECRET_NAME = re.compile(
    r"(?i)(?:api[_\-]?key|secret[_\-]?(?:access[_\-]?)?key|client[_\-]?secret|(?:access|auth|private)[_\-]?token)"
    r"[\"'\]]{0,2}[ \t]{0,4}\Z"
)
_ASSIGNED_ANCHORS = ("key", "Key", "KEY", "secret", "Secret", "SECRET", "token", "Token", "TOKEN")
MIN_ENTROPY_BITS = 3.7
"""Minimum entropy in bits per character. Words joined by underscores have 3.0 to 3.6, random base64 of 20 characters
about 4.1, of 40 about 4.8; 32 random hexadecimal digits have about 3.7."""


def find_secrets(text: str) -> Iterator[tuple[int, int]]:
    """Yield start and end of each secret."""
    yield from _private_keys(text)
    for _, anchor, pattern in RULES:
        for at in _places(text, anchor):
            match = pattern.match(text, at)
            if match is not None:
                yield match.span()
    for at in _places(text, ":AA"):
        token = _telegram(text, at)
        if token is not None:
            yield token
    if any(anchor in text for anchor in _ASSIGNED_ANCHORS):
        for assigned in _ASSIGNED.finditer(text):
            value = assigned["value"]
            before = text[max(0, assigned.start() - 28) : assigned.start()]
            if _SECRET_NAME.search(before) and looks_random(value):
                yield assigned.span("value")


def looks_random(value: str) -> bool:
    """Return whether a value mixes letters and digits in a way that names do not.

    The idea is the entropy filter of Meli et al. 2019, "How Bad Can It Git?" (NDSS).
    """
    digits = sum(map(str.isdigit, value))
    if digits < 3 or digits == len(value):
        return False
    if max(Counter(value).values()) > len(value) // 3:
        return False
    return entropy_bits(value) >= min(MIN_ENTROPY_BITS, 0.88 * math.log2(len(value)))


def entropy_bits(value: str) -> float:
    """Return the Shannon entropy of the characters, in bits per character."""
    total = len(value)
    return -sum(count / total * math.log2(count / total) for count in Counter(value).values())


def _places(text: str, anchor: str) -> Iterator[int]:
    at = text.find(anchor)
    while at >= 0:
        yield at
        at = text.find(anchor, at + 1)


def _telegram(text: str, at: int) -> tuple[int, int] | None:
    """Return the span of a Telegram bot token around the colon at `at`: its number, ":AA", and 33 characters."""
    number = _TELEGRAM_ID.search(text, max(0, at - 12), at)
    rest = _TELEGRAM_REST.match(text, at)
    return None if number is None or rest is None else (number.start(), rest.end())


def _private_keys(text: str) -> Iterator[tuple[int, int]]:
    end = 0
    for at in _places(text, "-----BEGIN "):
        if at < end:
            continue
        begin = _PRIVATE_KEY.match(text, at)
        if begin is None:
            continue
        closing = _PRIVATE_KEY_END.search(text, begin.end(), min(len(text), begin.end() + _MAX_KEY_CHARS))
        if closing is not None:
            body_end, end = closing.start(), closing.end()
        else:  # truncated: take the lines of the key that are present
            lines = _KEY_BODY.match(text, begin.end(), min(len(text), begin.end() + _MAX_KEY_CHARS))
            body_end = end = lines.end() if lines is not None else begin.end()
        if _BASE64.search(text, begin.end(), body_end):  # an actual key, not code or prose that mentions the header
            yield at, end
