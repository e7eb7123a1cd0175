"""The names nearest to a misspelt one, for errors."""

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """The `count` names of `known` most like `name`, joined by commas; all of them when none comes near."""
    known = sorted(known)
    return ", ".join(difflib.get_close_matches(name, known, n=count, cutoff=0.5) or known)
