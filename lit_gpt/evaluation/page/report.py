"""report.html. What it says comes from report.json alone."""

from collections.abc import Mapping
from typing import Any

from lit_gpt.data.card.charts import count, counted, escape
from lit_gpt.evaluation.page.charts import chart, strip
from lit_gpt.evaluation.page.frame import (
    example,
    frame,
    interval_words,
    number,
    section,
    table,
    words,
    yaml_text,
)

_DIRECTIONS = {"higher": "higher is better", "lower": "lower is better", "neither": ""}
_MAX_TILES = 8
_MAX_ROWS, _FEW_ROWS = 14, 8
"""A longer table of scores shows its first few and folds the rest."""


def report_page(report: Mapping[str, Any]) -> str:
    """Return the page."""
    results = report["results"]
    parts = [_header(report)]
    if report["failures"]:
        parts.append(_failures(report["failures"]))
    if report["gate"] is not None:
        parts.append(_gate(report["gate"]))
    parts += [section(f"result-{result['name']}", result["title"], _result(result)) for result in results]
    parts.append(section("model", "The model and how it was measured", _model(report)))
    parts.append(
        "<footer>lit_gpt evaluation. The same for programs: report.json, which also has the value of every item. "
        f"Weights <code>{escape((report['model']['weights_sha256'] or '')[:16])}</code>.</footer>"
    )
    return frame(f"{report['model']['name']} · {report['title']}", "".join(parts))


def _header(report: Mapping[str, Any]) -> str:
    results, failures, gate, model = (report[key] for key in ("results", "failures", "gate", "model"))
    verdict = ""
    if gate is not None:
        missed = sum(not line["passed"] for line in gate["verdicts"])
        total = len(gate["verdicts"])
        told = f"gate passed: {counted(total, 'threshold')}" if gate["passed"] else f"gate missed: {missed} of {total}"
        verdict = f' <a href="#gate" class="badge {"pass" if gate["passed"] else "fail"}">{told}</a>'
    failed = f", {counted(len(failures), 'measure')} failed" if failures else ""
    lead = (
        f"{counted(len(results), 'result')}{failed}, measured on a model of {count(model['parameters'])} parameters "
        f"with a context of {model['block_size']:,} tokens, on {report['created'][:10]}."
    )
    links = "".join(f'<a href="#result-{escape(r["name"])}">{escape(r["title"])}</a>' for r in results)
    return (
        f"<header><h1>{escape(model['name'])}: {escape(report['title'])}</h1>"
        f'<p class="lead">{escape(lead)}{verdict}</p>{_tiles(results)}<nav>{links}'
        '<a href="#model">The model</a></nav>'
        '<p class="note">The range beside a number is its confidence interval: were the measurement repeated with '
        "other items of the same kind, such a range would hold the true value 95 times in 100. Two numbers whose "
        "ranges overlap widely may be equal.</p></header>"
    )


def _tiles(results: list[dict[str, Any]]) -> str:
    tiles = []
    for result in results[:_MAX_TILES]:
        if not result["scores"]:
            continue
        score = result["scores"][0]
        between = interval_words(score["interval"], score["unit"])
        tiles.append(
            f'<div class="tile"><a href="#result-{escape(result["name"])}"><b>'
            f"{escape(number(score['value'], score['unit']))}</b><span>{escape(result['title'])}: "
            f"{escape(words(score['name']))}</span>"
            f"<small>{escape(between)}</small></a></div>"
        )
    return f'<div class="tiles">{"".join(tiles)}</div>' if tiles else ""


def _failures(failures: list[dict[str, Any]]) -> str:
    body = "".join(f'<p class="error"><b>{escape(f["measure"])}</b><br>{escape(f["error"])}</p>' for f in failures)
    return section("failures", "Measures that gave no result", body)


def _gate(gate: Mapping[str, Any]) -> str:
    rows = []
    for line in gate["verdicts"]:
        asked = f"{'at least' if line['kind'] == 'min' else 'at most'} {line['bound']:g}"
        by = " (whole interval)" if line["by"] == "interval" else ""
        mark = '<b class="pass">passed</b>' if line["passed"] else '<b class="fail">missed</b>'
        rows.append([mark, f"<code>{escape(line['key'])}</code>", escape(asked + by), escape(line["reason"])])
    note = (
        '<p class="note">Thresholds that were written down before the model was measured. A model that misses one is '
        "refused by <code>export</code>.</p>"
    )
    head = [("", ""), ("score", "words"), ("asked", "words"), ("found", "words")]
    return section("gate", "Gate", note + table(head, rows))


def _result(result: Mapping[str, Any]) -> str:
    parts = [f'<p class="definition">{escape(result["definition"])}</p>']
    if result["source"]:
        parts.append(f'<p class="source">Source: {escape(result["source"])}</p>')
    shares = any(score["unit"] == "share" for score in result["scores"])
    rows = []
    for score in result["scores"]:
        unit = score["unit"]
        unit_words = "" if unit in ("", "share") or unit == words(score["name"]) else f" {unit}"
        between = interval_words(score["interval"], unit)
        method = f' title="{escape(score["interval"]["method"])}"' if score["interval"] else ""
        row = [
            f"{escape(words(score['name']))}<small>{_DIRECTIONS[score['better']]}</small>",
            f"<b>{escape(number(score['value'], unit))}</b>{escape(unit_words)}",
            f'<span class="interval"{method}>{escape(between)}</span>',
            f"{score['count']:,}",
        ]
        if shares:
            row.insert(3, strip(score["value"], score["interval"]) if unit == "share" else "")
        rows.append(row)
    head = [("score", "words"), ("value", ""), ("95 % interval", ""), ("items", "")]
    if shares:
        head.insert(3, ("0 to 100 %", "strip"))
    shown = len(rows) if len(rows) <= _MAX_ROWS else _FEW_ROWS
    parts.append(table(head, rows[:shown]))
    if rows[shown:]:
        more = counted(len(rows) - shown, "further score")
        parts.append(f"<details><summary>{more}</summary>{table(head, rows[shown:])}</details>")
    parts += [chart(values) for values in result["charts"]]
    if result["notes"]:
        notes = "".join(f"<li>{escape(note)}</li>" for note in result["notes"])
        parts.append(f'<h3>What limits it</h3><ul class="notes">{notes}</ul>')
    if result["examples"]:
        items = "".join(example(item["title"], item["fields"]) for item in result["examples"])
        number_of = counted(len(result["examples"]), "example")
        parts.append(f"<details><summary>{number_of}</summary>{items}</details>")
    if result["settings"]:
        settings = escape(yaml_text(result["settings"]))
        parts.append(f"<details><summary>Settings, to repeat it</summary><pre>{settings}</pre></details>")
    return "".join(parts)


def _model(report: Mapping[str, Any]) -> str:
    model = report["model"]
    facts = {
        "model": model["name"],
        "checkpoint": model["checkpoint"],
        "parameters": f"{model['parameters']:,}",
        "weights": model["dtype"],
        "weights SHA-256": model["weights_sha256"],
        "chat template": model["chat_template"],
        **model["lineage"],
        "measured": f"{report['created'][:19].replace('T', ' ')} UTC, in {report['seconds']:g} s on "
        f"{report['machine']['device']}",
        "lit_gpt": report["code"]["lit_gpt"],
        "torch": report["code"]["torch"],
    }
    rows = [[escape(words(name)), f"<code>{escape(value)}</code>"] for name, value in facts.items() if value]
    notes = "".join(f"<li>{escape(note)}</li>" for note in report["notes"])
    return (
        (f'<ul class="notes">{notes}</ul>' if notes else "")
        + table([("", "words"), ("", "words")], rows)
        + "<h3>What was asked for</h3><pre>"
        + escape(yaml_text(report["config"]))
        + "</pre>"
    )
