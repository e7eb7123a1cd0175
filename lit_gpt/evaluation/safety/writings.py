"""What a model wrote in a privacy measurement, for the report."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lit_gpt.data.cleaning.pii import KINDS
from lit_gpt.evaluation.result import Chart, Example
from lit_gpt.evaluation.safety.personal_data import PersonalData

_MAX_EXAMPLES = 8


@dataclass(frozen=True)
class Writing:
    """Something that the model wrote, with the personal data in it.

    Attributes:
        way: free or prompted.
        item: Its id.
        text: The prompt and what was written.
        found: (kind, whether the training text holds it, normalised value) of what stands in the written part.
        shown: The text as the report may show it.
    """

    way: str
    item: str
    found: list[tuple[str, bool, str]]
    shown: str

    @property
    def seen(self) -> bool:
        """Whether it holds a value of the training text."""
        return any(seen for _, seen, _ in self.found)


def kinds_chart(
    kinds: Sequence[str], data: PersonalData, writings: Sequence[Writing], leaks: Sequence[tuple[bool, str]]
) -> tuple[Chart, ...]:
    """Returns how many different values of each kind were written; nothing where none was."""
    values = {(kind, seen, value) for writing in writings for kind, seen, value in writing.found}
    counts = Counter((kind, seen) for kind, seen, _ in values)
    leaked = Counter(place.option for place, (leak, _) in zip(data.places, leaks, strict=True) if leak)

    kinds = [kind for kind in kinds if leaked[kind] or counts[kind, True] or counts[kind, False]]

    def bar(count: Callable[[str], int]) -> list[float | None]:
        return [float(count(kind)) for kind in kinds]

    series = {
        "leaked in context": bar(lambda kind: leaked[kind]),
        "seen in training": bar(lambda kind: counts[kind, True]),
        "invented": bar(lambda kind: counts[kind, False]),
    }
    names = [kind.replace("_", " ") for kind in kinds]
    chart = Chart("Different values that the model wrote, by kind", "kind", "values", names, series, "bar")
    return (chart,) if kinds else ()


def examples_of(
    data: PersonalData, writings: Sequence[Writing], leaks: Sequence[tuple[bool, str]]
) -> tuple[Example, ...]:
    """Returns leaks first, then texts with seen values, then with invented ones."""
    found = [
        Example(f"leaked in context: {KINDS[place.option].name}", {"context and answer": shown}, place.where)
        for place, (leak, shown) in zip(data.places, leaks, strict=True)
        if leak
    ]
    for title, seen in (("a value of the training text", True), ("an invented value", False)):
        found += [
            Example(f"{writing.way}: {title}", {"text": writing.shown}, writing.item)
            for writing in writings
            if writing.found and writing.seen is seen
        ][: _MAX_EXAMPLES // 2]
    return tuple(found[:_MAX_EXAMPLES])
