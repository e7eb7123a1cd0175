"""Pictures and examples of a loss: against the tokens that a prediction is made from, by source, by document."""

import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

import numpy as np

from lit_gpt.evaluation.result import Chart, Example

MAX_SOURCES = 16
SHOWN_CHARACTERS = 500
_LONG_ENOUGH = 200
"""Bytes of a document that is shown as easy or hard: the loss of a very short one is chance."""
_BINS_AN_OCTAVE = 2


class Costed(Protocol):
    """A document and what it cost."""

    name: str
    group: str
    text: str
    num_bytes: int
    num_tokens: int
    nats: float

    @property
    def bits_per_byte(self) -> float:
        """Its own."""
        ...


class PositionLosses:
    """Sums of loss by the number of tokens that a prediction is made from.

    Args:
        window: The most there can be.
    """

    def __init__(self, window: int) -> None:
        self._sums, self._counts = np.zeros(window + 1), np.zeros(window + 1, dtype=np.int64)

    def add(self, num_context: int, logprobs: Sequence[float]) -> None:
        """Take in a window: its first target is predicted from `num_context` tokens, the next from one more."""
        places = slice(num_context, num_context + len(logprobs))
        self._sums[places] -= logprobs
        self._counts[places] += 1

    def chart(self) -> Chart:
        """Mean loss in bins that widen with the context."""
        window = len(self._sums) - 1
        octaves = math.log2(max(window, 2))
        edges = sorted({round(2 ** (n / _BINS_AN_OCTAVE)) for n in range(int(octaves * _BINS_AN_OCTAVE) + 1)})
        edges.append(window + 1)
        bins = [slice(low, high) for low, high in pairwise(edges) if self._counts[low:high].sum()]
        middles = [float(np.average(np.arange(b.start, b.stop), weights=self._counts[b])) for b in bins]
        means: list[float | None] = [float(self._sums[b].sum() / self._counts[b].sum()) for b in bins]
        return Chart(
            "Loss against position: how much the model gains from more context",
            "tokens before the predicted one",
            "nats per token",
            [round(middle, 1) for middle in middles],
            {"loss": means},
        )


def by_source(documents: Sequence[Costed]) -> Chart | None:
    """Bits per byte of each of several sources: those that were named, else the files' topmost folders."""
    groups = {document.group for document in documents}
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for document in documents:
        name = document.group if len(groups) > 1 else document.name.split(":")[0].split("/")[0]
        sums[name][0] += document.nats / math.log(2)
        sums[name][1] += document.num_bytes
    if len(sums) < 2:
        return None
    largest = sorted(sums, key=lambda name: -sums[name][1])[:MAX_SOURCES]
    ordered = sorted(largest, key=lambda name: sums[name][0] / sums[name][1])
    title = "By source" if len(sums) <= MAX_SOURCES else f"By source: the {MAX_SOURCES} largest of {len(sums)}"
    values: list[float | None] = [sums[name][0] / sums[name][1] for name in ordered]
    return Chart(title, "", "bits per byte", ordered, {"bits per byte": values}, "bar")


def examples(documents: Sequence[Costed], count: int = 2) -> tuple[Example, ...]:
    """The documents that were easiest and hardest to predict."""
    long = sorted((d for d in documents if d.num_bytes >= _LONG_ENOUGH), key=lambda d: d.bits_per_byte)
    if len(long) < 2 * count:
        return ()
    shown = [("easy to predict", document) for document in long[:count]]
    shown += [("hard to predict", document) for document in reversed(long[-count:])]
    return tuple(
        Example(
            f"{words}: {document.bits_per_byte:.2f} bits per byte",
            {"from": document.name, "begins": document.text[:SHOWN_CHARACTERS]},
            document.name,
        )
        for words, document in shown
    )
