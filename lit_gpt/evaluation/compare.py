"""Compare two models on the same items: which differences are significant, and on which items they differ.

Items are matched by their ids, so that what makes an item hard for both models cancels out. The interval is that of the
mean difference (`intervals.paired_bootstrap`); if items come in clusters (several per document or template), whole
clusters are resampled. For scores without per-item values only the two values are shown.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_gpt.atomic import atomic_folder
from lit_gpt.checkpoints.provenance import without_paths
from lit_gpt.errors import UserError
from lit_gpt.evaluation.intervals import paired_bootstrap, resampled_clusters
from lit_gpt.evaluation.report import (
    REPORT,
    Report,
    check_writable,
    evaluation_options,
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
        key: Name of the score, as `<result>.<score>`.
        title: Title of the result.
        first: The first model's value.
        second: The second model's value.
        difference: second - first, over the common items if the score has items.
        interval: Interval of the difference; None if the score has no items.
        count: Number of common items.
        unit: Unit of the score.
        better: Direction in which the score improves: "higher" or "lower".
        unmatched: Number of items that only one of them has.
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
        """How the second model compares: better, worse, different (if neither is better), or "" if it may be chance."""
        if self.interval is None or self.interval.low <= 0 <= self.interval.high:
            return ""
        if self.better == "neither":
            return "different"
        return "better" if (self.difference > 0) == (self.better == "higher") else "worse"


@dataclass(frozen=True)
class DifferingItem:
    """An item on which two models differ.

    Attributes:
        key: Name of the score, as `<result>.<score>`.
        item: Id of the item.
        first: The first model's value.
        second: The second model's value.
        first_fields: The texts of the item in the first report; may be empty.
        second_fields: The texts of the item in the second report.
    """

    key: str
    item: str
    first: float
    second: float
    first_fields: Mapping[str, str] = field(default_factory=dict)
    second_fields: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """The comparison of two reports.

    Attributes:
        names: Names of the models, made distinct.
        differences: Differences of the scores that both have.
        items: Items on which they differ most.
        notes: Remarks on results that could not be compared.
    """

    names: tuple[str, str]
    differences: tuple[Difference, ...]
    items: tuple[DifferingItem, ...]
    notes: tuple[str, ...]


def compare_reports(first: Report, second: Report, seed: int = 0) -> Comparison:
    """Compare two models by their reports.

    Raises:
        UserError: If the reports have no score in common.
    """
    others = {result.name: result for result in second.results}
    differences: list[Difference] = []
    items: list[DifferingItem] = []
    notes: list[str] = []
    for result in first.results:
        other = others.pop(result.name, None)
        if other is None:
            notes.append(f"{result.name} is only in the first report.")
            continue
        other_scores = {score.name: score for score in other.scores}
        for score in result.scores:
            match = other_scores.get(score.name)
            if match is None:
                notes.append(f"{result.name}.{score.name} is only in the first report.")
                continue
            differences.append(_difference(result, score, match, seed))
        if result.scores and result.scores[0].name in other_scores:
            items += _differing_items(result, other, result.scores[0], other_scores[result.scores[0].name])
        changed = sorted(key for key in result.settings if result.settings[key] != other.settings.get(key))
        if changed:
            notes.append(f"{result.name} was measured with other settings: {', '.join(changed)}.")
    notes += [f"{name} is only in the second report." for name in others]
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
        first, second = [score.per_item[item] for item in common], [match.per_item[item] for item in common]
        known = {**match.clusters, **score.clusters}
        clusters = [known.get(item, f"alone: {item}") for item in common] if known else None
        interval = paired_bootstrap(first, second, seed, resampled_clusters(clusters))
        difference = (sum(second) - sum(first)) / len(common)
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
    """Return the items of a result's first score with the largest differences; items with texts come first."""
    first = {example.item: example.fields for example in result.examples if example.item}
    second = {example.item: example.fields for example in other.examples if example.item}
    differences = {
        item: abs(match.per_item[item] - value)
        for item, value in score.per_item.items()
        if item in match.per_item and match.per_item[item] != value
    }
    order = sorted(differences, key=lambda item: ((item in first) + (item in second), differences[item]), reverse=True)
    return [
        DifferingItem(
            f"{result.name}.{score.name}",
            item,
            score.per_item[item],
            match.per_item[item],
            first.get(item, {}),
            second.get(item, {}),
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
    """Return the report that a name refers to.

    Args:
        name: A report.json or its folder, or a model whose reports are looked up.
        plan: Plan whose report is meant; None: the model's only one.
        adapter: Adapter of the model.
        chat_template: Chat template instead of the model's own.

    Returns:
        None if the current version of the plan has not been run on these weights.

    Raises:
        UserError: If no plan is given and there is no report, or several to choose from.
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
    config = without_paths(plain({**plan.config, **evaluation_options(name, adapter, chat_template)}))
    for file in found:
        content = read_report(file).content
        same_weights = content["model"]["weights_sha256"] == identity
        if content["name"] == plan.name and same_weights and content["config"] == config:
            return file
    return None


def check_comparison_folder(folder: Path) -> None:
    """Raise if a comparison cannot be written to a folder, before anything is measured.

    Raises:
        UserError: If there is something else at `folder`, or it cannot be written.
    """
    check_writable(folder)
    if folder.exists() and not (folder / COMPARISON).is_file() and (folder.is_file() or any(folder.iterdir())):
        raise UserError(f"{folder} contains something that is not a comparison; choose another --out")


def write_comparison(comparison: Comparison, folder: Path) -> Path:
    """Write comparison.json and comparison.html atomically; return the path of the page.

    Raises:
        UserError: As `check_comparison_folder`.
    """
    from lit_gpt.evaluation.pages import comparison_page

    check_comparison_folder(folder)
    content = plain(comparison)
    for values, difference in zip(content["differences"], comparison.differences, strict=True):
        values["verdict"] = difference.verdict
    with atomic_folder(folder) as temporary:
        text = json.dumps(content, ensure_ascii=False, indent=1, allow_nan=False)
        (temporary / COMPARISON).write_text(text + "\n", encoding="utf-8")
        (temporary / COMPARISON_PAGE).write_text(comparison_page(content), encoding="utf-8")
    return folder / COMPARISON_PAGE
