"""The checkpoints of a run: which there are, which is whole, which is best, and which one stands for the run."""

import json
from pathlib import Path
from typing import Any

from lit_gpt.checkpoints.manifest import read_manifest, verify
from lit_gpt.checkpoints.step import CHECKPOINTS, step_of
from lit_gpt.errors import UserError

BEST = "best.json"


def list_checkpoints(run_dir: Path) -> list[Path]:
    """Return the checkpoints of a run, newest first: by when they were saved, then by step.

    After a resume from an earlier one, the newest may have fewer steps than one that was left behind.
    """
    folders = [path for path in (Path(run_dir) / CHECKPOINTS).glob("step-*.ckpt") if step_of(path) is not None]
    return sorted(folders, key=lambda path: (_saved_at(path), step_of(path) or 0), reverse=True)


def find_last_whole(run_dir: str | Path) -> tuple[Path, list[str]]:
    """Return a run's newest checkpoint that is whole, and what is wrong with each newer one.

    Raises:
        UserError: the run has no checkpoint, or no whole one (each is named with what is wrong).
    """
    damaged: list[str] = []
    for path in list_checkpoints(Path(run_dir)):
        try:
            verify(path)
            return path, damaged
        except UserError as error:
            damaged.append(str(error))
    if damaged:
        raise UserError(f"every checkpoint in {run_dir} is damaged: " + "; ".join(damaged))
    raise UserError(f"there is no checkpoint in {run_dir}; start the run without --ckpt_path")


def find_best(run_dir: str | Path) -> Path:
    """Return a run's checkpoint with the best validation.

    Raises:
        UserError: no validation has chosen one, or it is gone or damaged.
    """
    folder = Path(run_dir) / CHECKPOINTS
    record = read_best(folder)
    if record is None:
        raise UserError(f"{folder / BEST} names no checkpoint: no validation has run; use --ckpt_path last")
    path = folder / record["checkpoint"]
    verify(path)
    return path


def read_best(checkpoints: Path) -> dict[str, Any] | None:
    """Return `best.json` of a run's checkpoints (`checkpoint`, `step`, `monitor`, `value`) if it names one."""
    try:
        record = json.loads((checkpoints / BEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    sound = isinstance(record, dict) and {"checkpoint", "step", "monitor", "value"} <= record.keys()
    return record if sound and (checkpoints / record["checkpoint"]).is_dir() else None


def chosen_checkpoint(run_dir: Path) -> tuple[Path, tuple[str, ...]]:
    """The checkpoint that stands for a run, and what is wrong with those that were passed over."""
    damaged: list[str] = []
    path = None
    if read_best(run_dir / CHECKPOINTS) is not None:
        try:
            path = find_best(run_dir)
        except UserError as error:
            damaged.append(str(error))
    if path is None:
        path, others = find_last_whole(run_dir)
        damaged += [other for other in others if other not in damaged]
    return path, tuple(damaged)


def _saved_at(path: Path) -> float:
    try:
        return float(read_manifest(path)["saved_at"])
    except (UserError, KeyError, TypeError, ValueError):  # damaged: it is named when its turn comes
        return path.stat().st_mtime
