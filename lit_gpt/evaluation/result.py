"""What a measure says: scores with their intervals, what stands behind each of them, and how to read it.

A result is plain data. The report, the gate, the comparison of two models, TensorBoard and the model card all read
this and nothing else; `report.json` is a list of them.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Better = Literal["higher", "lower", "neither"]


@dataclass(frozen=True)
class Interval:
    """A confidence interval of a score.

    Attributes:
        low: Its lower end, in the score's unit.
        high: Its upper end.
        method: How it was found, such as "Wilson" or "bootstrap over documents".
        level: Share of repeats in which it holds the truth.
    """

    low: float
    high: float
    method: str
    level: float = 0.95


@dataclass(frozen=True)
class Score:
    """One number.

    Attributes:
        name: Within its result, in snake case: `accuracy`, `bits_per_byte`.
        value: The number.
        count: How many items, documents or draws it is over.
        interval: None where it has none (a sum over everything there is).
        unit: "share" for numbers from 0 to 1 that the report shows in per cent; "bits", "nats", "tokens/s", ...
        better: Which direction is good.
        per_item: Each item's part in it by the item's id, where the score is the mean of its parts: two models are
            compared by these, item by item.
        clusters: What each item belongs to, where items of one document or template stand or fall together; empty:
            each item for itself.
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
    """One item, to be read by a person.

    Attributes:
        title: One line: what happened, such as "leaked", "wrong", "refused a safe prompt".
        fields: What to show under it, in order: the prompt, the answer, what was expected.
        item: Its id in `per_item`.
    """

    title: str
    fields: Mapping[str, str]
    item: str = ""


@dataclass(frozen=True)
class Chart:
    """A picture: lines or bars over the same x.

    Attributes:
        title: What it shows.
        x_label: With its unit.
        y_label: With its unit.
        x: Positions of lines, or names of bars.
        series: Name → one value for each x; None where there is none.
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
    """What one measure says of one model.

    Attributes:
        name: Of the measure in the report, the gate and TensorBoard: `language_modeling`, `hellaswag`; unique there.
        title: For a person.
        definition: What is measured, in a sentence or two that a stranger understands.
        source: The paper or data set that it comes from.
        scores: The numbers, the most important first.
        examples: A few items, to be read.
        charts: Pictures.
        settings: What somebody needs to repeat it: stride, shots, seeds, hashes of the files.
        notes: What limits it: items left out and why, what was not tried.
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
        """Return the score of a name."""
        return next(score for score in self.scores if score.name == name)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)
