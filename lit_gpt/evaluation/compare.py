"""Compare two models on the same items: which differences are more than chance, and on which items they differ.

Items are matched by their ids, so that what makes an item hard for both models cancels out. The interval is of the mean
difference (`intervals.paired_bootstrap`); if items come in clusters (several of one document or template), whole
clusters are resampled. For scores without per-item values only the two values are shown.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_gpt.atomic import whole_folder
from lit_gpt.checkpoints.provenance import without_paths
from lit_gpt.errors import UserError
from lit_gpt.evaluation.intervals import paired_bootstrap, resampled_clusters
from lit_gpt.evaluation.report import (
    REPORT,
    Report,
    asked_with,
    check_writable,
    plain,
    read_report,
    report_folders,
    weights_sha256,
)
from lit_gpt.evaluation.result import Better, Interval, Result, Score

if TYPE_CHECKING:
    from lit_gpt.evaluation.plan import Plan


MAX_EXAMPLES = 8


@dataclass(frozen=True)
class Difference:
    """One score of two models.

    Attributes:
        key: `<result>.<score>`.
        title: Of the result.
        first: The first model's value.
        second: The second's.
        difference: second - first, over the items that both have where there are such.
        interval: Of it; None where the score has no items.
        count: Items that both have.
        unit: Of the score.
        better: Which direction is good.
        unmatched: Items that only one of them has.
    """

    key: str
    title: str
    first: float
    second: float
    difference: float
    interval: Interval | None
    count: int
    unit: str
    better: Better
    unmatched: int = 0

    @property
    def verdict(self) -> str:
        """`better` or `worse` of the second model, `different` where neither is good, "" where it may be chance."""
        if self.interval is None or self.interval.low <= 0 <= self.interval.high:
            return ""
        if self.better == "neither":
            return "different"
        return "better" if (self.difference > 0) == (self.better == "higher") else "worse"


@dataclass(frozen=True)
class DifferingItem:
    """An item on which the two differ.

    Attributes:
        key: Of the score.
        item: Its id.
        first: The first model's value.
        second: The second's.
        first_fields: What the first report shows of it; empty: nothing.
        second_fields: What the second shows.
    """

    key: str
    item: str
    first: float
    second: float
    first_fields: Mapping[str, str] = field(default_factory=dict)
    second_fields: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """Of two reports.

    Attributes:
        names: Of the models; told apart where they are the same.
        differences: Of each score that both have.
        items: Where they differ most.
        notes: What could not be compared.
    """

    names: tuple[str, str]
    differences: tuple[Difference, ...]
    items: tuple[DifferingItem, ...]
    notes: tuple[str, ...]


def compare_reports(first: Report, second: Report, seed: int = 0) -> Comparison:
    """Compare two models by their reports.

    Raises:
        UserError: The reports have no score in common.
    """
    others = {result.name: result for result in second.results}
    differences: list[Difference] = []
    items: list[DifferingItem] = []
    notes: list[str] = []
    for result in first.results:
        other = others.pop(result.name, None)
        if other is None:
            notes.append(f"{result.name} is in the first report alone.")
            continue
        theirs = {score.name: score for score in other.scores}
        for score in result.scores:
            match = theirs.get(score.name)
            if match is None:
                notes.append(f"{result.name}.{score.name} is in the first report alone.")
                continue
            differences.append(_difference(result, score, match, seed))
        if result.scores and result.scores[0].name in theirs:
            items += _differing_items(result, other, result.scores[0], theirs[result.scores[0].name])
        changed = sorted(key for key in result.settings if result.settings[key] != other.settings.get(key))
        if changed:
            notes.append(f"{result.name} was measured with other settings: {', '.join(changed)}.")
    notes += [f"{name} is in the second report alone." for name in others]
    if not differences:
        names = ", ".join(result.name for result in first.results) or "none"
        raise UserError(
            f"the two reports have no score in common (the first has {names}); evaluate both with the same --config"
        )
    return Comparison(_names(first, second), tuple(differences), tuple(items), tuple(notes))


def _difference(result: Result, score: Score, match: Score, seed: int) -> Difference:
    common = [item for item in score.per_item if item in match.per_item]
    interval, difference = None, match.value - score.value
    if common:
        ours, theirs = [score.per_item[item] for item in common], [match.per_item[item] for item in common]
        known = {**match.clusters, **score.clusters}
        clusters = [known.get(item, f"alone: {item}") for item in common] if known else None
        interval = paired_bootstrap(ours, theirs, seed, resampled_clusters(clusters))
        difference = (sum(theirs) - sum(ours)) / len(common)
    unmatched = len(score.per_item.keys() ^ match.per_item.keys())
    return Difference(
        f"{result.name}.{score.name}",
        result.title,
        score.value,
        match.value,
        difference,
        interval,
        len(common),
        score.unit,
        score.better,
        unmatched,
    )


def _differing_items(result: Result, other: Result, score: Score, match: Score) -> list[DifferingItem]:
    """Items of a result's first score that the two differ on most; those with something to read come first."""
    ours = {example.item: example.fields for example in result.examples if example.item}
    theirs = {example.item: example.fields for example in other.examples if example.item}
    apart = {
        item: abs(match.per_item[item] - value)
        for item, value in score.per_item.items()
        if item in match.per_item and match.per_item[item] != value
    }
    order = sorted(apart, key=lambda item: ((item in ours) + (item in theirs), apart[item]), reverse=True)
    return [
        DifferingItem(
            f"{result.name}.{score.name}",
            item,
            score.per_item[item],
            match.per_item[item],
            ours.get(item, {}),
            theirs.get(item, {}),
        )
        for item in order[:MAX_EXAMPLES]
    ]


def _names(first: Report, second: Report) -> tuple[str, str]:
    names = [first.model_name, second.model_name]
    if names[0] == names[1]:
        checkpoints: Sequence[Any] = [report.content["model"]["checkpoint"] for report in (first, second)]
        if checkpoints[0] != checkpoints[1]:
            names = [f"{name} {checkpoint}" for name, checkpoint in zip(names, checkpoints, strict=True)]
        else:
            names = [f"{names[0]} (first)", f"{names[1]} (second)"]
    return names[0], names[1]


COMPARISON = "comparison.json"
COMPARISON_PAGE = "comparison.html"


def find_report(
    name: str, plan: "Plan | None", adapter: str | None = None, chat_template: str | None = None
) -> Path | None:
    """The report that a name stands for.

    Args:
        name: A report.json or its folder, or a model whose reports are looked up.
        plan: Which of a model's reports; None: its only one.
        adapter: That the model is asked with.
        chat_template: That it is asked through, instead of its own.

    Returns:
        None where the plan has not been run on these weights as it is now.

    Raises:
        UserError: Without a plan: there is no report, or there are several to choose from.
    """
    path = Path(name).expanduser()
    if path.is_file() or (path / REPORT).is_file():
        return path
    where, folders = report_folders(name)
    found = [file for folder in folders for file in sorted(folder.glob(f"*/{REPORT}"))]
    if plan is None:
        if not found:
            raise UserError(f"{name} has no report; evaluate it first, or give --config or --suite to do it now")
        if len(found) > 1:
            names = ", ".join(str(file.parent) for file in found)
            raise UserError(f"{name} has several reports; name the one to compare: {names}")
        return found[0]
    identity = weights_sha256(where)
    config = without_paths(plain({**plan.config, **asked_with(name, adapter, chat_template)}))
    for file in found:
        content = read_report(file).content
        same_weights = content["model"]["weights_sha256"] == identity
        if content["name"] == plan.name and same_weights and content["config"] == config:
            return file
    return None


def check_comparison_folder(folder: Path) -> None:
    """Refuse a place for a comparison before anything is measured.

    Raises:
        UserError: There is something else at `folder`, or it cannot be written.
    """
    check_writable(folder)
    if folder.exists() and not (folder / COMPARISON).is_file() and (folder.is_file() or any(folder.iterdir())):
        raise UserError(f"{folder} holds something that is no comparison; choose another --out")


def write_comparison(comparison: Comparison, folder: Path) -> Path:
    """Write comparison.json and comparison.html, whole or not at all; returns the page.

    Raises:
        UserError: As `check_comparison_folder`.
    """
    from lit_gpt.evaluation.pages import comparison_page

    check_comparison_folder(folder)
    content = plain(comparison)
    for values, difference in zip(content["differences"], comparison.differences, strict=True):
        values["verdict"] = difference.verdict
    with whole_folder(folder) as beside:
        text = json.dumps(content, ensure_ascii=False, indent=1, allow_nan=False)
        (beside / COMPARISON).write_text(text + "\n", encoding="utf-8")
        (beside / COMPARISON_PAGE).write_text(comparison_page(content), encoding="utf-8")
    return folder / COMPARISON_PAGE
