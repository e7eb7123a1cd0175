"""Reports on a model: report.json with everything that an evaluation found, and report.html, which displays it.

    {format, version, name, title, created, seconds,
     model: {name, checkpoint, weights_sha256, parameters, block_size, vocab_size, chat_template, lineage},
     machine: {device, ...}, code: {versions}, config: the plan as it was read, seed,
     results: [Result, ...], failures: [{measure, error, is_mistake}, ...], gate: {passed, verdicts} or null, notes}

A report contains no user name, host name or absolute path. Numbers that JSON cannot represent (an infinite perplexity)
are null.

Reports are stored next to the model (`<run or bundle>/evaluation/<plan>/`) under the hash of the weights that were
measured: weights that were trained further have no verdict. Each plan has a separate report, and the model passes the
gate if it passes the gates of all plans, so that a quick run with a limit does not override a full evaluation.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from lit_gpt.atomic import atomic_folder, temporary_path
from lit_gpt.checkpoints.bundle import is_bundle
from lit_gpt.checkpoints.provenance import MANIFEST, code_versions, hash_files, read_manifest, without_paths
from lit_gpt.checkpoints.resolve import ADAPTERS, CHECKPOINTS, resolve_adapter, resolve_model
from lit_gpt.checkpoints.step import SHARDS
from lit_gpt.data.chat import load_chat_template
from lit_gpt.errors import UserError
from lit_gpt.evaluation.plan import GateRecord, Outcome, Plan, Verdict
from lit_gpt.evaluation.result import Chart, Example, Interval, Result, Score
from lit_gpt.evaluation.subject import Subject
from lit_gpt.generation.loading import short_name
from lit_gpt.hashing import sha256_json

EVALUATION = "evaluation"
REPORT = "report.json"
PAGE = "report.html"


def own_folder(path: Path) -> Path | None:
    """Return the folder of reports inside the run or bundle that a model was found in.

    Returns:
        None for a model whose folder belongs to another project or that is from the hub.
    """
    if path.parent.name == CHECKPOINTS:
        return path.parent.parent / EVALUATION
    return path / EVALUATION if is_bundle(path) else None


def report_folder(path: Path, model: str) -> Path:
    """Return the default folder of reports on a model.

    Args:
        path: Path of the model.
        model: Name of the model as the user gave it.
    """
    return own_folder(path) or Path(EVALUATION) / short_name(model).replace("/", "--")


def report_folders(model: str | Path) -> tuple[Path, list[Path]]:
    """Return where a model is, and the folders that may contain reports on it.

    Raises:
        UserError: If there is no such model.
    """
    folder = Path(model).expanduser()
    is_run = (folder / CHECKPOINTS).is_dir() or not folder.is_dir()
    path = resolve_model(model).path if is_run else folder
    own = own_folder(path.resolve())
    return path, [folder for folder in (own, Path(EVALUATION) / short_name(str(model)).replace("/", "--")) if folder]


def evaluation_options(
    model: str, adapter: str | None, chat_template: str | None, weights: str = "auto"
) -> dict[str, Any]:
    """Return the command-line options, by name and content hash, that distinguish evaluations with the same plan.

    Raises:
        UserError: If there is no such adapter or chat template.
    """
    found: dict[str, Any] = {}
    if adapter is not None:
        in_model = Path(model).expanduser() / ADAPTERS / adapter
        path = resolve_adapter(in_model if in_model.is_dir() else adapter).path
        found["adapter"] = {"name": short_name(adapter), "sha256": weights_sha256(path)}
    if chat_template is not None:
        source = load_chat_template(chat_template).source
        found["chat_template"] = {"name": Path(chat_template).name, "sha256": sha256_json(source)}
    if weights not in ("auto", "plain"):  # these two differ by rounding alone
        found["weights"] = {"name": weights}
    return found


def folder_name(plan: str, config: Mapping[str, Any]) -> str:
    """Return the folder name of a report: the plan's name with adapter, chat template, weights and limit."""
    names = [config[key]["name"] for key in ("adapter", "chat_template", "weights") if key in config]
    limit = [f"limit-{config['limit']}"] if "limit" in config else []
    return "-".join([plan, *(re.sub(r"[^\w.-]+", "-", name) for name in names), *limit])


def check_writable(folder: Path) -> None:
    """Raise if a folder cannot be written, to find out before hours of work; nothing is left behind.

    Raises:
        UserError: With the reason.
    """
    trial = temporary_path(folder)
    try:
        missing = [path for path in trial.parents if not path.exists()]
        trial.mkdir(parents=True)
        trial.rmdir()
        for path in missing:
            path.rmdir()
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}; choose another --out") from error


def weights_sha256(path: Path) -> str:
    """Return one SHA-256 for the weights in a checkpoint, bundle or Hugging Face folder."""
    if (path / MANIFEST).is_file():
        files = read_manifest(path)["files"]
        return sha256_json({name: entry["sha256"] for name, entry in files.items() if _is_weights(name)})
    names = [file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()]
    return sha256_json(hash_files(path, sorted(name for name in names if _is_weights(name))))


def _is_weights(name: str) -> bool:
    return name.endswith((".safetensors", ".bin")) or name.startswith(f"{SHARDS}/")


FORMAT = "lit_gpt.evaluation"
VERSION = 1


@dataclass(frozen=True)
class Report:
    """A report that was read from a file.

    Attributes:
        content: The whole report as plain data.
        results: Results in the report.
        file: Path of report.json.
    """

    content: Mapping[str, Any]
    results: tuple[Result, ...]
    file: Path

    @property
    def gate(self) -> GateRecord | None:
        """The verdict of the gate; None if the plan has no gate."""
        gate = self.content["gate"]
        if gate is None:
            return None
        verdicts = tuple(Verdict(**verdict) for verdict in gate["verdicts"])
        return GateRecord(gate["passed"], verdicts, self.file, (str(self.content["name"]),))

    @property
    def model_name(self) -> str:
        """Name of the model."""
        return str(self.content["model"]["name"])


def make_report(
    plan: Plan, subject: Subject, outcome: Outcome, gate: GateRecord | None, seconds: float
) -> dict[str, Any]:
    """Build a report of plain JSON values."""
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
    """Raise if a report cannot be written to a folder, before anything is measured.

    Args:
        folder: Folder of the report.
        plan: Plan to be measured.
        path: Path of the model.

    Raises:
        UserError: If the folder contains something else, cannot be written, or holds the failed verdict of another plan
            on these weights, which must not be overwritten.
    """
    check_writable(folder)
    file = folder / REPORT
    if folder.exists() and not file.is_file() and (folder.is_file() or any(folder.iterdir())):
        raise UserError(f"{folder} contains something that is not a report; choose another --out, or remove it first")
    if not file.is_file():
        return
    try:
        there = read_report(file)
    except UserError:  # a damaged report has no verdict to lose
        return
    same = _variant(there.content["name"], there.content["config"]) == _variant(plan.name, plain(plan.config))
    if there.gate is None or there.gate.passed or same:
        return
    if there.content["model"]["weights_sha256"] == weights_sha256(path):
        raise UserError(
            f"{folder} has the report of {folder_name(there.content['name'], there.content['config'])}, whose gate "
            "this model has missed; choose another --out, or remove it first"
        )


def _variant(name: str, config: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what distinguishes evaluations whose verdicts must not overwrite each other."""
    return name, *(config.get(key) for key in ("adapter", "chat_template", "limit"))


def write_report(report: Mapping[str, Any], folder: Path) -> Path:
    """Write report.json and report.html atomically, replacing what is at `folder`.

    Returns:
        The path of report.html.
    """
    from lit_gpt.evaluation.pages import report_page

    with atomic_folder(folder) as temporary:
        text = json.dumps(report, ensure_ascii=False, indent=1, allow_nan=False)
        (temporary / REPORT).write_text(text + "\n", encoding="utf-8")
        (temporary / PAGE).write_text(report_page(report), encoding="utf-8")
    return folder / PAGE


def read_report(path: str | Path) -> Report:
    """Read a report.

    Args:
        path: report.json, or its folder.

    Raises:
        UserError: If there is none, or it has another format.
    """
    file = Path(path).expanduser()
    file = file / REPORT if file.is_dir() else file
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if (content["format"], content["version"]) != (FORMAT, VERSION):
            raise UserError(
                f"{file} is of format {content['format']} {content['version']}, not {FORMAT} {VERSION}; "
                "evaluate the model again"
            )
        return Report(content, tuple(result_from(result) for result in content["results"]), file)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}; evaluate the model first") from error
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{file} is not a report of `evaluate` ({type(error).__name__}: {error}); name report.json or its folder"
        ) from error


def result_from(values: Mapping[str, Any]) -> Result:
    """Restore a result from its plain form."""
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
    """Convert to JSON values: dataclasses to mappings, NaN and infinity to null."""
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
    """Escape lone surrogates, which a judge's reply or a row may contain but UTF-8 cannot encode."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    """Restore null numbers of a score or interval as NaN."""
    return {key: math.nan if key in ("value", "low", "high") and item is None else item for key, item in values.items()}


def newest_report(model: str | Path) -> Report | None:
    """Return the newest report on the weights of a model; see `reports_of` for argument, None and errors."""
    return next(iter(reports_of(model)), None)


def reports_of(model: str | Path) -> list[Report]:
    """Return the reports on the weights of a model, newest first.

    Args:
        model: A run, checkpoint or bundle, or a Hugging Face folder that was evaluated from this working directory.

    Returns:
        Empty if these weights have not been evaluated; reports on other weights, such as an earlier checkpoint or the
        model with an adapter, do not count.

    Raises:
        UserError: If there is no such model, or a report on it is damaged.
    """
    path, folders = report_folders(model)
    files = sorted(file for folder in folders for file in folder.glob(f"*/{REPORT}"))
    if not files:
        return []
    identity = weights_sha256(path)
    reports = [
        report
        for report in map(read_report, files)
        if report.content["model"]["weights_sha256"] == identity and "adapter" not in report.content.get("config", {})
    ]
    return sorted(reports, key=lambda report: str(report.content["created"]), reverse=True)


def gate_of(model: str | Path) -> GateRecord | None:
    """Return the verdict on the weights of a model: the newest of each plan with a gate, all of which must be passed.

    The same plan with another chat template counts as another plan. A report with a limit counts only if its plan has
    no full one, and a passed run with a limit does not override a missed one with another limit.

    Args:
        model: A run, checkpoint or bundle, or a Hugging Face folder that was evaluated from this working directory.

    Returns:
        The verdicts of the plans that were missed, or if none was, of all plans; None if these weights have not been
        compared with a gate.

    Raises:
        UserError: If there is no such model, or a report on it is damaged.
    """
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
    decisive = missed or records
    verdicts = tuple(verdict for record in decisive for verdict in record.verdicts)
    plans = tuple(dict.fromkeys(plan for record in decisive for plan in record.plans))
    return GateRecord(not missed, verdicts, decisive[0].report, plans)
