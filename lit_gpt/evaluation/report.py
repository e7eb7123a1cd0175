"""report.json: everything that an evaluation found, as plain data; report.html shows it and adds nothing.

    {format, version, name, title, created, seconds,
     model: {name, checkpoint, weights_sha256, parameters, block_size, vocab_size, chat_template, lineage},
     machine: {device, ...}, code: {versions}, config: the plan as it was read, seed,
     results: [Result, ...], failures: [{measure, error, is_mistake}, ...], gate: {passed, verdicts} or null, notes}

It says nothing about who or where: no user, no host, no absolute path. Numbers that JSON cannot hold (an infinite
perplexity) are null.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from lit_gpt.atomic import whole_folder
from lit_gpt.checkpoints.lineage import code_versions, without_paths
from lit_gpt.errors import UserError
from lit_gpt.evaluation.gate import GateRecord, Verdict
from lit_gpt.evaluation.place import PAGE, REPORT, check_writable, folder_name, weights_sha256
from lit_gpt.evaluation.plan import Plan
from lit_gpt.evaluation.result import Chart, Example, Interval, Result, Score
from lit_gpt.evaluation.run import Outcome
from lit_gpt.evaluation.subject import Subject

FORMAT = "lit_gpt.evaluation"
VERSION = 1


@dataclass(frozen=True)
class Report:
    """A report that was read.

    Attributes:
        content: All of it, plain data.
        results: Its results.
        file: report.json.
    """

    content: Mapping[str, Any]
    results: tuple[Result, ...]
    file: Path

    @property
    def gate(self) -> GateRecord | None:
        """The gate's verdict; None where the plan had no gate."""
        gate = self.content["gate"]
        if gate is None:
            return None
        verdicts = tuple(Verdict(**verdict) for verdict in gate["verdicts"])
        return GateRecord(gate["passed"], verdicts, self.file, (str(self.content["name"]),))

    @property
    def model_name(self) -> str:
        """Of the model."""
        return str(self.content["model"]["name"])


def make_report(
    plan: Plan, subject: Subject, outcome: Outcome, gate: GateRecord | None, seconds: float
) -> dict[str, Any]:
    """Gather a report: plain JSON values."""
    config = subject.model.config
    lineage = subject.lineage or {}
    model = {
        "name": subject.name,
        "checkpoint": None if subject.path is None else subject.path.name,
        "weights_sha256": None if subject.path is None else weights_sha256(subject.path),
        "parameters": sum(parameter.numel() for parameter in subject.model.parameters()),
        "block_size": config.block_size,
        "vocab_size": config.vocab_size,
        "dtype": str(next(subject.model.parameters()).dtype).removeprefix("torch."),
        "chat_template": subject.chat_template,
        "lineage": {name: lineage[name] for name in lineage if name.endswith("_sha256") or name == "imported_from"},
    }
    return {
        "format": FORMAT,
        "version": VERSION,
        "name": plan.name,
        "title": plan.title or plan.name,
        "created": datetime.now(UTC).isoformat(timespec="microseconds"),
        "seconds": round(seconds, 1),
        "model": without_paths(model),
        "machine": {"device": str(subject.device), "threads": torch.get_num_threads()},
        "code": code_versions(),
        "seed": plan.seed,
        "config": without_paths(plain(plan.config)),
        "results": [plain(result) for result in outcome.results],
        "failures": [plain(failure) for failure in outcome.failures],
        "gate": None if gate is None else plain(gate.to_dict()),
        "notes": list(plan.notes),
    }


def check_report_folder(folder: Path, plan: Plan, path: Path) -> None:
    """Refuse a place for a report before anything is measured.

    Args:
        folder: Where it shall lie.
        plan: What will be measured.
        path: Where the model was found.

    Raises:
        UserError: There is something else, it cannot be written, or it holds the failed verdict of another plan on
            these weights, which this one shall not take away.
    """
    check_writable(folder)
    file = folder / REPORT
    if folder.exists() and not file.is_file() and (folder.is_file() or any(folder.iterdir())):
        raise UserError(f"{folder} holds something that is no report; choose another --out, or remove it first")
    if not file.is_file():
        return
    try:
        there = read_report(file)
    except UserError:  # a damaged report says nothing that could be lost
        return
    same = _variant(there.content["name"], there.content["config"]) == _variant(plan.name, plain(plan.config))
    if there.gate is None or there.gate.passed or same:
        return
    if there.content["model"]["weights_sha256"] == weights_sha256(path):
        raise UserError(
            f"{folder} holds the report of {folder_name(there.content['name'], there.content['config'])}, whose gate "
            "this model has missed; choose another --out, or remove it first"
        )


def _variant(name: str, config: Mapping[str, Any]) -> tuple[Any, ...]:
    """What tells evaluations apart whose verdicts are not to replace each other."""
    return name, *(config.get(key) for key in ("adapter", "chat_template", "limit"))


def write_report(report: Mapping[str, Any], folder: Path) -> Path:
    """Write report.json and report.html, whole or not at all, in place of what is at `folder`.

    Returns:
        The page.
    """
    from lit_gpt.evaluation.pages import report_page

    with whole_folder(folder) as beside:
        text = json.dumps(report, ensure_ascii=False, indent=1, allow_nan=False)
        (beside / REPORT).write_text(text + "\n", encoding="utf-8")
        (beside / PAGE).write_text(report_page(report), encoding="utf-8")
    return folder / PAGE


def read_report(path: str | Path) -> Report:
    """Read a report.

    Args:
        path: report.json, or the folder that it lies in.

    Raises:
        UserError: There is none, or it is of another form.
    """
    file = Path(path).expanduser()
    file = file / REPORT if file.is_dir() else file
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if (content["format"], content["version"]) != (FORMAT, VERSION):
            raise UserError(f"{file} is of format {content['format']} {content['version']}, not {FORMAT} {VERSION}")
        return Report(content, tuple(result_from(result) for result in content["results"]), file)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}; evaluate the model first") from error
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{file} is no report of `evaluate` ({type(error).__name__}: {error})") from error


def result_from(values: Mapping[str, Any]) -> Result:
    """A result from its plain form."""
    scores = []
    for score in map(_numbers, values["scores"]):
        interval = None if score["interval"] is None else Interval(**_numbers(score["interval"]))
        scores.append(Score(**{**score, "interval": interval}))
    changed = {
        "scores": tuple(scores),
        "examples": tuple(Example(**example) for example in values["examples"]),
        "charts": tuple(Chart(**chart) for chart in values["charts"]),
        "notes": tuple(values["notes"]),
    }
    return Result(**{**values, **changed})


def plain(value: Any) -> Any:
    """As JSON values: dataclasses as mappings, numbers that JSON cannot hold as null."""
    if is_dataclass(value) and not isinstance(value, type):
        return {one.name: plain(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, Mapping):
        return {_unicode(str(key)): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, bool | int) or value is None:
        return value
    if isinstance(value, str | Path):
        return _unicode(str(value))
    if hasattr(value, "item"):  # numpy's and torch's scalars
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return _unicode(str(value))


def _unicode(text: str) -> str:
    """A text that UTF-8 can hold: half a surrogate pair, as a judge's reply or a row may have it, is spelt out."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    """A score or interval with null numbers as not a number."""
    return {key: math.nan if key in ("value", "low", "high") and item is None else item for key, item in values.items()}
