"""comparison.html: two models side by side."""

from collections.abc import Mapping
from typing import Any

from lit_gpt.data.card.charts import counted, escape
from lit_gpt.evaluation.page.frame import example, frame, interval_words, number, section, table, words

_SIGNS = {"better": "pass", "worse": "fail", "different": ""}


def comparison_page(comparison: Mapping[str, Any]) -> str:
    """Return the page.

    Args:
        comparison: Plain form of a `Comparison`, with the `verdict` of each difference beside it.
    """
    first, second = comparison["names"]
    differences = comparison["differences"]
    told = [d["verdict"] for d in differences]
    clear = sum(verdict != "" for verdict in told)
    lead = (
        f"{counted(len(differences), 'score')} that both models have; on {clear} of them the difference is more than "
        f"chance. Better and worse are those of {second}."
    )
    head = [
        ("score", "words"),
        (first, ""),
        (second, ""),
        ("difference", ""),
        ("95 % interval", ""),
        ("items", ""),
        ("", ""),
    ]
    note = (
        '<p class="note">Both models are compared on the very same items, so that what makes an item hard for both '
        "cancels out. The interval is of the mean difference; where it holds 0, the difference may be chance. Of many "
        "comparisons, one in twenty looks clear by chance alone.</p>"
    )
    body = f'<header><h1>{escape(first)} and {escape(second)}</h1><p class="lead">{escape(lead)}</p></header>'
    tables = []
    for title in dict.fromkeys(line["title"] for line in differences):
        rows = [_row(line) for line in differences if line["title"] == title]
        tables.append(f"<h3>{escape(title)}</h3>{table(head, rows)}")
    body += section("scores", "Scores", note + "".join(tables))
    if comparison["notes"]:
        notes = "".join(f"<li>{escape(text)}</li>" for text in comparison["notes"])
        body += section("notes", "What could not be compared alike", f'<ul class="notes">{notes}</ul>')
    if comparison["items"]:
        body += section(
            "items", "Items on which they differ", "".join(_item(i, first, second) for i in comparison["items"])
        )
    return frame(f"{first} and {second}", body + "<footer>lit_gpt evaluation. For programs: comparison.json.</footer>")


def _row(line: Mapping[str, Any]) -> list[str]:
    unit, verdict = line["unit"], line["verdict"]
    mark = f'<b class="{_SIGNS.get(verdict, "")}">{verdict}</b>' if verdict else "may be chance"
    return [
        escape(words(line["key"].partition(".")[2])),
        escape(number(line["first"], unit)),
        escape(number(line["second"], unit)),
        f"<b>{escape(_signed(line['difference'], unit))}</b>",
        f'<span class="interval">{escape(interval_words(line["interval"], unit))}</span>',
        f"{line['count']:,}" if line["count"] else "",
        "not item by item" if line["interval"] is None else mark,
    ]


def _item(item: Mapping[str, Any], first: str, second: str) -> str:
    fields: dict[str, str] = {}
    for name, found in ((first, item["first_fields"]), (second, item["second_fields"])):
        for label, text in found.items():
            if text not in fields.values():
                fields[f"{label} ({name})" if label in fields else label] = text
    title = f"{item['key']}, {item['item']}: its part {number(item['first'])} and {number(item['second'])}"
    return example(title, fields)


def _signed(value: float | None, unit: str) -> str:
    text = number(value, unit)
    return f"+{text}" if value is not None and value > 0 else text
