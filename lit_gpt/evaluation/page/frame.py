"""What the pages share: head, style, numbers in words, tables and text that may hold anything."""

import math
from collections.abc import Sequence
from typing import Any

from lit_gpt.data.card.charts import escape
from lit_gpt.data.card.style import CSS as CARD_CSS

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""The browser itself refuses whatever would come from elsewhere, should a text find a way past the escaping."""

CSS = (
    CARD_CSS
    + """
:root { --pass: #2e7d4f; --fail: #b3362c; --s0: #2a6fc4; --s1: #e2783a; --s2: #4f9a62; --s3: #9a5fb8; --s4: #8a7a3a;
  --s5: #3a8f9a; }
@media (prefers-color-scheme: dark) { :root { --pass: #63c088; --fail: #f08378; --s0: #5b9ae6; --s1: #e58a50;
  --s2: #74bd87; --s3: #bf8fda; --s4: #c2b06a; --s5: #62bcc8; } }
.badge { display: inline-block; border-radius: 999px; padding: .1rem .7rem; font-weight: 650; font-size: .95rem;
  border: 1.5px solid currentColor; }
.pass { color: var(--pass); } .fail { color: var(--fail); }
.tile a { color: inherit; } .tile small { display: block; color: var(--soft); font-size: .78rem; }
td .interval { color: var(--soft); font-size: .88em; white-space: nowrap; }
td small { display: block; color: var(--soft); font-size: .8rem; }
td.strip { width: 30%; min-width: 8rem; } .strip svg { display: block; width: 100%; height: 16px; overflow: visible; }
.linechart svg { display: block; width: 100%; height: 220px; overflow: visible; }
.linechart .frame { position: relative; margin: 2rem .6rem 1.5rem 3.2rem; }
.linechart .ticks span { position: absolute; font-size: .78rem; color: var(--soft);
  font-variant-numeric: tabular-nums; white-space: nowrap; }
.linechart .y span { right: calc(100% + .5rem); transform: translateY(50%); }
.linechart .x span { top: calc(100% + .25rem); transform: translateX(-50%); }
.linechart .ylabel { position: absolute; left: -3.2rem; bottom: calc(100% + .75rem); font-size: .82rem;
  color: var(--soft); white-space: nowrap; }
.linechart .xlabel { text-align: right; font-size: .82rem; color: var(--soft); margin: 0; }
.linechart .grid { stroke: var(--line); stroke-width: 1; vector-effect: non-scaling-stroke; }
.linechart polyline { fill: none; stroke-width: 2; vector-effect: non-scaling-stroke; }
.linechart .dot { stroke-width: 7; stroke-linecap: round; vector-effect: non-scaling-stroke; fill: none; }
h3 { margin-top: 1.4rem; } .definition { max-width: 46rem; } .source { color: var(--soft); font-size: .88rem; }
.example { margin: .6rem 0 1rem; } .example h4 { margin: 0 0 .3rem; font-size: .95rem; overflow-wrap: anywhere; }
.example .label { color: var(--soft); font-size: .82rem; margin-top: .4rem; }
.error { border-left: 3px solid var(--fail); padding-left: .8rem; overflow-wrap: anywhere; }
ul.notes { color: var(--soft); font-size: .92rem; padding-left: 1.2rem; max-width: 46rem; }
td.words code { white-space: normal; }
@media (max-width: 34rem) { td.strip, th.strip { display: none; } .linechart .x span:nth-child(even) { display: none; }
  th, td { padding-left: .3rem; padding-right: .3rem; } td.words { min-width: 7rem; } td { white-space: normal; } }
"""
)


def frame(title: str, body: str) -> str:
    """A whole page around a body of HTML."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head><body><main>{body}</main></body></html>\n"
    )


def words(name: str) -> str:
    """`bits_per_byte` as `bits per byte`."""
    return name.replace("_", " ")


def number(value: float | None, unit: str = "") -> str:
    """A score in its unit: shares in per cent, others with four digits that matter."""
    if value is None or not math.isfinite(value):
        return "not a finite number"
    if unit == "share":
        percent = 100 * value
        return f"{percent:.2f} %" if 0 < abs(percent) < 1 else f"{percent:.1f} %"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def interval_words(interval: dict[str, Any] | None, unit: str) -> str:
    """`41.2 to 58.1 %`, or nothing."""
    if interval is None:
        return ""
    low, high = number(interval["low"], unit), number(interval["high"], unit)
    return f"{low.removesuffix(' %')} to {high}"


def table(head: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]]) -> str:
    """A table that scrolls where it is too wide.

    Args:
        head: (title, CSS class) of each column.
        rows: HTML of each cell.
    """
    titles = "".join(f'<th class="{kind}">{escape(title)}</th>' for title, kind in head)
    body = "".join(
        "<tr>" + "".join(f'<td class="{kind}">{cell}</td>' for cell, (_, kind) in zip(row, head, strict=True)) + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>'


def example(title: str, fields: dict[str, str]) -> str:
    """One item to read."""
    body = "".join(
        f'<div class="label">{escape(words(label))}</div><pre>{escape(text) or "(nothing)"}</pre>'
        for label, text in fields.items()
    )
    return f'<div class="example"><h4>{escape(title)}</h4>{body}</div>'


def section(anchor: str, title: str, body: str) -> str:
    """A panel of the page."""
    return f'<section id="{escape(anchor)}"><h2>{escape(title)}</h2>{body}</section>'


def yaml_text(value: Any) -> str:
    """Plain data as somebody would write it."""
    import json

    import yaml

    # Through JSON, so that the same list written twice is not shown as a YAML alias.
    return yaml.safe_dump(json.loads(json.dumps(value)), sort_keys=False, allow_unicode=True, width=100)
