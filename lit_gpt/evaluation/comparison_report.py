"""Reports to compare: where they lie, and comparison.json and comparison.html."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from lit_gpt.atomic import whole_folder
from lit_gpt.checkpoints.lineage import without_paths
from lit_gpt.errors import UserError
from lit_gpt.evaluation.compare import Comparison
from lit_gpt.evaluation.place import REPORT, asked_with, check_writable, report_folders, weights_sha256
from lit_gpt.evaluation.report import plain, read_report

if TYPE_CHECKING:
    from lit_gpt.evaluation.plan import Plan

COMPARISON = "comparison.json"
COMPARISON_PAGE = "comparison.html"


def find_report(
    name: str, plan: "Plan | None", adapter: str | None = None, chat_template: str | None = None
) -> Path | None:
    """The report that a name stands for.

    Args:
        name: A report.json or its folder, or a model whose reports are looked up.
        plan: Which of a model's reports; None: its only one.
        adapter: That the model is asked with.
        chat_template: That it is asked through, instead of its own.

    Returns:
        None where the plan has not been run on these weights as it is now.

    Raises:
        UserError: Without a plan: there is no report, or there are several to choose from.
    """
    path = Path(name).expanduser()
    if path.is_file() or (path / REPORT).is_file():
        return path
    where, folders = report_folders(name)
    found = [file for folder in folders for file in sorted(folder.glob(f"*/{REPORT}"))]
    if plan is None:
        if not found:
            raise UserError(f"{name} has no report; evaluate it first, or give --config or --suite to do it now")
        if len(found) > 1:
            names = ", ".join(str(file.parent) for file in found)
            raise UserError(f"{name} has several reports; name the one to compare: {names}")
        return found[0]
    identity = weights_sha256(where)
    config = without_paths(plain({**plan.config, **asked_with(name, adapter, chat_template)}))
    for file in found:
        content = read_report(file).content
        same_weights = content["model"]["weights_sha256"] == identity
        if content["name"] == plan.name and same_weights and content["config"] == config:
            return file
    return None


def check_comparison_folder(folder: Path) -> None:
    """Refuse a place for a comparison before anything is measured.

    Raises:
        UserError: There is something else at `folder`, or it cannot be written.
    """
    check_writable(folder)
    if folder.exists() and not (folder / COMPARISON).is_file() and (folder.is_file() or any(folder.iterdir())):
        raise UserError(f"{folder} holds something that is no comparison; choose another --out")


def write_comparison(comparison: Comparison, folder: Path) -> Path:
    """Write comparison.json and comparison.html, whole or not at all; returns the page.

    Raises:
        UserError: As `check_comparison_folder`.
    """
    from lit_gpt.evaluation.pages import comparison_page

    check_comparison_folder(folder)
    content = plain(comparison)
    for values, difference in zip(content["differences"], comparison.differences, strict=True):
        values["verdict"] = difference.verdict
    with whole_folder(folder) as beside:
        text = json.dumps(content, ensure_ascii=False, indent=1, allow_nan=False)
        (beside / COMPARISON).write_text(text + "\n", encoding="utf-8")
        (beside / COMPARISON_PAGE).write_text(comparison_page(content), encoding="utf-8")
    return folder / COMPARISON_PAGE
