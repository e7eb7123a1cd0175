"""The fields of a config hold what their annotations say, whether they come from Python, a YAML or a config.json.

Numbers are finite, whole ones are `int`, patterns are tuples of bools. `bool` is no number here, nor is "2".
"""

import math
from collections.abc import Hashable
from dataclasses import fields
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from lit_gpt.errors import UserError

_NAMES = {
    int: "a whole number",
    float: "a finite number",
    bool: "true or false",
    str: "a string",
    NoneType: "null",
}
_ELEMENTS = {bool: "a list of true or false", float: "a list of finite numbers", int: "a list of whole numbers"}


def check_types(config: Any, prefix: str = "") -> None:
    """Refuse a field whose value is of another type than its annotation.

    Args:
        config: A dataclass, every field of which is annotated.
        prefix: Put before a field's name in the error: "moe.".

    Raises:
        UserError: Naming the field, its value and what it must be.
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
    return isinstance(value, kind)


def _described(kind: Any) -> str:
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        return " or ".join(map(_described, get_args(kind)))
    if origin is Literal:
        options = get_args(kind)
        return options[0] if len(options) == 1 else f"one of {', '.join(options)}"
    if origin is tuple:
        return _ELEMENTS[get_args(kind)[0]]
    return _NAMES.get(kind) or f"a {kind.__name__} (GPTConfig.from_dict makes one)"
