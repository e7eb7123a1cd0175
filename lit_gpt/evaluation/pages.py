"""The HTML pages of an evaluation: report.html of one model, comparison.html of two."""

from collections.abc import Mapping
from typing import Any

from lit_gpt.pages import render_page


def report_page(report: Mapping[str, Any]) -> str:
    """Return the page of a report.

    Args:
        report: Plain form of a `Report`, as report.json has it.
    """
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
    return render_page("evaluation.html", report=report, facts=facts)


def comparison_page(comparison: Mapping[str, Any]) -> str:
    """Return the page of a comparison.

    Args:
        comparison: Plain form of a `Comparison`, with the `verdict` of each difference.
    """
    titles = list(dict.fromkeys(line["title"] for line in comparison["differences"]))
    first, second = comparison["names"]

    def fields(item: Mapping[str, Any]) -> dict[str, str]:
        """Return the texts of an item, with those that both models share only once."""
        shown: dict[str, str] = {}
        for name, found in ((first, item["first_fields"]), (second, item["second_fields"])):
            for label, text in found.items():
                if text not in shown.values():
                    shown[f"{label} ({name})" if label in shown else label] = text
        return shown

    return render_page("comparison.html", comparison=comparison, titles=titles, fields=fields)
