"""Suggestions for misspelled names ("did you mean ..."), used throughout the package."""

import difflib
from collections.abc import Iterable

from lit_gpt.errors import UserError


def close_matches(name: object, known: Iterable[str], count: int = 1, cutoff: float = 0.5) -> list[str]:
    """Return up to `count` names of `known` that resemble `name`, best first; [] if none does.

    Args:
        name: The misspelled name.
        known: The valid names.
        count: Maximum number of results.
        cutoff: Minimum similarity, from 0 to 1 (`difflib.SequenceMatcher.ratio`).
    """
    return difflib.get_close_matches(str(name), sorted(known), n=count, cutoff=cutoff)


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """Return the `count` names of `known` that are most similar to `name`, joined by commas; all if none is similar."""
    known = sorted(known)
    return ", ".join(close_matches(name, known, count) or known)


def unknown_name(kind: str, name: object, known: Iterable[str], where: str = "") -> UserError:
    """Build the error for a misspelled name: the nearest name if there is one, and all valid names.

    Args:
        kind: What was misspelled: "filter", "option".
        name: What the user wrote.
        known: The valid names.
        where: Its location: "in filter 3 (length)".

    Example:
        >>> str(unknown_name("filter", "lenght", ["length", "lines"]))
        "unknown filter 'lenght'; did you mean length? The filters are: length, lines"
    """
    names = sorted(known)
    position = f" {where}" if where else ""
    if not names:
        return UserError(f"unknown {kind} {name!r}{position}; there is none to set")
    matches = close_matches(name, names)
    hint = f"did you mean {matches[0]}? The" if matches else "the"
    return UserError(f"unknown {kind} {name!r}{position}; {hint} {kind}s are: {', '.join(names)}")
