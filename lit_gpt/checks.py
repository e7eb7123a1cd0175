"""Argument checks: one call each, which raises a `UserError` with the name, the value and the bound.

    check_at_least("rank", rank, 1)
    check_between("dropout", dropout, 0, 1)
    check_one_of("split", split, ("train", "val"))

`check_types` checks every field of a dataclass against its annotation, so that a config has the same values whether
it was created in Python, from YAML or from a config.json: numbers are finite, patterns are tuples of bools, and a bool
is never accepted as a number.
"""

import math
import re
from collections.abc import Hashable, Iterable
from dataclasses import fields
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from lit_gpt.errors import UserError
from lit_gpt.suggest import close_matches

_NAMES = {
    int: "a whole number",
    float: "a finite number",
    bool: "true or false",
    str: "a string",
    NoneType: "null",
}
_ELEMENTS = {
    bool: "a list of true or false",
    float: "a list of finite numbers",
    int: "a list of whole numbers",
    str: "a list of strings",
}


def check_at_least(name: str, value: float | None, bound: float, remedy: str = "") -> None:
    """Raise unless `value` is None or a finite number of at least `bound`.

    Args:
        name: The argument's name, as the user writes it.
        value: Its value; None is accepted, because an optional argument that is not set has no bound.
        bound: The smallest allowed value.
        remedy: How to fix it, appended to the message: "leave it out for no limit".

    Raises:
        UserError: With name, value, bound and remedy.
    """
    if value is not None and not (math.isfinite(value) and value >= bound):
        raise UserError(_message(name, value, f"it must be at least {bound}", remedy))


def check_above(name: str, value: float | None, bound: float, remedy: str = "") -> None:
    """Raise unless `value` is None or a finite number greater than `bound`; arguments as for `check_at_least`."""
    if value is not None and not (math.isfinite(value) and value > bound):
        raise UserError(_message(name, value, f"it must be greater than {bound}", remedy))


def check_between(
    name: str,
    value: float | None,
    low: float,
    high: float,
    remedy: str = "",
    *,
    low_open: bool = False,
    high_open: bool = False,
) -> None:
    """Raise unless `value` is None or lies between `low` and `high`.

    Args:
        name: The argument's name, as the user writes it.
        value: Its value; None is accepted.
        low: Lower bound.
        high: Upper bound.
        remedy: How to fix it.
        low_open: Whether `low` itself is excluded.
        high_open: Whether `high` itself is excluded.

    Raises:
        UserError: With name, value, bounds and remedy.
    """
    if value is None:
        return
    above = value > low if low_open else value >= low
    below = value < high if high_open else value <= high
    if not (above and below):  # NaN fails both
        lower = f"greater than {low}" if low_open else f"at least {low}"
        upper = f"less than {high}" if high_open else f"at most {high}"
        raise UserError(_message(name, value, f"it must be {lower} and {upper}", remedy))


def check_one_of(name: str, value: object, choices: Iterable[object], remedy: str = "") -> None:
    """Raise unless `value` is one of `choices`; the message names the nearest choice and all of them."""
    allowed = list(choices)
    if value in allowed:
        return
    words = ["null" if choice is None else str(choice) for choice in allowed]
    near = close_matches(value, words)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UserError(_message(name, repr(value), f"{hint}it must be one of {', '.join(words)}", remedy))


def check_list(name: str, value: object) -> None:
    """Raise if `value` is a string instead of a list of strings: a string is a sequence of its characters.

    Raises:
        UserError: With name, value, and how to write it as a list.
    """
    if isinstance(value, str):
        raise UserError(_message(name, repr(value), f"it must be a list: write [{value}]", ""))


def local_path(name: str, value: str | Path) -> Path:
    """Return an option's file or folder with `~` expanded.

    Raises:
        UserError: It is an address such as `s3://bucket/runs`, which would otherwise become a folder named `s3:`.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/", str(value)):
        raise UserError(_message(name, value, "it must be a local path", "copy it from or to there"))
    return Path(value).expanduser()


def _message(name: str, value: object, rule: str, remedy: str) -> str:
    return f"{name} is {value}; {rule}{f'; {remedy}' if remedy else ''}"


def check_types(config: Any, prefix: str = "") -> None:
    """Raise if the value of a dataclass field does not have the annotated type.

    Args:
        config: A dataclass instance whose fields are all annotated.
        prefix: Prefix of field names in the error: "moe.".

    Raises:
        UserError: With the field, its value and the expected type.
    """
    hints = _hints(config.__class__)
    for field in fields(config):
        value, kind = getattr(config, field.name), hints[field.name]
        if not _is(value, kind):
            raise UserError(f"{prefix}{field.name} is {value!r}, it must be {_described(kind)}")


@cache
def _hints(owner: Hashable) -> dict[str, Any]:  # a class
    return get_type_hints(owner)


def _is(value: Any, kind: Any) -> bool:
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        return any(_is(value, part) for part in get_args(kind))
    if origin is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if origin is tuple:
        return isinstance(value, tuple) and all(_is(item, get_args(kind)[0]) for item in value)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, origin or kind)


def _described(kind: Any) -> str:
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        return " or ".join(map(_described, get_args(kind)))
    if origin is Literal:
        options = get_args(kind)
        return options[0] if len(options) == 1 else f"one of {', '.join(options)}"
    if origin is tuple:
        return _ELEMENTS[get_args(kind)[0]]
    if origin is not None:
        return f"a {origin.__name__.lower()}"
    return _NAMES.get(kind) or f"a {kind.__name__} (GPTConfig.from_dict creates one)"
