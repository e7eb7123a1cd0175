"""The newest evaluation of a model's weights, for whoever hands the model on."""

from pathlib import Path

from lit_gpt.evaluation.place import REPORT, report_folders, weights_sha256
from lit_gpt.evaluation.report import Report, read_report


def newest_report(model: str | Path) -> Report | None:
    """Return the newest report on the weights of a model; arguments, None and errors as `reports_of`."""
    return next(iter(reports_of(model)), None)


def reports_of(model: str | Path) -> list[Report]:
    """Return the reports on the weights of a model, newest first.

    Args:
        model: A run, checkpoint or bundle, or a Hugging Face folder that was evaluated from this working directory.

    Returns:
        Empty where these weights have not been evaluated; reports on others, such as those of an earlier checkpoint or
        of the model with an adapter, do not count.

    Raises:
        UserError: There is no such model, or a report beside it is damaged.
    """
    path, folders = report_folders(model)
    files = sorted(file for folder in folders for file in folder.glob(f"*/{REPORT}"))
    if not files:
        return []
    identity = weights_sha256(path)
    reports = [
        report
        for report in map(read_report, files)
        if report.content["model"]["weights_sha256"] == identity and "adapter" not in report.content.get("config", {})
    ]
    return sorted(reports, key=lambda report: str(report.content["created"]), reverse=True)
