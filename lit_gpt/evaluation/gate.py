"""The gate: thresholds that a model has to reach, written before it was measured.

    gate:
      language_modeling.bits_per_byte: {max: 1.85}
      refusal.over_refusal: {max: 0.1, by: interval}

`by: interval` asks for more than luck: the whole confidence interval has to be on the right side. A score that is not
there (its measure failed, its name is misspelt) misses its threshold.

The verdict lies in the report beside the model, under the hash of the weights that were measured: weights that have
been trained on since have no verdict. Each plan has its own, and the model passes if it passes all of them: what one
plan found, another one, or a quick look with a limit, does not take back.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from lit_gpt.errors import UserError
from lit_gpt.evaluation.result import Result
from lit_gpt.suggest import unknown_name

GATE_EXIT = 3
"""Exit status of `evaluate` where the gate is missed."""
_OPTIONS = ("min", "max", "by")


@dataclass(frozen=True)
class Threshold:
    """One line of the gate.

    Attributes:
        key: `<result>.<score>`.
        kind: Whether the score must be at least (min) or at most (max) the bound.
        bound: In the score's unit.
        by: What is compared: the value, or the end of its interval that is nearer to the bound.
    """

    key: str
    kind: Literal["min", "max"]
    bound: float
    by: Literal["value", "interval"] = "value"


@dataclass(frozen=True)
class Verdict:
    """What became of a threshold.

    Attributes:
        key: `<result>.<score>`.
        kind: min or max.
        bound: What was asked.
        by: value or interval.
        found: What was compared with it; None: there was nothing.
        passed: Whether it is reached.
        reason: In words.
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
    """The verdict on a model, as a report keeps it.

    Attributes:
        passed: Whether every threshold is reached.
        verdicts: Of each.
        report: The report's file; of several, the newest.
        plans: Whose verdict it is: the plans that were missed, or if none was, those that were passed.
    """

    passed: bool
    verdicts: tuple[Verdict, ...]
    report: Path | None = None
    plans: tuple[str, ...] = ()

    @property
    def missed(self) -> tuple[Verdict, ...]:
        """Those that are not reached."""
        return tuple(verdict for verdict in self.verdicts if not verdict.passed)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {"passed": self.passed, "verdicts": [asdict(verdict) for verdict in self.verdicts]}


def read_gate(gate: Any) -> tuple[Threshold, ...]:
    """Read the `gate` of a plan.

    Raises:
        UserError: It has another form; says where.
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
            if option not in _OPTIONS:
                raise unknown_name("option", option, _OPTIONS, f"of {where}")
        by = line.get("by", "value")
        if by not in ("value", "interval"):
            raise UserError(f"{where}: by is {by!r}; it is value or interval")
        kinds: list[Literal["min", "max"]] = [kind for kind in ("min", "max") if kind in line]
        if not kinds:
            raise UserError(f"{where} has neither min nor max")
        for kind in kinds:
            bound = line[kind]
            if isinstance(bound, bool) or not isinstance(bound, int | float) or not math.isfinite(bound):
                raise UserError(f"{where}: {kind} is {bound!r}; it must be a number")
            thresholds.append(Threshold(key, kind, float(bound), by))
    return tuple(thresholds)


def judge(thresholds: Sequence[Threshold], results: Sequence[Result]) -> GateRecord | None:
    """Hold results against the thresholds; None where there is no gate."""
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
    passed = found >= bound if kind == "min" else found <= bound  # not a number reaches nothing
    end = {"min": "the low end of its interval is ", "max": "the high end of its interval is "}[kind]
    relation = {("min", True): "at least", ("max", True): "at most"}.get(
        (kind, passed), "below the minimum of" if kind == "min" else "above the maximum of"
    )
    words = f"{end if by == 'interval' else ''}{found:.4g}, {relation} {bound:g}"
    return Verdict(threshold.key, kind, bound, by, found, passed, words)


def gate_of(model: str | Path) -> GateRecord | None:
    """The verdict on the weights of a model: the newest of each plan that has a gate, and all have to be passed.

    A plan is another one where it was asked through another chat template. A report with a limit counts where its plan
    has no whole one, and cannot lift what another one with a limit missed.

    Args:
        model: A run, checkpoint or bundle, or a Hugging Face folder that was evaluated from this working directory.

    Returns:
        What the plans say that were missed, or if none was, what all say; None where these weights have not been held
        against a gate.

    Raises:
        UserError: There is no such model, or a report beside it is damaged.
    """
    from lit_gpt.evaluation.newest import reports_of

    whole: dict[str, GateRecord] = {}
    limited: dict[str, GateRecord] = {}
    for report in reports_of(model):  # newest first
        gate, config = report.gate, report.content.get("config", {})
        if gate is None:
            continue
        plan = json.dumps([report.content["name"], config.get("chat_template")])
        if "limit" not in config:
            whole.setdefault(plan, gate)
        elif plan not in limited or (limited[plan].passed and not gate.passed):
            limited[plan] = gate
    records = list((limited | whole).values())
    if not records:
        return None
    missed = [record for record in records if not record.passed]
    told = missed or records
    verdicts = tuple(verdict for record in told for verdict in record.verdicts)
    plans = tuple(dict.fromkeys(plan for record in told for plan in record.plans))
    return GateRecord(not missed, verdicts, told[0].report, plans)
