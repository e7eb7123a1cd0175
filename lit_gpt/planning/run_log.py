"""What a run logged: the scalars of its TensorBoard events, and a row for a table of runs."""

import math
from pathlib import Path
from typing import Any

from lit_gpt.errors import UserError

Series = list[tuple[int, float]]
"""Pairs (optimizer step, value), rising in steps."""


def read_log(run: Path) -> dict[str, Series]:
    """Return every scalar that a run logged, by tag; of a step that was logged twice, the later value.

    Raises:
        UserError: The folder has no TensorBoard events.
    """
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    old = run / "tensorboard"  # of runs that older versions started
    folder = old if old.is_dir() else run
    if not any(folder.glob("events.out.tfevents.*")):
        raise UserError(f"{folder} has no log of TensorBoard; name the folder of a run of `fit`")
    events = EventAccumulator(str(folder), size_guidance={SCALARS: 0})
    events.Reload()
    found = {}
    for tag in events.Tags()["scalars"]:
        values = {scalar.step: scalar.value for scalar in events.Scalars(tag)}
        found[tag] = sorted(values.items())
    return found


def typical_step_seconds(log: dict[str, Series]) -> float | None:
    """Return the median of the logged seconds of a step; None: none was logged."""
    seconds = sorted(value for _, value in log.get("throughput/step_seconds", []) if math.isfinite(value))
    return seconds[len(seconds) // 2] if seconds else None


def run_row(run: Path, log: dict[str, Series], params: int, corpus: str) -> dict[str, Any]:
    """Return a run as a row of a table of runs: its size, and its tokens and loss at the end.

    Args:
        run: Its folder.
        log: Its scalars.
        params: N of its model.
        corpus: What it was trained and measured on.

    Raises:
        UserError: It logged no validation loss.
    """
    validated, tokens = log.get("val/loss", []), dict(log.get("throughput/tokens_seen", []))
    if not validated or not tokens:
        raise UserError(
            f"{run} logged no {'val/loss' if tokens else 'throughput/tokens_seen'}, so it says nothing to a law; give "
            "each run trainer.val_check_interval, and let it log at least twice (trainer.log_every_n_steps)"
        )
    step, loss = validated[-1]
    last = max(tokens)
    return {
        "params": float(params),
        "tokens": tokens[last] * step / last,
        "loss": loss,
        "corpus": corpus,
        "name": run.name,
    }
