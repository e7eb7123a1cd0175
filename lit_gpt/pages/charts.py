"""Compute coordinates for the charts in `templates/charts.html`. SVG units are percentages of width and height."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lit_gpt.pages.text import counted, score

NUM_COLOURS = 6
"""Colors of series: the CSS variables `--s0` to `--s5`."""
_MAX_MARKED_POINTS = 40
_LOGARITHMIC_FROM = 50.0
"""A positive x axis is logarithmic if its ends differ by at least this factor."""
_MIN_WIDTH = 0.35
"""Minimum width of a nonzero part in percent, so that it remains visible."""


def stacked(parts: Sequence[tuple[float, str, str]], whole: float) -> list[dict[str, Any]]:
    """Return the rectangles of one horizontal bar.

    Args:
        parts: (value, CSS variable of the color, title) from left to right.
        whole: Value that corresponds to the full width.
    """
    rectangles, x = [], 0.0
    for value, colour, title in parts:
        width = 100 * value / whole if whole else 0.0
        if value > 0:
            width = max(width, _MIN_WIDTH)
            rectangles.append({"x": x, "width": width, "colour": colour, "title": title})
        x += width
    return rectangles


def histogram(series: Sequence[tuple[str, str, Mapping[str, int]]], unit: str) -> dict[str, Any] | None:
    """Return a histogram over powers of two with several series side by side; None if there is nothing to show.

    Args:
        series: (name, CSS variable of the color, {bit length of the document length: number of documents}).
        unit: Unit of the length, for the titles.
    """
    keys = [int(bits) for _, _, values in series for bits, number in values.items() if number]
    if not keys:
        return None
    bins = range(min(keys), max(keys) + 1)
    most = max(values.get(str(bits), 0) for _, _, values in series for bits in bins)
    width = 1.0 / len(series)
    rectangles = []
    for index, bits in enumerate(bins):
        for number, (name, colour, values) in enumerate(series):
            value = values.get(str(bits), 0)
            if value:
                height = max(100 * value / most, 0.6)
                begin, end = (0 if bits == 0 else 2 ** (bits - 1)), 2**bits - 1
                rectangles.append(
                    {
                        "x": index + 0.08 + number * width * 0.84,
                        "y": 100 - height,
                        "width": width * 0.8,
                        "height": height,
                        "colour": colour,
                        "title": f"{name}: {counted(value, 'document')} of {begin:,} to {end:,} {unit}",
                    }
                )
    every = max(1, -(-len(bins) // 8))  # at most eight labels
    labels = [_power_of_two(bits) if index % every == 0 else "" for index, bits in enumerate(bins)]
    return {"rectangles": rectangles, "labels": labels, "num_bins": len(bins), "most": counted(most, "document")}


def _power_of_two(bits: int) -> str:
    value = 0 if bits == 0 else 2 ** (bits - 1)
    for shift, unit in ((30, "G"), (20, "M"), (10, "k")):
        if value >= 1 << shift:
            return f"{value >> shift}{unit}"
    return str(value)


def loglog_curve(points: Sequence[Sequence[int]]) -> dict[str, Any] | None:
    """Return a line on two logarithmic axes with a grid at each decade; None for fewer than two points."""
    usable = [(math.log10(x), math.log10(y)) for x, y in points if x > 0 and y > 0]
    if len(usable) < 2:
        return None
    right = max(math.ceil(max(x for x, _ in usable)), 1)
    top = max(math.ceil(max(y for _, y in usable)), 1)
    return {
        "points": " ".join(f"{100 * x / right:.2f},{100 - 100 * y / top:.2f}" for x, y in usable),
        "x_ticks": [(100 * n / right, _decade(n)) for n in range(right + 1)],
        "y_ticks": [(100 * n / top, _decade(n)) for n in range(top + 1)],
    }


def _decade(exponent: int) -> str:
    names = ("1", "10", "100", "1k", "10k", "100k", "1M", "10M", "100M", "1G")
    return names[exponent] if exponent < len(names) else f"10^{exponent}"


def bar_chart(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a bar chart: one row per value, with the name on the first row of each group.

    Args:
        values: A result's chart: `x` (names), `series` {name: values or None}, `y_label`.
    """
    unit = _unit(values["y_label"])
    series = list(values["series"].values())
    finite = [abs(value) for points in series for value in points if value is not None]
    most = 1.0 if unit else max(finite, default=0.0)
    rows = []
    for index, name in enumerate(values["x"]):
        for n, points in enumerate(series):
            value = points[index]
            label = "-" if value is None else score(value, unit)
            colour = f"--s{n % NUM_COLOURS}"
            length = 0.0 if value is None else abs(value)
            rows.append({"name": str(name) if n == 0 else "", "value": length, "label": label, "colour": colour})
    return [row | {"whole": most} for row in rows]


def line_chart(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return lines, points and ticks of a chart over a numeric x axis.

    Args:
        values: A result's chart: `x` (numbers), `series` {name: values or None}, `x_label`, `y_label`, and perhaps
            `band` {`low`, `high`: values}, which is drawn behind the lines.
    """
    xs, unit, band = values["x"], _unit(values["y_label"]), values.get("band")
    finite = [value for points in values["series"].values() for value in points if value is not None]
    finite += [value for ends in (band or {}).values() for value in ends]
    bottom, top, y_ticks = _nice_ticks(min(finite), max(finite))
    logarithmic = min(xs) > 0 and max(xs) / min(xs) >= _LOGARITHMIC_FROM
    scale = math.log if logarithmic else float
    left, right = scale(min(xs)), scale(max(xs))

    def x_of(x: float) -> float:
        return 100 * (scale(x) - left) / ((right - left) or 1.0)

    def y_of(y: float) -> float:
        return 100 - 100 * (y - bottom) / ((top - bottom) or 1.0)

    lines = []
    for n, (name, points) in enumerate(values["series"].items()):
        known = [(x, y) for x, y in zip(xs, points, strict=True) if y is not None]
        marks = [
            {"x": x_of(x), "y": y_of(y), "title": f"{name}: {score(y, unit)} at {score(x)} {values['x_label']}"}
            for x, y in known
        ]
        lines.append(
            {
                "colour": f"--s{n % NUM_COLOURS}",
                "points": " ".join(f"{x_of(x):.2f},{y_of(y):.2f}" for x, y in known),
                "marks": marks if len(xs) <= _MAX_MARKED_POINTS else [],
            }
        )
    outline = []
    if band:  # along the lower ends and back along the upper ones
        there = list(zip(xs, band["low"], strict=True))
        outline = there + list(zip(xs, band["high"], strict=True))[::-1]
    return {
        "lines": lines,
        "band": " ".join(f"{x_of(x):.2f},{y_of(y):.2f}" for x, y in outline),
        "x_ticks": [(x_of(tick), score(tick)) for tick in _x_ticks(xs, logarithmic)],
        "y_ticks": [(y_of(tick), score(tick, unit)) for tick in y_ticks],
        "x_label": f"{values['x_label']} (logarithmic)" if logarithmic else values["x_label"],
    }


def interval_strip(low: float, value: float, high: float, measured: float | None) -> dict[str, float | None]:
    """Return where the ends of an interval, its value and a measurement lie on a logarithmic scale of its own, in %.

    The scale reaches a quarter beyond whatever lies furthest out; values of 0 or less are drawn at its left end.
    """
    given = [number for number in (low, value, high, measured) if number is not None and number > 0]
    left, right = (math.log(end(given)) for end in (min, max)) if given else (0.0, 1.0)
    margin = 0.25 * (right - left) or 0.5

    def place(number: float | None) -> float | None:
        if number is None:
            return None
        return 100 * (math.log(number) - left + margin) / (right - left + 2 * margin) if number > 0 else 0.0

    return {"low": place(low), "value": place(value), "high": place(high), "measured": place(measured)}


def _unit(label: str) -> str:
    """Return `share` for an axis of numbers from 0 to 1, which are shown as percentages."""
    return "share" if label.startswith("share") else ""


def _nice_ticks(low: float, high: float) -> tuple[float, float, list[float]]:
    """Return the ends of an axis that covers the values, and ticks at round numbers."""
    span = (high - low) or abs(high) or 1.0
    step = 10 ** math.floor(math.log10(span / 4))
    step *= next(factor for factor in (1, 2, 2.5, 5, 10) if span / (step * factor) <= 5)
    first, last = math.floor(low / step), math.ceil(high / step)
    last = max(last, first + 1)
    ticks = [round(n * step, 12) for n in range(first, last + 1)]
    return ticks[0], ticks[-1], ticks


def _x_ticks(xs: Sequence[float], logarithmic: bool) -> list[float]:
    low, high = min(xs), max(xs)
    if logarithmic:
        first, last = math.ceil(math.log(low, 4) - 1e-9), math.floor(math.log(high, 4) + 1e-9)
        return [4.0**power for power in range(first, last + 1)]
    _, _, ticks = _nice_ticks(low, high)
    return [tick for tick in ticks if low <= tick <= high]
