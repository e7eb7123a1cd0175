"""Inspect the training data exactly as the model will see it."""

from typing import Literal


def inspect(
    config: str,
    num_windows: int = 4,
    trace: int | None = None,
    split: Literal["train", "val", "test"] = "train",
    html: str | None = None,
    color: Literal["auto", "always", "never"] = "auto",
) -> None:
    """Show what the model will see: token windows, documents, loss masks, stop tokens and sources.

    Works with the DataModule of any YAML that `fit` accepts. With --trace, every window of one optimizer step is traced
    back to its documents: hash, source, record, and position within the document.

    Args:
        config: YAML that `fit` accepts, or the config.yaml in a run's folder.
        num_windows: number of windows to show as text; --trace still traces every window of the step.
        trace: optimizer step to trace, counted from 1 as in TensorBoard; null: no tracing.
        split: split to show; train shows the windows of the first step unless --trace names another.
        html: file to which a self-contained HTML page is written as well; null: none.
        color: whether to color the text; auto: if the output is a terminal and NO_COLOR is not set.
    """
    import os
    import sys
    from pathlib import Path

    from lit_gpt.atomic import atomic_file
    from lit_gpt.checks import check_at_least, local_path
    from lit_gpt.data.inspection import page, terminal
    from lit_gpt.datamodules.inspection import inspect_data, open_datamodule
    from lit_gpt.errors import UserError

    check_at_least("num_windows", num_windows, 1)
    if trace is not None and (trace < 1 or split != "train"):
        raise UserError(f"trace is {trace} and split is {split}; trace must be at least 1, and needs split train")
    datamodule = open_datamodule(
        Path(config), "fit" if split == "train" else {"val": "validate", "test": "test"}[split]
    )
    report = inspect_data(datamodule, split, num_windows, trace)
    use_color = color == "always" or (color == "auto" and sys.stdout.isatty() and not os.environ.get("NO_COLOR"))
    table = "" if trace is None else terminal.trace_table(report, use_color)
    report.num_shown = None if trace is None else num_windows
    if html is not None:  # before printing, which fails if the reader closes the pipe
        with atomic_file(local_path("html", html)) as temporary:
            temporary.write_text(page.render(report), encoding="utf-8")
    print(f"{table}\n{terminal.render(report, use_color)}" if table else terminal.render(report, use_color))
    if html is not None:
        print(f"\nwrote {html}")
