"""The YAML of an evaluation: which measures, with what, and what they must reach.

    seed: 0
    measures:
      - class_path: LanguageModeling            # one of ours by its name, yours as package.module.Class
        init_args:
          texts: {stdlib: true, split: val}
    gate:
      language_modeling.bits_per_byte: {max: 1.85}

All measures are made before the first one runs, so that a mistake in the last one shows at once.
"""

import copy
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from lit_gpt.errors import UserError, find_user_error
from lit_gpt.evaluation import MEASURES
from lit_gpt.evaluation.gate import Threshold, read_gate
from lit_gpt.evaluation.measure import Measure
from lit_gpt.instantiate import import_object, parameters
from lit_gpt.suggest import unknown_name

SUITES = Path(__file__).parent / "suites"
_UNTRUSTED = "run_untrusted_code"
_FIELDS = ("seed", "measures", "gate", "title")


@dataclass(frozen=True)
class PlannedMeasure:
    """A measure of the plan.

    Attributes:
        label: For messages: its class and place.
        measure: The measure itself.
    """

    label: str
    measure: Measure


@dataclass(frozen=True)
class Plan:
    """What is to be measured.

    Attributes:
        name: Of the YAML's file; reports lie under it.
        measures: In order.
        gate: What they must reach.
        seed: Of whatever is drawn.
        title: For a person; empty: the name.
        config: The YAML as it was read.
        notes: What an option of the command could not change.
    """

    name: str
    measures: tuple[PlannedMeasure, ...]
    gate: tuple[Threshold, ...] = ()
    seed: int = 0
    title: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def suite_file(name: str) -> Path:
    """The YAML of a suite that comes with the package.

    Raises:
        UserError: There is none of this name.
    """
    file = SUITES / f"{name}.yaml"
    if not file.is_file():
        raise unknown_name("suite", name, [path.stem for path in SUITES.glob("*.yaml")])
    return file


def load_plan(file: str | Path, limit: int | None = None, run_untrusted_code: bool = False) -> Plan:
    """Read a plan and make its measures.

    Args:
        file: A YAML file.
        limit: Items of each measure, at most, where it takes a `limit`.
        run_untrusted_code: Let measures that ask for it run programs that the model wrote.

    Raises:
        UserError: The file is not there or no plan, or a measure does not take what it is given; says which.
    """
    import yaml

    path = Path(file).expanduser()
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}; name the YAML of an evaluation") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is no YAML: {' '.join(str(error).split())}") from error
    try:
        return make_plan(content, path.stem, limit, run_untrusted_code)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error


def make_plan(content: Any, name: str, limit: int | None = None, run_untrusted_code: bool = False) -> Plan:
    """Make a plan from what its YAML says; arguments and errors as `load_plan`."""
    if limit is not None and limit < 1:
        raise UserError(f"limit is {limit}; it must be at least 1, or null for all items")
    if not isinstance(content, Mapping) or not content.get("measures"):
        raise UserError("no measures; an evaluation has a list `measures` of {class_path: ..., init_args: {...}}")
    for key in content:
        if key not in _FIELDS:
            raise unknown_name("field", key, _FIELDS)
    seed = content.get("seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise UserError(f"seed is {seed!r}; it must be a whole number")
    entries = content["measures"]
    if not isinstance(entries, list):
        raise UserError(f"measures is a {type(entries).__name__}; it is a list of {{class_path: ..., init_args: ...}}")
    measures, unlimited = [], []
    for number, entry in enumerate(entries, start=1):
        planned, limited = _measure(entry, number, limit, run_untrusted_code)
        measures.append(planned)
        if not limited:
            unlimited.append(planned.label)
    notes = (f"The limit of {limit} items does not apply to {', '.join(unlimited)}.",) if limit and unlimited else ()
    title = str(content.get("title") or "")
    # A quick look is another evaluation than the whole: its report says so, and does not stand for it.
    config = dict(content) | ({} if limit is None else {"limit": limit})
    return Plan(name, tuple(measures), read_gate(content.get("gate")), seed, title, config, notes)


def _measure(entry: Any, number: int, limit: int | None, untrusted: bool) -> tuple[PlannedMeasure, bool]:
    """The measure, and whether it takes the limit."""
    if isinstance(entry, str):
        entry = {"class_path": entry}
    if not isinstance(entry, Mapping) or not isinstance(entry.get("class_path"), str):
        raise UserError(f"measure {number} is {entry!r}; it needs a class_path, such as LanguageModeling")
    for key in entry:
        if key not in ("class_path", "init_args"):
            raise unknown_name("field", key, ("class_path", "init_args"), f"of measure {number}")
    name, options = entry["class_path"], dict(entry.get("init_args") or {})
    label = f"measure {number} ({name.rpartition('.')[2]})"
    target = measure_class(name, f"at measure {number}")
    known = parameters(target)
    for option in options:
        if option not in known:
            raise unknown_name("option", option, known, f"of {label}")
    if _UNTRUSTED in options:
        raise UserError(f"{label}: {_UNTRUSTED} is no setting of a file; say it on the command line: --{_UNTRUSTED}")
    if _UNTRUSTED in known:
        options[_UNTRUSTED] = untrusted
    limited = limit is not None and "limit" in known
    if limited:
        options["limit"] = limit
    missing = [option for option, p in known.items() if p.default is p.empty and option not in options]
    if missing:
        raise UserError(f"{label} needs {', '.join(missing)}; set it below init_args")
    return PlannedMeasure(label, _instantiate(target, options, label)), limited


def measure_class(name: str, where: str = "") -> type[Measure]:
    """The class of a measure: one of ours by its short name, any other as `package.module.Class`.

    Raises:
        UserError: There is no such class, or it is no measure.
    """
    if name in MEASURES:
        name = f"{MEASURES[name]}.{name}"
    elif "." not in name:
        raise unknown_name("measure", name, MEASURES, where)
    target = import_object(name, f"measure {name.rpartition('.')[2]}", extra=None)
    if not (inspect.isclass(target) and issubclass(target, Measure)):
        raise UserError(f"{name} {where} is no measure: it must be a subclass of lit_gpt.evaluation.Measure")
    return target


def _instantiate(target: type[Measure], options: Mapping[str, Any], label: str) -> Measure:
    """Make a measure as the command line makes modules: nested values by their types, classes by class_path."""
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(target, "init_args", fail_untyped=False, sub_configs=True)
    try:
        made = parser.instantiate(parser.parse_object({"init_args": copy.deepcopy(dict(options))}))
    except (ArgumentError, ValueError, TypeError) as error:
        cause = find_user_error(error)
        told = str(cause) if cause is not None else _refused(target, options, str(error))
        raise UserError(f"{label}: {told}") from error
    measure: Measure = made.init_args
    return measure


def _refused(target: type[Measure], options: Mapping[str, Any], error: str) -> str:
    """What the parser's words come to: the option, its value, its type, and the name inside it that there is not."""
    key = re.search(r'Parser key "init_args\.(\w+)', error)
    if key is None or key[1] not in options:
        return " ".join(error.replace("init_args.", "").split())
    annotation = inspect.formatannotation(get_type_hints(target.__init__).get(key[1], Any))
    kind = re.sub(r"(\w+\.)+", "", annotation).replace("None", "null")
    inside = re.search(r"Option '([\w.]+)' is not accepted", error)
    unknown = f"; it has no {inside[1]!r}" if inside else ""
    return f"{key[1]} is {options[key[1]]!r}; it must be {kind}{unknown}"
