"""Charts of results: SVG for shapes, HTML for every word (see `lit_gpt.data.card.charts`)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lit_gpt.data.card.charts import bar_row, escape, legend
from lit_gpt.evaluation.page.frame import number

COLOURS = 6
"""`--s0` to `--s5`."""
_MAX_DOTTED = 40
"""Points of a line that are marked each; with more, the line says enough."""
_LOGARITHMIC_FROM = 50.0
"""A positive x axis whose ends are so far apart, as a ratio, is drawn logarithmic."""


def chart(values: Mapping[str, Any]) -> str:
    """A chart of a result, from its plain form."""
    title = f"<h3>{escape(values['title'])}</h3>"
    series = {name: list(points) for name, points in values["series"].items()}
    if not any(value is not None for points in series.values() for value in points):
        return f"{title}<p>Nothing to show.</p>"
    if values["kind"] == "bar" and not any(value for points in series.values() for value in points):
        return f'{title}<p class="note">All are 0: {escape(", ".join(map(str, values["x"])))}.</p>'
    names = legend(*((f"--s{n % COLOURS}", name) for n, name in enumerate(series))) if len(series) > 1 else ""
    if values["kind"] == "bar":
        return title + names + _bar_chart(values["x"], series, values["y_label"])
    return title + names + _line_chart(values["x"], series, values["x_label"], values["y_label"])


def _bar_chart(names: Sequence[Any], series: Mapping[str, list[float | None]], y_label: str) -> str:
    most = max((abs(value) for points in series.values() for value in points if value is not None), default=0.0)
    share = _unit(y_label)
    most = 1.0 if share else most
    lines = []
    for place, name in enumerate(names):
        for n, points in enumerate(series.values()):
            value = points[place]
            told = "-" if value is None else number(value, share)
            length = 0.0 if value is None else abs(value)
            lines.append(bar_row(str(name) if n == 0 else "", length, told, f"--s{n % COLOURS}", most))
    unit = f'<p class="note">{escape(y_label)}</p>' if y_label else ""
    return f'{unit}<div class="bars">{"".join(lines)}</div>'


def _line_chart(xs: Sequence[float], series: Mapping[str, list[float | None]], x_label: str, y_label: str) -> str:
    values = [value for points in series.values() for value in points if value is not None]
    share = _unit(y_label)
    bottom, top, y_ticks = _nice(min(values), max(values))
    logarithmic = min(xs) > 0 and max(xs) / min(xs) >= _LOGARITHMIC_FROM
    scale = math.log if logarithmic else float
    left, right = scale(min(xs)), scale(max(xs))
    width = (right - left) or 1.0

    def x_of(x: float) -> float:
        return 100 * (scale(x) - left) / width

    def y_of(y: float) -> float:
        return 100 - 100 * (y - bottom) / ((top - bottom) or 1.0)

    lines = "".join(f'<path class="grid" d="M0,{y_of(tick):.2f}H100"/>' for tick in y_ticks)
    for n, (name, points) in enumerate(series.items()):
        places = [(x_of(x), y_of(y)) for x, y in zip(xs, points, strict=True) if y is not None]
        colour = f"stroke:var(--s{n % COLOURS})"
        lines += f'<polyline style="{colour}" points="{" ".join(f"{x:.2f},{y:.2f}" for x, y in places)}"/>'
        for x, y in zip(xs, points, strict=True):
            if y is not None and len(xs) <= _MAX_DOTTED:
                told = escape(f"{name}: {number(y, share)} at {number(x)} {x_label}")
                place = f"M{x_of(x):.2f},{y_of(y):.2f}h0"
                lines += f'<path class="dot" style="{colour}" d="{place}"><title>{told}</title></path>'
    side = "".join(f'<span style="bottom:{100 - y_of(t):.1f}%">{number(t, share)}</span>' for t in y_ticks)
    below = "".join(f'<span style="left:{x_of(t):.1f}%">{number(t)}</span>' for t in _x_ticks(xs, logarithmic))
    note = f"{x_label} (logarithmic)" if logarithmic else x_label
    return (
        f'<div class="linechart"><div class="frame"><span class="ylabel">{escape(y_label)}</span>'
        f'<svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img" aria-label="{escape(y_label)} by '
        f'{escape(x_label)}">{lines}</svg><div class="ticks y">{side}</div><div class="ticks x">{below}</div></div>'
        f'<p class="xlabel">{escape(note)}</p></div>'
    )


def strip(value: float | None, interval: Mapping[str, Any] | None) -> str:
    """A share on its scale from 0 to 1: the value as a point, its interval as a bar."""
    if value is None:
        return ""
    bar = ""
    if interval is not None and interval["low"] is not None and interval["high"] is not None:
        low, high = max(0.0, interval["low"]), min(1.0, interval["high"])
        bar = (
            f'<rect x="{100 * low:.2f}" y="5" width="{max(100 * (high - low), 0.5):.2f}" height="6" '
            'style="fill:var(--keep);opacity:.35"/>'
        )
    place = 100 * min(max(value, 0.0), 1.0)
    return (
        '<svg viewBox="0 0 100 16" preserveAspectRatio="none" aria-hidden="true">'
        '<rect x="0" y="7.5" width="100" height="1" style="fill:var(--line)"/>'
        f'{bar}<rect x="{min(place, 99.2):.2f}" y="2" width=".8" height="12" style="fill:var(--keep)"/></svg>'
    )


def _unit(label: str) -> str:
    """`share` for an axis of numbers from 0 to 1, shown in per cent."""
    return "share" if label.startswith("share") else ""


def _nice(low: float, high: float) -> tuple[float, float, list[float]]:
    """Ends of an axis around the values, and ticks at round numbers."""
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
    _, _, ticks = _nice(low, high)
    return [tick for tick in ticks if low <= tick <= high]
