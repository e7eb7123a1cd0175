"""Human-readable formatting of numbers and text for pages, terminals and messages."""

import json
import math
import unicodedata
from typing import Any

_SYMBOLS = {"\n": "⏎", "\t": "⇥", "\r": "␍"}


def visible(text: str, keep: str = "") -> str:
    """Return the text with control, format and unassigned characters escaped.

    A corpus may contain characters that move a terminal's cursor or reverse the direction of a line.

    Args:
        text: Any text.
        keep: Characters to leave unchanged, such as the line feed.
    """
    return "".join(
        character if character in keep or not _is_hidden(character) else _SYMBOLS.get(character) or _escaped(character)
        for character in text
    )


def _is_hidden(character: str) -> bool:
    # Joiners (U+200C, U+200D) form emoji and Indic letters; other format characters change how the rest is displayed.
    category = unicodedata.category(character)
    return category in ("Cc", "Co", "Cn", "Cs", "Zl", "Zp") or (category == "Cf" and character not in "\u200d\u200c")


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def human_bytes(count: float) -> str:
    """Return `1536` as `1.5 kB`, using decimal (SI) units."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def counted(number: int, noun: str) -> str:
    """Return `1 document` or `2,000 documents`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def abbreviated(value: float) -> str:
    """Return `1234567` as `1.23 M`, with at most three significant digits."""
    for limit, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e4, " k")):
        if value >= limit:
            divisor = 1e3 if unit == " k" else limit
            return f"{value / divisor:.3g}{unit}" if value / divisor < 1000 else f"{value / divisor:,.0f}{unit}"
    return f"{value:,.0f}"


def percent(part: float, whole: float) -> str:
    """Return `12 %`, with a decimal below ten percent, and `< 0.1 %` for nonzero values that would round to 0."""
    if whole <= 0:
        return "-"
    value = 100 * part / whole
    if 0 < value < 0.1:
        return "< 0.1 %"
    if 99.9 < value < 100:
        return "> 99.9 %"
    return f"{value:.1f} %" if value < 10 or value > 99 else f"{value:.0f} %"


def score(value: float | None, unit: str = "") -> str:
    """Return a score in its unit: a `share` as a percentage, others with four significant digits."""
    if value is None or not math.isfinite(value):
        return "not a finite number"
    if unit == "share":
        value = 100 * value
        return f"{value:.2f} %" if 0 < abs(value) < 1 else f"{value:.1f} %"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def signed_score(value: float | None, unit: str = "") -> str:
    """Return a score with its sign, for differences."""
    text = score(value, unit)
    return f"+{text}" if value is not None and value > 0 else text


def interval_words(interval: dict[str, Any] | None, unit: str) -> str:
    """Return `41.2 to 58.1 %`, or "" without an interval."""
    if interval is None:
        return ""
    low, high = score(interval["low"], unit), score(interval["high"], unit)
    return f"{low.removesuffix(' %')} to {high}"


def words(name: str) -> str:
    """Return `bits_per_byte` as `bits per byte`."""
    return name.replace("_", " ")


def yaml_text(value: Any) -> str:
    """Serialize JSON-compatible values as human-readable YAML (no anchors or aliases)."""
    import yaml

    # Convert to JSON first: a list that occurs twice would otherwise become a YAML alias.
    return yaml.safe_dump(json.loads(json.dumps(value)), sort_keys=False, allow_unicode=True, width=100)
