"""Evaluation plan: which measures to run, with which settings, and which thresholds they must reach.

    seed: 0
    measures:
      - class_path: LanguageModeling            # built-in by short name, custom as package.module.Class
        init_args:
          texts: {stdlib: true, split: val}
    gate:
      language_modeling.bits_per_byte: {max: 1.85}
      refusal.over_refusal: {max: 0.1, by: interval}

All measures are constructed before the first one runs, so a mistake in the last one is reported at once. Each measure
runs independently: a failing one does not lose the results of the others.

The gate compares scores with thresholds that were written before the model was measured. `by: interval` requires that
the whole confidence interval is on the right side of the bound. A missing score (its measure failed, its name is
misspelled) misses its threshold.
"""

import inspect
import math
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from lit_gpt.checks import check_at_least, check_one_of
from lit_gpt.errors import UserError, find_user_error
from lit_gpt.evaluation import MEASURES
from lit_gpt.evaluation.measure import Measure
from lit_gpt.evaluation.progress import Progress, no_progress
from lit_gpt.evaluation.result import Result
from lit_gpt.evaluation.subject import Subject
from lit_gpt.instantiate import construct, find_class, parameters, parse_entry, read_yaml
from lit_gpt.pages.text import visible
from lit_gpt.suggest import unknown_name

SUITES = Path(__file__).parent / "suites"
GATE_EXIT = 3
"""Exit status of `evaluate` if the gate is missed."""
_UNTRUSTED = "run_untrusted_code"
_FIELDS = ("seed", "measures", "gate", "title")
_GATE_OPTIONS = ("min", "max", "by")
_KNOWN = {name: f"{module}:{name}" for name, module in MEASURES.items()}


# --- The gate --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Threshold:
    """One line of the gate.

    Attributes:
        key: `<result>.<score>`.
        kind: Whether the score must be at least (min) or at most (max) the bound.
        bound: Bound in the score's unit.
        by: What is compared: the value, or the end of its interval that is closer to the bound.
    """

    key: str
    kind: Literal["min", "max"]
    bound: float
    by: Literal["value", "interval"] = "value"


@dataclass(frozen=True)
class Verdict:
    """The outcome of one threshold.

    Attributes:
        key: `<result>.<score>`.
        kind: min or max.
        bound: The bound of the threshold.
        by: value or interval.
        found: The number that was compared with the bound; None if there was none.
        passed: Whether the threshold is reached.
        reason: An explanation in words.
    """

    key: str
    kind: str
    bound: float
    by: str
    found: float | None
    passed: bool
    reason: str


@dataclass(frozen=True)
class GateRecord:
    """The verdict on a model, as a report stores it.

    Attributes:
        passed: Whether every threshold is reached.
        verdicts: One for each threshold.
        report: The report's file; of several, the newest.
        plans: The plans that the verdict is about: those that were missed, or if none was, those that were passed.
    """

    passed: bool
    verdicts: tuple[Verdict, ...]
    report: Path | None = None
    plans: tuple[str, ...] = ()

    @property
    def missed(self) -> tuple[Verdict, ...]:
        """The verdicts of the thresholds that are not reached."""
        return tuple(verdict for verdict in self.verdicts if not verdict.passed)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {"passed": self.passed, "verdicts": [asdict(verdict) for verdict in self.verdicts]}


def read_gate(gate: Any) -> tuple[Threshold, ...]:
    """Read the `gate` of a plan.

    Raises:
        UserError: With the line that is malformed.
    """
    if gate is None:
        return ()
    if not isinstance(gate, Mapping):
        raise UserError(f"gate is {gate!r}; it is a mapping such as {{language_modeling.loss: {{max: 4.0}}}}")
    thresholds: list[Threshold] = []
    for key, line in gate.items():
        where = f"gate {key!r}"
        if not isinstance(key, str) or "." not in key.strip("."):
            raise UserError(f"{where}: a key is <result>.<score>, such as language_modeling.bits_per_byte")
        if not isinstance(line, Mapping):
            raise UserError(f"{where} is {line!r}; it needs min or max, such as {{max: 1.85}}")
        for option in line:
            if option not in _GATE_OPTIONS:
                raise unknown_name("option", option, _GATE_OPTIONS, f"of {where}")
        by = line.get("by", "value")
        check_one_of(f"by of {where}", by, ("value", "interval"))
        kinds: list[Literal["min", "max"]] = [kind for kind in ("min", "max") if kind in line]
        if not kinds:
            raise UserError(f"{where} has neither min nor max; set one of them")
        for kind in kinds:
            bound = line[kind]
            if isinstance(bound, bool) or not isinstance(bound, int | float) or not math.isfinite(bound):
                raise UserError(f"{where}: {kind} is {bound!r}; it must be a number")
            thresholds.append(Threshold(key, kind, float(bound), by))
    return tuple(thresholds)


def check_gate(thresholds: Sequence[Threshold], results: Sequence[Result]) -> GateRecord | None:
    """Compare results with the thresholds; return None if there is no gate."""
    if not thresholds:
        return None
    scores = {f"{result.name}.{score.name}": score for result in results for score in result.scores}
    verdicts = []
    for threshold in thresholds:
        score = scores.get(threshold.key)
        found: float | None
        if score is None:
            found, missing = None, str(unknown_name("score", threshold.key, scores))
        elif threshold.by == "interval":
            interval = score.interval
            found = None if interval is None else interval.low if threshold.kind == "min" else interval.high
            missing = "it has no confidence interval; use by: value"
        else:
            found, missing = score.value, ""
        verdicts.append(_verdict(threshold, found, missing))
    return GateRecord(all(verdict.passed for verdict in verdicts), tuple(verdicts))


def _verdict(threshold: Threshold, found: float | None, missing: str) -> Verdict:
    kind, bound, by = threshold.kind, threshold.bound, threshold.by
    if found is None:
        return Verdict(threshold.key, kind, bound, by, None, False, missing)
    passed = found >= bound if kind == "min" else found <= bound  # NaN fails both
    end = {"min": "the low end of its interval is ", "max": "the high end of its interval is "}[kind]
    relation = {("min", True): "at least", ("max", True): "at most"}.get(
        (kind, passed), "below the minimum of" if kind == "min" else "above the maximum of"
    )
    words = f"{end if by == 'interval' else ''}{found:.4g}, {relation} {bound:g}"
    return Verdict(threshold.key, kind, bound, by, found, passed, words)


# --- Reading a plan --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PlannedMeasure:
    """A measure of the plan.

    Attributes:
        label: For messages: its position and class.
        measure: The measure itself.
    """

    label: str
    measure: Measure


@dataclass(frozen=True)
class Plan:
    """The measures to run and the thresholds to reach.

    Attributes:
        name: File name of the YAML without its suffix; reports are stored under it.
        measures: Measures in order.
        gate: Thresholds that their results must reach.
        seed: Seed of everything that is sampled.
        title: A title for the report; empty: the name.
        config: The YAML as it was read.
        notes: Command-line options that could not be applied.
    """

    name: str
    measures: tuple[PlannedMeasure, ...]
    gate: tuple[Threshold, ...] = ()
    seed: int = 0
    title: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def suite_file(name: str) -> Path:
    """Return the YAML of a suite that is part of the package.

    Raises:
        UserError: If there is none of this name.
    """
    file = SUITES / f"{name}.yaml"
    if not file.is_file():
        raise unknown_name("suite", name, [path.stem for path in SUITES.glob("*.yaml")])
    return file


def load_plan(file: str | Path, limit: int | None = None, run_untrusted_code: bool = False) -> Plan:
    """Read a plan and construct its measures.

    Args:
        file: A YAML file.
        limit: Maximum number of items of each measure that has a `limit`.
        run_untrusted_code: Whether measures may run programs that the model wrote.

    Raises:
        UserError: If the file is missing or not a plan, or a measure does not accept its options; the message names it.
    """
    content = read_yaml(file, "the YAML of an evaluation")
    try:
        return make_plan(content, Path(file).stem, limit, run_untrusted_code)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error


def tasks_plan(tasks: Sequence[str], limit: int | None = None) -> Plan:
    """Return the plan that measures tasks of lm-eval with their own settings; its reports are stored under their names.

    Raises:
        UserError: If there is no task.
    """
    name = re.sub(r"[^\w.-]+", "-", "-".join(tasks))[:100]
    return make_plan({"measures": [{"class_path": "Harness", "init_args": {"tasks": list(tasks)}}]}, name, limit)


def make_plan(content: Any, name: str, limit: int | None = None, run_untrusted_code: bool = False) -> Plan:
    """Build a plan from the content of its YAML; see `load_plan` for arguments and errors."""
    check_at_least("limit", limit, 1, "null for all items")
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
    # A run with a limit is a different evaluation: its report says so and does not replace the full one.
    config = dict(content) | ({} if limit is None else {"limit": limit})
    title = content.get("title")
    return Plan(
        name,
        tuple(measures),
        read_gate(content.get("gate")),
        seed,
        "" if title is None else str(title),
        config,
        notes,
    )


def _measure(entry: Any, number: int, limit: int | None, untrusted: bool) -> tuple[PlannedMeasure, bool]:
    """Return the measure of an entry, and whether the limit was applied to it."""
    where = f"measure {number}"
    name, options = parse_entry(entry, "measure", where)
    target = find_class(name, "measure", where, _KNOWN, Measure)
    label = f"{where} ({name.rpartition('.')[2]})"
    known = parameters(target)
    if _UNTRUSTED in options:
        raise UserError(f"{label}: {_UNTRUSTED} cannot be set in a file; use the command line: --{_UNTRUSTED}")
    if _UNTRUSTED in known:
        options[_UNTRUSTED] = untrusted
    limited = limit is not None and "limit" in known
    if limited:
        options["limit"] = limit
    return PlannedMeasure(label, construct(target, options, label)), limited


def explanation(topic: str) -> str:
    """Return the list of measures, or the description of one of them with its options.

    Args:
        topic: `topics` or `measures` for the list; a short name, or a measure's class_path.

    Raises:
        UserError: If there is no such measure.
    """

    def document(name: str) -> str:
        return inspect.getdoc(find_class(name, "measure", known=_KNOWN, base=Measure)) or ""

    if topic in ("topics", "measures"):
        width = max(map(len, MEASURES))
        lines = [f"  {name:{width}}  {document(name).splitlines()[0]}" for name in MEASURES]
        example = "measures:\n  - class_path: LanguageModeling\n    init_args: {texts: {files: heldout.txt}}"
        return (
            "Measures, by the name that a plan's class_path gives them:\n\n"
            + "\n".join(lines)
            + f"\n\nOptions of one of them: evaluate --explain LanguageModeling\n\n{example}"
        )
    target = find_class(topic, "measure", known=_KNOWN, base=Measure)
    defaults = [
        f"  {name}: {parameter.default!r}"
        for name, parameter in parameters(target).items()
        if parameter.default is not parameter.empty
    ]
    return f"{topic}: {document(topic)}\n\nDefaults:\n" + "\n".join(defaults)


# --- Running a plan --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Failure:
    """A measure that gave no result.

    Attributes:
        measure: Label of the measure in the plan.
        error: Reason, in one line.
        is_mistake: Whether the user can correct it (a `UserError`); otherwise it is a bug.
    """

    measure: str
    error: str
    is_mistake: bool


@dataclass(frozen=True)
class Outcome:
    """The results of a plan.

    Attributes:
        results: Results of the measures that completed, in order, with unique names.
        failures: Failures of the other measures.
    """

    results: tuple[Result, ...]
    failures: tuple[Failure, ...]

    @property
    def status(self) -> int:
        """Exit status: 0; 2 if all failures can be corrected by the user; 1 if one is a bug."""
        if not self.failures:
            return 0
        return 2 if all(failure.is_mistake for failure in self.failures) else 1


def run_plan(plan: Plan, subject: Subject, on_start: Callable[[PlannedMeasure], Progress] | None = None) -> Outcome:
    """Run all measures of a plan.

    Args:
        plan: Plan to run.
        subject: The model, with the plan's seed.
        on_start: Called when a measure starts; returns its progress callback.
    """
    completed: list[tuple[PlannedMeasure, list[Result]]] = []
    failures: list[Failure] = []
    for planned in plan.measures:
        progress = no_progress if on_start is None else on_start(planned)
        try:
            found = planned.measure.run(subject, progress)
            if not found:
                raise UserError("it gave no result; is its input empty?")
            completed.append((planned, found))
        except Exception as error:  # one measure's failure must not lose the others' results
            failures.append(_failure(planned, error))
    every = [result for _, found in completed for result in found]
    results: list[Result] = []
    for planned, found in completed:
        try:
            results += planned.measure.finish(found, every)
        except Exception as error:
            results += found
            failures.append(_failure(planned, error))
    return Outcome(uniquely_named(results), tuple(failures))


def _failure(planned: PlannedMeasure, error: Exception) -> Failure:
    """Print a failure at once, and return its record for the report."""
    cause = find_user_error(error)
    message = " ".join((str(cause) if cause is not None else f"{type(error).__name__}: {error}").split())
    lines = visible(f"{planned.label}: failed: {message}")
    if cause is None or os.environ.get("LIT_GPT_TRACEBACK"):
        lines = visible("".join(traceback.format_exception(error)), keep="\n\t") + lines
    tqdm.write(lines, file=sys.stderr)  # not across a progress bar
    return Failure(planned.label, message, cause is not None)


def uniquely_named(results: Sequence[Result]) -> tuple[Result, ...]:
    """Number results of equal names, as two measures of one class in a plan give."""
    taken: set[str] = set()
    named = []
    for result in results:
        name, number = result.name, 1
        while name in taken:
            number += 1
            name = f"{result.name}_{number}"
        taken.add(name)
        named.append(result if name == result.name else replace(result, name=name))
    return tuple(named)
