"""Instantiate objects from `class_path`/`init_args` entries in YAML files, used for all such entries in the package.

    measures:
      - LanguageModeling                        # a built-in class by its short name
      - class_path: my_package.MyMeasure        # a third-party class by its import path
        init_args: {limit: 100}

Values are checked against the constructor's annotations by jsonargparse, as LightningCLI does for modules: nested
dataclasses and classes by `class_path` work. A mistake is a `UserError` with the entry, the option and the nearest
valid name.
"""

import copy
import importlib
import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_type_hints

from lit_gpt.errors import UserError, find_user_error
from lit_gpt.extras import remedy
from lit_gpt.suggest import unknown_name


def read_yaml(file: str | Path, purpose: str) -> Any:
    """Return the content of a YAML file.

    Args:
        file: Path of the file; `~` is expanded.
        purpose: Description of the file for the error message: "the YAML of an evaluation".

    Raises:
        UserError: If it cannot be read or is not YAML.
    """
    import yaml

    try:
        return yaml.safe_load(Path(file).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}; name {purpose}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not YAML: {' '.join(str(error).split())}") from error


def instantiate(
    entry: Any,
    kind: str,
    where: str = "",
    known: Mapping[str, Any] | None = None,
    base: type | None = None,
    **extra: Any,
) -> Any:
    """Build an object from an entry of a YAML file.

    Args:
        entry: A short name, an import path, `{class_path: ..., init_args: {...}}`, or an instance of `base`, which is
            returned unchanged.
        kind: What the entry describes, for messages: "guard", "judge".
        where: Label of the entry in messages, such as "guard 2".
        known: Maps short names to a class or to "package.module:Class", which is imported when it is selected.
        base: Required base class; None = any callable.
        **extra: Arguments that the file cannot set.

    Raises:
        UserError: For an unknown class or option, or a value that the class does not accept.
    """
    if base is not None and isinstance(entry, base):
        return entry
    where = where or kind
    class_path, init_args = parse_entry(entry, kind, where)
    target = find_class(class_path, kind, where, known, base)
    return construct(target, init_args | extra, f"{where} ({class_path.rpartition('.')[2]})")


def parse_entry(entry: Any, kind: str, where: str) -> tuple[str, dict[str, Any]]:
    """Split an entry into class path and arguments, rejecting any other field.

    Raises:
        UserError: If there is no class_path, an unknown field, or init_args that is not a mapping.
    """
    if hasattr(entry, "as_dict"):  # jsonargparse's Namespace
        entry = entry.as_dict()
    if isinstance(entry, str):
        entry = {"class_path": entry}
    if not isinstance(entry, Mapping) or not isinstance(entry.get("class_path"), str):
        raise UserError(f"{where} is {entry!r}; a {kind} needs class_path, and init_args if it has arguments")
    for key in entry:
        if key not in ("class_path", "init_args"):
            raise unknown_name("field", key, ("class_path", "init_args"), f"of {where}")
    init_args = entry.get("init_args")
    if init_args is not None and not isinstance(init_args, Mapping):
        raise UserError(f"init_args of {where} is {init_args!r}; write name: value below it")
    return entry["class_path"], dict(init_args or {})


def find_class(
    class_path: str,
    kind: str,
    where: str = "",
    known: Mapping[str, Any] | None = None,
    base: type | None = None,
    extra: str | None = None,
) -> Any:
    """Return the class of a short name or import path.

    Args:
        class_path: Short name or import path.
        kind: What the class is used for, for messages.
        where: Label of the entry in messages.
        known: Short names, as in `instantiate`.
        base: Required base class.
        extra: Name of the pip extra that provides the dependencies of built-in classes.

    Raises:
        UserError: If there is no such class, or it does not inherit from `base`.
    """
    known = known or {}
    where = where or kind
    target = known.get(class_path)
    if isinstance(target, str):
        target = import_object(target.replace(":", "."), where, extra)
    elif target is None:
        if "." not in class_path:
            raise unknown_name(kind, class_path, known, "" if where == kind else f"at {where}")
        target = import_object(class_path, where, extra=None)
    if base is not None and not (inspect.isclass(target) and issubclass(target, base)):
        raise UserError(f"{where}: {class_path} is not a subclass of {base.__module__}.{base.__qualname__}")
    return target


def import_object(path: str, where: str, extra: str | None = None) -> Any:
    """Import `package.module.name`.

    Args:
        path: Import path of the object.
        where: What it is needed for, for messages.
        extra: Name of the pip extra that provides a missing library; None = unknown.

    Raises:
        UserError: If it cannot be imported.
    """
    module_name, _, name = path.rpartition(".")
    if not module_name:
        raise UserError(f"{where}: class_path {path!r} has no module; write it as package.module.{path}")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and module_name.startswith(error.name):
            raise UserError(
                f"{where}: there is no module {error.name!r} for class_path {path!r}; "
                "is its folder on PYTHONPATH, or its package installed?"
            ) from error
        missing = (error.name or "").partition(".")[0]
        how = f"pip install {missing}" if extra is None else remedy(extra)
        raise UserError(f"{where} needs {missing}, which is not installed; {how}") from error
    if not hasattr(module, name):
        raise unknown_name("name", name, [n for n in vars(module) if not n.startswith("_")], f"in {module_name}")
    return getattr(module, name)


def parameters(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the named parameters of a class or function.

    Raises:
        ValueError: If it has no signature, like some classes written in C.
    """
    return {
        name: parameter
        for name, parameter in inspect.signature(target).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }


def construct(target: Callable[..., Any], options: Mapping[str, Any], where: str) -> Any:
    """Call a class or function with options from a file, after checking their names and types.

    Args:
        target: Class or function; types and defaults are those of its signature.
        options: Maps option names to values.
        where: Label of the options in messages: "filter 3 (length)".

    Raises:
        UserError: With the option, its value and its type, and the nearest option if it does not exist.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    known = parameters(target)
    for name in options:
        if name not in known:
            raise unknown_name("option", name, known, f"of {where}")
    missing = [name for name, p in known.items() if p.default is p.empty and name not in options]
    if missing:
        raise UserError(f"{where} needs {', '.join(missing)}; set it as in `{missing[0]}: ...`")
    parser = ArgumentParser(exit_on_error=False)
    # Check each option separately: add_class_arguments would also accept options of base classes that `target` does
    # not pass on.
    hints = get_type_hints(target.__init__ if inspect.isclass(target) else target)
    for name in options:
        parser.add_argument(f"--{name}", type=hints.get(name, Any))
    try:
        values = parser.instantiate(parser.parse_object(copy.deepcopy(dict(options))))
        return target(**{name: values[name] for name in options})
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    except (ArgumentError, ValueError, TypeError) as error:
        cause = find_user_error(error)
        if cause is None and not isinstance(error, ArgumentError):
            raise  # an internal error, not a configuration mistake
        detail = str(cause) if cause is not None else _explain(hints, options, str(error))
        raise UserError(f"{where}: {detail}") from error


def _explain(hints: Mapping[str, Any], options: Mapping[str, Any], error: str) -> str:
    """Reduce jsonargparse's message to the option, its value, its type, and an unknown name inside it."""
    key = re.search(r'Parser key "(\w+)', error)
    if key is None or key[1] not in options:
        return " ".join(error.split())
    annotation = inspect.formatannotation(hints.get(key[1], Any))
    kind = re.sub(r"(\w+\.)+", "", annotation).replace("None", "null")
    inside = re.search(r"Option '([\w.]+)' is not accepted", error)
    unknown = f"; it has no {inside[1]!r}" if inside else ""
    return f"{key[1]} is {options[key[1]]!r}; it must be {kind}{unknown}"
