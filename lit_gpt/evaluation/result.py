"""Results of a measure: scores with their intervals, the items behind each of them, and how to read them.

A result is plain data. The report, the gate, the comparison of two models, TensorBoard and the model card read only
results; `report.json` contains a list of them.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Better = Literal["higher", "lower", "neither"]


@dataclass(frozen=True)
class Interval:
    """A confidence interval of a score.

    Attributes:
        low: Lower end, in the score's unit.
        high: Upper end.
        method: How it was computed, such as "Wilson" or "bootstrap over documents".
        level: Probability with which it covers the true value.
    """

    low: float
    high: float
    method: str
    level: float = 0.95


@dataclass(frozen=True)
class Score:
    """A named score.

    Attributes:
        name: Name within its result, in snake case: `accuracy`, `bits_per_byte`.
        value: The number.
        count: Number of items, documents or samples in it.
        interval: Confidence interval; None if it has none (a sum over everything there is).
        unit: "share" for numbers from 0 to 1 that the report shows as percentages; "bits", "nats", "tokens/s", ...
        better: Which direction is good.
        per_item: Item id → value, if the score is the mean of its items' values; two models are compared item by item.
        clusters: Item id → cluster, if items of one document or template are correlated; empty: items are independent.
    """

    name: str
    value: float
    count: int
    interval: Interval | None = None
    unit: str = ""
    better: Better = "higher"
    per_item: Mapping[str, float] = field(default_factory=dict)
    clusters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Example:
    """One item shown in the report.

    Attributes:
        title: What happened, in one line, such as "leaked", "wrong", "refused a safe prompt".
        fields: Texts to show, in order: the prompt, the answer, the expected answer.
        item: Id of the item in `per_item`.
    """

    title: str
    fields: Mapping[str, str]
    item: str = ""


@dataclass(frozen=True)
class Chart:
    """A chart: lines or bars over the same x.

    Attributes:
        title: Title of the chart.
        x_label: Label with unit.
        y_label: Label with unit.
        x: Positions of lines, or names of bars.
        series: Name → one value for each x; None if there is none.
        kind: line or bar.
    """

    title: str
    x_label: str
    y_label: str
    x: list[float] | list[str]
    series: Mapping[str, list[float | None]]
    kind: Literal["line", "bar"] = "line"


@dataclass(frozen=True)
class Result:
    """The result of one measure on one model.

    Attributes:
        name: Unique name in the report, the gate and TensorBoard: `language_modeling`, `hellaswag`.
        title: Heading in the report.
        definition: What is measured, in a sentence or two for readers who are not familiar with the measure.
        source: Paper or dataset of the measure.
        scores: Scores, the most important first.
        examples: A few items to show.
        charts: Charts for the report.
        settings: Everything needed to repeat it: stride, shots, seeds, hashes of the files.
        notes: Limitations: excluded items with the reason, and what was not measured.
    """

    name: str
    title: str
    definition: str
    source: str
    scores: tuple[Score, ...]
    examples: tuple[Example, ...] = ()
    charts: tuple[Chart, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def score(self, name: str) -> Score:
        """Return the score with the given name."""
        return next(score for score in self.scores if score.name == name)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return asdict(self)
