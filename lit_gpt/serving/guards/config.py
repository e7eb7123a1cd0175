"""The file that names the guards."""

import inspect
from pathlib import Path
from typing import Any

from lit_gpt.errors import UserError
from lit_gpt.instantiate import construct, import_object
from lit_gpt.serving.guards.base import Guard
from lit_gpt.serving.guards.block_list import BlockListGuard
from lit_gpt.serving.guards.classifier import ClassifierGuard
from lit_gpt.serving.guards.pii import PIIGuard
from lit_gpt.suggest import unknown_name

GUARDS: dict[str, type[Guard]] = {guard.__name__: guard for guard in (PIIGuard, BlockListGuard, ClassifierGuard)}
_FIELDS = ("class_path", "init_args")


def load_guards(file: str | Path) -> list[Guard]:
    """Read a YAML file of guards and make them, in its order.

    Raises:
        UserError: The file cannot be read, or a guard in it is unknown or does not take what it is given.
    """
    import yaml

    try:
        content = yaml.safe_load(Path(file).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}; --guards names a YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or list(content) != ["guards"] or not isinstance(content["guards"], list):
        raise UserError(f"{file}: it has one field, `guards`, with a list of {{class_path: ..., init_args: ...}}")
    if not content["guards"]:
        raise UserError(f"{file}: guards is empty; name one, or leave --guards out")
    try:
        return [_guard(entry, number) for number, entry in enumerate(content["guards"], start=1)]
    except UserError as error:
        raise UserError(f"{file}: {error}") from error


def _guard(entry: Any, number: int) -> Guard:
    if isinstance(entry, str):
        entry = {"class_path": entry}
    if not isinstance(entry, dict) or not isinstance(entry.get("class_path"), str):
        raise UserError(f"guard {number} is {entry!r}; it needs a class_path, such as PIIGuard")
    for key in entry:
        if key not in _FIELDS:
            raise unknown_name("field", key, _FIELDS, f"of guard {number}")
    name, options = entry["class_path"], entry.get("init_args") or {}
    if not isinstance(options, dict):
        raise UserError(f"init_args of guard {number} ({name}) is {options!r}; write name: value below it")
    if "." not in name and name not in GUARDS:
        raise unknown_name("guard", name, GUARDS)
    target: Any = GUARDS.get(name) or import_object(name, f"guard {number}")
    if not (inspect.isclass(target) and issubclass(target, Guard)):
        raise UserError(f"guard {number}: {name} is no subclass of lit_gpt.serving.guards.Guard")
    guard: Guard = construct(target, options, f"guard {number} ({target.__name__})")
    return guard
