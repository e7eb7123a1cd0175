"""`inspect`: exactly what the model will see."""

from typing import Literal


def inspect(
    config: str,
    num_windows: int = 4,
    trace: int | None = None,
    split: Literal["train", "val", "test"] = "train",
    html: str | None = None,
    color: Literal["auto", "always", "never"] = "auto",
) -> None:
    """Shows what the model will see: windows of tokens, documents, masks, stop tokens and sources.

    Works for the DataModule of any YAML that `fit` takes. With --trace, the windows of one optimizer step are traced
    to their documents: hash, source, record and place in the document.

    Args:
        config: The YAML of a run, as `fit` takes it (or the config.yaml in a run's folder).
        num_windows: Windows to show; with --trace all of the step are traced, and so many shown as text.
        trace: Trace this optimizer step, counted from 1 as TensorBoard counts them.
        split: Split to show; train shows the first step's windows unless --trace names another.
        html: Also write one self-contained HTML page to this file.
        color: Colour the text; auto does where the output is a terminal and NO_COLOR is not set.
    """
    import os
    import sys
    from pathlib import Path

    from lit_gpt.atomic import atomic_file
    from lit_gpt.data.inspection import page, terminal
    from lit_gpt.datamodules.inspection import inspect_data, open_datamodule
    from lit_gpt.errors import UserError

    if num_windows < 1:
        raise UserError(f"num_windows is {num_windows}; it must be at least 1")
    if trace is not None and (trace < 1 or split != "train"):
        raise UserError(f"trace {trace} of the split {split}: optimizer steps count from 1 and are of the split train")
    datamodule = open_datamodule(
        Path(config), "fit" if split == "train" else {"val": "validate", "test": "test"}[split]
    )
    report = inspect_data(datamodule, split, num_windows, trace)
    colour = color == "always" or (color == "auto" and sys.stdout.isatty() and not os.environ.get("NO_COLOR"))
    table = "" if trace is None else terminal.trace_table(report, colour)
    if trace is not None:
        report.num_hidden = max(0, len(report.windows) - num_windows)
        report.windows = report.windows[:num_windows]
    if html is not None:  # first: the reader of the text may close the pipe
        with atomic_file(Path(html).expanduser()) as beside:
            beside.write_text(page.render(report), encoding="utf-8")
    print(f"{table}\n{terminal.render(report, colour)}" if table else terminal.render(report, colour))
    if html is not None:
        print(f"\nwrote {html}")
