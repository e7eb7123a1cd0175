"""Pictures for the card: SVG for shapes, HTML for every word, so that words keep their size on a phone.

Colours are CSS variables (`style.py`): `--keep` for what is left, `--drop` for what went, `--before` for what was read.
"""

import html
from collections.abc import Mapping, Sequence

from lit_gpt.data.inspection.escape import visible


def escape(value: object) -> str:
    """Returns text that is safe in HTML; control characters, and those that turn the reading round, are spelt out."""
    return html.escape(visible(str(value), keep="\n\t"))


def counted(number: int, noun: str) -> str:
    """`1 document`, `2,000 documents`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def count(value: float) -> str:
    """`1234567` as `1.23 M`: at most three digits that matter."""
    for limit, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e4, " k")):
        if value >= limit:
            divisor = 1e3 if unit == " k" else limit
            return f"{value / divisor:.3g}{unit}" if value / divisor < 1000 else f"{value / divisor:,.0f}{unit}"
    return f"{value:,.0f}"


def share(part: float, whole: float) -> str:
    """`12 %`, with a decimal below ten per cent, and `< 0.1 %` for what would round to nothing."""
    if whole <= 0:
        return "-"
    percent = 100 * part / whole
    if 0 < percent < 0.1:
        return "< 0.1 %"
    if 99.9 < percent < 100:
        return "> 99.9 %"
    return f"{percent:.1f} %" if percent < 10 or percent > 99 else f"{percent:.0f} %"


def stacked_bar(parts: Sequence[tuple[float, str, str]], whole: float) -> str:
    """One horizontal bar of several parts.

    Args:
        parts: (value, CSS variable of its colour, title).
        whole: Value of the full width.
    """
    rects, x = [], 0.0
    for value, colour, title in parts:
        width = 100 * value / whole if whole else 0.0
        if value > 0:
            width = max(width, 0.35)  # what is there can be seen
            rects.append(
                f'<rect x="{x:.3f}" width="{width:.3f}" height="10" style="fill:var({colour})">'
                f"<title>{escape(title)}</title></rect>"
            )
        x += width
    return f'<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">{"".join(rects)}</svg>'


def legend(*entries: tuple[str, str]) -> str:
    """Names of colours: (CSS variable, words)."""
    items = "".join(
        f'<span><i style="background:var({colour})"></i>{escape(words)}</span>' for colour, words in entries
    )
    return f'<p class="legend">{items}</p>'


def bars(rows: Sequence[tuple[str, float, str]], colour: str = "--keep", whole: float | None = None) -> str:
    """Horizontal bars, one a row: (name, value, words beside it)."""
    most = whole if whole is not None else max((value for _, value, _ in rows), default=0.0)
    lines = [bar_row(name, value, words, colour, most) for name, value, words in rows]
    return f'<div class="bars">{"".join(lines)}</div>'


def bar_row(name: str, value: float, words: str, colour: str, whole: float) -> str:
    """One row of `bars`: its name, a bar of `value` in `whole`, and words beside it."""
    return (
        f'<div class="row"><span class="name">{escape(name)}</span>{stacked_bar([(value, colour, words)], whole)}'
        f'<span class="value">{escape(words)}</span></div>'
    )


def kept_bars(rows: Sequence[tuple[str, float, float, str]]) -> str:
    """Horizontal bars of what was read, with what is left in front: (name, read, left, words beside it)."""
    most = max((read for _, read, _, _ in rows), default=0.0)
    lines = [
        f'<div class="row"><span class="name">{escape(name)}</span>'
        + stacked_bar(
            [(min(left, read), "--keep", f"left: {words}"), (max(read - left, 0.0), "--drop", "dropped or cut")], most
        )
        + f'<span class="value">{escape(words)}</span></div>'
        for name, read, left, words in rows
    ]
    return f'<div class="bars">{"".join(lines)}</div>'


def histogram(series: Sequence[tuple[str, str, Mapping[str, int]]], unit: str) -> str:
    """Counts by the number of bits of a length, several series side by side.

    Args:
        series: (name, CSS variable, {bits: documents}).
        unit: What the length is in, for titles and the axis.
    """
    keys = [int(bits) for _, _, values in series for bits, number in values.items() if number]
    if not keys:
        return "<p>Nothing to show.</p>"
    low, high = min(keys), max(keys)
    bins = range(low, high + 1)
    most = max(values.get(str(bits), 0) for _, _, values in series for bits in bins)
    width = 1.0 / len(series)
    rects = []
    for place, bits in enumerate(bins):
        for number, (name, colour, values) in enumerate(series):
            value = values.get(str(bits), 0)
            if not value:
                continue
            height = max(100 * value / most, 0.6)
            begin, end = (0 if bits == 0 else 2 ** (bits - 1)), 2**bits - 1
            title = f"{name}: {counted(value, 'document')} of {begin:,} to {end:,} {unit}"
            rects.append(
                f'<rect x="{place + 0.08 + number * width * 0.84:.3f}" y="{100 - height:.2f}" '
                f'width="{width * 0.8:.3f}" height="{height:.2f}" style="fill:var({colour})">'
                f"<title>{escape(title)}</title></rect>"
            )
    every = max(1, -(-len(bins) // 8))
    labels = "".join(
        f"<span>{escape(_power(bits)) if place % every == 0 else ''}</span>" for place, bits in enumerate(bins)
    )
    return (
        f'<div class="plot"><span class="top">{counted(most, "document")}</span>'
        f'<svg viewBox="0 0 {len(bins)} 100" preserveAspectRatio="none" role="img" '
        f'aria-label="documents by length in {escape(unit)}">{"".join(rects)}</svg>'
        f'<div class="axis">{labels}</div><p class="unit">{escape(unit)} in a document, from (each bar twice the one '
        f"before)</p></div>"
    )


def _power(bits: int) -> str:
    value = 0 if bits == 0 else 2 ** (bits - 1)
    for shift, unit in ((30, "G"), (20, "M"), (10, "k")):
        if value >= 1 << shift:
            return f"{value >> shift}{unit}"
    return str(value)


def curve(points: Sequence[Sequence[int]], x_unit: str, y_unit: str) -> str:
    """A line through (x, y) on logarithmic axes, decades marked."""
    import math

    usable = [(math.log10(x), math.log10(y)) for x, y in points if x > 0 and y > 0]
    if len(usable) < 2:
        return "<p>Nothing to show.</p>"
    right = max(math.ceil(max(x for x, _ in usable)), 1)
    top = max(math.ceil(max(y for _, y in usable)), 1)
    path = " ".join(f"{100 * x / right:.2f},{100 - 100 * y / top:.2f}" for x, y in usable)
    grid = "".join(f'<path class="grid" d="M{100 * n / right:.2f},0V100"/>' for n in range(right + 1))
    grid += "".join(f'<path class="grid" d="M0,{100 - 100 * n / top:.2f}H100"/>' for n in range(top + 1))
    labels = "".join(f'<span style="left:{100 * n / right:.1f}%">{_decade(n)}</span>' for n in range(right + 1))
    sides = "".join(f'<span style="bottom:{100 * n / top:.1f}%">{_decade(n)}</span>' for n in range(top + 1))
    return (
        f'<div class="curve"><span class="top">{escape(y_unit)}</span><div class="side">{sides}</div>'
        f'<svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img" aria-label="{escape(y_unit)} by '
        f'{escape(x_unit)}">{grid}<polyline points="{path}"/></svg><div class="decades">{labels}</div>'
        f'<p class="unit">{escape(x_unit)}</p></div>'
    )


def _decade(exponent: int) -> str:
    return {0: "1", 1: "10", 2: "100", 3: "1k", 4: "10k", 5: "100k", 6: "1M", 7: "10M", 8: "100M", 9: "1G"}.get(
        exponent, f"10^{exponent}"
    )
