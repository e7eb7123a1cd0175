"""Suggestions for misspelled names: the one "did you mean" of the package."""

import difflib
from collections.abc import Iterable

from lit_gpt.errors import UserError


def close_matches(name: object, known: Iterable[str], count: int = 1, cutoff: float = 0.5) -> list[str]:
    """Return up to `count` names of `known` that resemble `name`, best first; [] when none does.

    Args:
        name: The misspelled name.
        known: The names that exist.
        count: How many to return at most.
        cutoff: Least similarity, from 0 to 1 (`difflib.SequenceMatcher.ratio`).
    """
    return difflib.get_close_matches(str(name), sorted(known), n=count, cutoff=cutoff)


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """Return the `count` names of `known` most like `name`, joined by commas; all of them when none comes near."""
    known = sorted(known)
    return ", ".join(close_matches(name, known, count) or known)


def unknown_name(kind: str, name: object, known: Iterable[str], where: str = "") -> UserError:
    """Build the error for a misspelled name: the nearest name if there is one, and all valid names.

    Args:
        kind: What was misspelled: "filter", "option".
        name: What the user wrote.
        known: What could have been written.
        where: Its location: "in filter 3 (length)".

    Example:
        >>> str(unknown_name("filter", "lenght", ["length", "lines"]))
        "unknown filter 'lenght'; did you mean length? The filters are: length, lines"
    """
    names = sorted(known)
    place = f" {where}" if where else ""
    if not names:
        return UserError(f"unknown {kind} {name!r}{place}; there is none to set")
    matches = close_matches(name, names)
    hint = f"did you mean {matches[0]}? " if matches else ""
    return UserError(f"unknown {kind} {name!r}{place}; {hint}The {kind}s are: {', '.join(names)}")
