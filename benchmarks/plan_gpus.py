"""How far the speed of published runs on GPUs is from what `plan` forecasts after calibration by one of them.

    python benchmarks/plan_gpus.py TABLE [--row 20] [--depths 2 4]

TABLE is the measured training throughput of MPT models on H100: the table "H100 80GB BF16" of
github.com/mosaicml/llm-foundry, scripts/train/benchmarking/README.md, as CSV. Each row is planned as a YAML for `fit`:
the model's shape, FSDP2 over its GPUs with parameters gathered in bf16, micro-batch, accumulation, precision and
activation checkpointing. The model of time is corrected by the ratio of one row (`--row`, counted from 0) and scored on
all others; the last line sums up the errors for every other choice of that row.

Memory is scored by what is known of it: a row as it was trained must fit, and a row that was trained with activation
checkpointing, at a third more work, should not fit without.

A row takes half a minute to two minutes of one CPU. `--depths` simulates each row with these two numbers of layers and
extrapolates its work linearly to its own, which is ten times as fast and says nothing on memory.
"""

import argparse
import csv
import logging
import statistics
import tempfile
import warnings
from pathlib import Path
from typing import Any

import yaml

from lit_gpt.planning.devices import find_device
from lit_gpt.planning.forecast import step_parts
from lit_gpt.planning.tracker import SimulatedStep, Work
from lit_gpt.plans import PlannedRun

SHAPES = {
    "760m": (24, 1536, 12),
    "1b": (24, 2048, 16),
    "3b": (32, 2560, 20),
    "7b": (32, 4096, 32),
    "13b": (40, 5120, 40),
    "30b": (48, 7168, 56),
    "70b": (80, 8192, 64),
}
"""Layers, width and heads; MLP of 4 widths, learned positions, tied head, biases: as GPT-2."""
VOCABULARY = 50368


def config(row: dict[str, str], layers: int) -> dict[str, Any]:
    _, width, heads = SHAPES[row["model"]]
    # Composer reduces gradients after every micro-batch; whole ones of 70 B parameters would fit nowhere.
    options = {"all_gather_dtype": "bfloat16", "sync_micro_batches": True}
    strategy = {"class_path": "lit_gpt.plugins.ParallelStrategy", "init_args": options}
    model = {
        "preset": "gpt2",
        "overrides": {"n_layer": layers, "n_head": heads, "n_embd": width},
        "activation_checkpointing": row["activation_checkpointing"] == "True",
    }
    data = {"vocab_size": VOCABULARY, "block_size": int(row["context"])}
    data |= {"global_batch_size": int(row["global_batch_size"]), "micro_batch_size": int(row["micro_batch_size"])}
    trainer = {"max_steps": 1000, "precision": "bf16-mixed", "devices": int(row["num_gpus"]), "strategy": strategy}
    return {
        "trainer": trainer,
        "model": {"class_path": "PretrainModule", "init_args": model},
        "data": {"class_path": "StdlibDataModule", "init_args": data},
    }


def planned(row: dict[str, str], layers: int, file: Path) -> tuple[PlannedRun, Work, SimulatedStep, SimulatedStep]:
    """Return the plan of a row, its work, and its step with activation checkpointing as trained and turned over."""
    file.write_text(yaml.safe_dump(config(row, layers)), encoding="utf-8")
    run = PlannedRun(file, find_device("h100"))
    rows, recomputes = run.micro_batch_size, row["activation_checkpointing"] == "True"
    step = run.simulate(rows, run.micro_batches)
    other = run.simulate(rows, 1, activation_checkpointing=False) if recomputes else step
    return run, run.work(rows, run.micro_batches), step, other


def forecast(row: dict[str, str], depths: list[int], file: Path) -> dict[str, Any]:
    """Return the seconds of a step by the uncalibrated model, its largest parts, and whether it fits."""
    layers = SHAPES[row["model"]][0]
    run, work, step, other = planned(row, depths[0] if depths else layers, file)
    if depths:
        deeper = planned(row, depths[1], file)
        times = (layers - depths[0]) / (depths[1] - depths[0])
        work = work.plus(deeper[1].plus(work, -1.0), times)
    parts = step_parts(work, run.device, run.precision, compiled=False)
    memory = run.device.memory
    return {
        "seconds": sum(parts.values()),
        "parts": parts,
        "fits": step.upper_bytes <= memory,
        "fits without": other.upper_bytes <= memory,
        "bytes": (step.upper_bytes, other.upper_bytes),
    }


def main(table: Path, chosen: int, depths: list[int]) -> None:
    rows = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))
    ratios, found = [], []
    with tempfile.TemporaryDirectory() as folder:
        for place, row in enumerate(rows):
            result = forecast(row, depths, Path(folder) / "run.yaml")
            tokens = int(row["global_batch_size"]) * int(row["context"]) / int(row["num_gpus"])
            measured = tokens / float(row["tokens_per_second_per_gpu"])
            ratios.append(measured / result["seconds"])
            found.append(result)
            parts = ", ".join(f"{name} {value / result['seconds']:.0%}" for name, value in result["parts"].items())
            sizes = "" if depths else f"; {' and '.join(f'{size / 1e9:.0f}' for size in result['bytes'])} GB"
            print(
                f"{place:2} {row['model']:>4}, {row['context']:>5} tokens, {row['num_gpus']:>2} GPUs, "
                f"{row['micro_batch_size']:>2} rows: model {result['seconds']:.3f} s, measured {measured:.3f} s, ratio "
                f"{ratios[-1]:.2f} ({parts}){sizes}",
                flush=True,
            )
    errors = [abs(ratios[chosen] / ratio - 1) for ratio in ratios]  # of the forecast speed
    others = errors[:chosen] + errors[chosen + 1 :]
    print(
        f"calibrated by row {chosen}: ratio {ratios[chosen]:.2f}; {len(others)} other rows: median error of tokens/s "
        f"{statistics.median(others):.1%}, largest {max(others):.1%}, {sum(e <= 0.15 for e in others)} within 15 %"
    )
    medians = [statistics.median(abs(ratio / r - 1) for r in ratios) for ratio in ratios]
    print(
        f"calibrated by any row: median errors {min(medians):.1%} to {max(medians):.1%}, half of them at most "
        f"{statistics.median(medians):.1%}"
    )
    if depths:
        return
    checkpointed = [r for r, row in zip(found, rows, strict=True) if row["activation_checkpointing"] == "True"]
    print(
        f"memory: {sum(r['fits'] for r in found)} of {len(found)} rows fit as they were trained; "
        f"{sum(not r['fits without'] for r in checkpointed)} of {len(checkpointed)} with activation checkpointing do "
        "not fit without"
    )


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    parser = argparse.ArgumentParser()
    parser.add_argument("table", type=Path)
    parser.add_argument("--row", type=int, default=20)
    parser.add_argument("--depths", type=int, nargs=2, default=[])
    options = parser.parse_args()
    main(options.table, options.row, options.depths)
