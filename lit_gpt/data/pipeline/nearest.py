"""Errors about names that are not there, which say what is."""

import difflib
from collections.abc import Iterable

from lit_gpt.errors import UserError


def unknown_name(kind: str, name: object, known: Iterable[str], where: str = "") -> UserError:
    """Makes the error for a misspelled name: the nearest one if there is one, and all of them.

    Args:
        kind: What was misspelled: "step", "option".
        name: What the user wrote.
        known: What could have been written.
        where: Where it stands: "in step 3 (length)".

    Example:
        >>> str(unknown_name("step", "lenght", ["length", "lines"]))
        "unknown step 'lenght'; did you mean length? The steps are: length, lines"
    """
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    place = f" {where}" if where else ""
    if not names:
        return UserError(f"unknown {kind} {name!r}{place}; there is none to set")
    hint = f"did you mean {near[0]}? " if near else ""
    return UserError(f"unknown {kind} {name!r}{place}; {hint}The {kind}s are: {', '.join(names)}")
