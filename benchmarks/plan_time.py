"""How far the time of real runs on this CPU is from what `plan` forecasts after measuring other shapes.

    python benchmarks/plan_time.py FOLDER [--cpu_time]

Each case is a YAML for `fit` on the text files in FOLDER, of which a few steps are trained through the Trainer as
`plan --measure` does. The calibration cases, run among the others, correct the model of time; the others are forecast
with it and scored. `--cpu_time` measures the processor's time in place of the clock's, for a machine that is busy with
other work (set OMP_NUM_THREADS=1).
"""

import logging
import random
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

from lit_gpt.planning.devices import find_device
from lit_gpt.planning.forecast import calibration_from
from lit_gpt.plans import PlannedRun

MOE = {"num_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 192}
MLA = {"kv_lora_rank": 48, "q_lora_rank": None, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32}


def case(layers: int, width: int, heads: int, inner: int, **more: Any) -> dict[str, Any]:
    shape = {"layers": layers, "width": width, "heads": heads, "inner": inner}
    return shape | {"T": 128, "B": 8, "V": 2048} | more


CALIBRATION = {
    "2 x 128": case(2, 128, 4, 384),
    "3 x 192, long": case(3, 192, 3, 512, T=256, B=4),
    "2 x 256, large vocabulary": case(2, 256, 4, 704, B=4, V=8192),
    "4 x 96, short": case(4, 96, 3, 256, T=64, B=16),
    "2 x 160, experts": case(2, 160, 5, 448, moe=MOE),
    "2 x 192, bf16": case(2, 192, 3, 512, precision="bf16-mixed"),
}
SCORED = {
    "4 x 128": case(4, 128, 4, 512),
    "6 x 128": case(6, 128, 2, 384, B=4),
    "2 x 320": case(2, 320, 5, 896, B=4),
    "3 x 256": case(3, 256, 8, 704, B=6),
    "1 x 384": case(1, 384, 6, 1024, B=6),
    "4 x 192, T 512": case(4, 192, 6, 512, T=512, B=2),
    "2 x 128, T 1024": case(2, 128, 4, 384, T=1024, B=1),
    "3 x 160, T 64": case(3, 160, 5, 448, T=64, B=16),
    "2 x 192, V 8192": case(2, 192, 3, 512, V=8192),
    "8 x 64": case(8, 64, 2, 192),
    "3 x 128, two micro-batches": case(3, 128, 4, 384, micro=4),
    "3 x 192, recomputed": case(3, 192, 3, 512, recompute=True),
    "3 x 128, bf16": case(3, 128, 4, 384, precision="bf16-mixed"),
    "2 x 256, bf16": case(2, 256, 4, 704, precision="bf16-mixed"),
    "3 x 128, experts": case(3, 128, 4, 384, moe=MOE),
    "2 x 192, latent attention": case(2, 192, 3, 512, mla=MLA, qk_norm=None),
    "3 x 128, Muon": case(3, 128, 4, 384, muon=True),
    "4 x 160, GELU MLP": case(4, 160, 5, 640, mlp="gelu"),
    "2 x 256, grouped queries": case(2, 256, 8, 704, n_kv_head=2),
    "2 x 64": case(2, 64, 2, 192, B=16),
}


def config(values: dict[str, Any], texts: Path, cache: Path) -> dict[str, Any]:
    names = ("moe", "mla", "qk_norm", "mlp", "n_kv_head")
    overrides = {name: values[name] for name in names if name in values}
    overrides |= {"n_layer": values["layers"], "n_head": values["heads"], "n_embd": values["width"]}
    overrides["intermediate_size"] = values["inner"]
    model = {"preset": "tiny", "overrides": overrides, "activation_checkpointing": values.get("recompute", False)}
    if values.get("muon"):
        model["optimizer"] = {"class_path": "MuonAdamW"}
    data = {"files": str(texts), "vocab_size": values["V"], "block_size": values["T"], "global_batch_size": values["B"]}
    data |= {"cache_dir": str(cache)} | ({"micro_batch_size": values["micro"]} if "micro" in values else {})
    return {
        "trainer": {"name": "timed", "max_steps": 100, "precision": values.get("precision", "32-true")},
        "model": {"class_path": "PretrainModule", "init_args": model},
        "data": {"class_path": "TextDataModule", "init_args": data},
    }


def measured(values: dict[str, Any], texts: Path, folder: Path) -> tuple[float, float]:
    """Return seconds of a step by the uncalibrated model, and as measured."""
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(config(values, texts, folder / "cache")))
    run = PlannedRun(file, find_device("cpu"))
    forecast = run.step_seconds()
    return forecast, run.measure(max_steps=60, max_seconds=8).calibration.ratio * forecast


def main(texts: Path) -> None:
    model, steps = {}, {}
    with tempfile.TemporaryDirectory() as name:
        for label in interleaved():
            model[label], steps[label] = measured((CALIBRATION | SCORED)[label], texts, Path(name))
            print(f"{label:28} model {model[label]:.3f} s, measured {steps[label]:.3f} s", flush=True)
    ratios = [steps[label] / model[label] for label in CALIBRATION | SCORED]
    calibration = calibration_from(ratios[: len(CALIBRATION)], "")
    print(f"calibrated: ratio {calibration.ratio:.3f}, interval x/÷ {calibration.spread:.2f}")
    for label in SCORED:
        forecast = model[label] * calibration.ratio
        print(
            f"{label:28} forecast {forecast:.3f} s, measured {steps[label]:.3f} s, {steps[label] / forecast - 1:+.1%}"
        )
    errors, held = scored(ratios[: len(CALIBRATION)], ratios[len(CALIBRATION) :])
    print(f"{len(errors)} runs: median error {statistics.median(errors):.1%}, largest {max(errors):.1%}, "
          f"{sum(held)} in the 90 % interval")  # fmt: skip
    # One choice of shapes to calibrate by says little about an interval; what would the others have given?
    choices = [random.sample(ratios, len(ratios)) for _ in range(2000)]
    many = [scored(one[: len(CALIBRATION)], one[len(CALIBRATION) :]) for one in choices]
    print(f"calibrated by any {len(CALIBRATION)} of all shapes ({len(many)} choices): median error "
          f"{statistics.mean(statistics.median(errors) for errors, _ in many):.1%}, "
          f"{statistics.mean(statistics.mean(held) for _, held in many):.0%} in the 90 % interval")  # fmt: skip


def interleaved() -> list[str]:
    """Return the calibrating shapes spread over the others: a machine's speed drifts within minutes."""
    every = len(SCORED) // len(CALIBRATION)
    order = list(SCORED)
    for place, label in enumerate(CALIBRATION):
        order.insert(place * (every + 1), label)
    return order


def scored(calibrating: list[float], others: list[float]) -> tuple[list[float], list[bool]]:
    """Return the relative errors of the other runs' forecasts, and which lie in the interval."""
    calibration = calibration_from(calibrating, "")
    left = [ratio / calibration.ratio for ratio in others]
    return [abs(ratio - 1) for ratio in left], [1 / calibration.spread <= ratio <= calibration.spread for ratio in left]


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    clock = time.process_time if "--cpu_time" in sys.argv else time.perf_counter
    random.seed(0)
    with mock.patch.object(time, "perf_counter", clock):
        main(Path(next(word for word in sys.argv[1:] if not word.startswith("--"))))
