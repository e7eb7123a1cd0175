"""Draw the results in `benchmarks/results/` as one picture: bars against peers and the hardware's limit.

    python benchmarks/picture.py                    # writes docs/pages/assets/benchmarks.svg

Longer bars are better. Needs matplotlib (`pip install -e '.[notebooks]'`).
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

ROOT = Path(__file__).resolve().parent.parent
OURS, PEER, LIMIT, INK = "#3f7fd9", "#9aa4b2", "#d9a03f", "#7a828e"
"""Colors that can be read on a light page and on a dark one."""

Bars = dict[str, float]


def _training(results: Any) -> Bars:
    speeds = {row["contender"]: row["tokens_per_second"] for row in results["table"]}
    names = ("lit_gpt, Trainer", "litgpt", "transformers GPT-2", "roofline (matmuls alone)")
    return {name: max(speeds[name], speeds.get(f"{name}, compiled", 0.0)) for name in names}


def _decoding(results: Any) -> Bars:
    speeds = {name: values["median"] for name, values in results["tokens_per_second"].items()}
    transformers = max(speeds["transformers"], speeds["transformers-static"])
    return {"lit_gpt": speeds["ours"], "litgpt": speeds["litgpt"], "transformers": transformers}


def _real_model(results: Any, end: str = "") -> Bars:
    speeds = results["tokens_per_cpu_second"]
    names = {name: name.removesuffix("-x16") for name in speeds if name.endswith("-x16") == bool(end)}
    return {short.replace("ours-", "lit_gpt "): speeds[name] for name, short in names.items()}


def _real_model_batch(results: Any) -> Bars:
    return _real_model(results, "-x16")


def _serving_real_model(results: Any) -> Bars:
    names, speeds = {"ours": "lit_gpt", "vllm": "vllm"}, results["results"]
    return {
        f"{names[who]}, {n} clients": row["tokens_per_cpu_second"]
        for n in ("1", "16", "64")
        for who in names
        for row in [speeds[who][n]]
    }


def _post_training(results: Any) -> Bars:
    tasks = [task for task in ("sft", "dpo", "grpo") if task in results]
    return {f"{task.upper()}, lit_gpt : TRL": results[task]["ratio"] for task in tasks}


def _serving(results: Any) -> Bars:
    names = {"ours": "lit_gpt", "transformers-batched": "transformers"}
    speeds = results["results"]
    return {f"{names[who]}, {n} clients": speeds[who][n]["tokens_per_second"] for n in ("16", "64") for who in names}


def _cleaning(results: Any) -> Bars:
    steps = {name: step for name, step in results["steps"].items() if step["datatrove"]}
    return {name.replace("_", " "): step["lit_gpt"] / step["datatrove"] for name, step in steps.items()}


PANELS: list[tuple[str, str, str, Callable[[Any], Bars]]] = [
    ("Training a small GPT-2", "tokens/s", "train_throughput_cpu", _training),
    ("Decoding one sequence, small shape", "tokens/s", "decode_cpu", _decoding),
    ("SmolLM2, one sequence", "tokens per CPU second", "real_model_cpu", _real_model),
    ("SmolLM2, sixteen sequences", "tokens per CPU second", "real_model_cpu", _real_model_batch),
    ("SmolLM2 over HTTP, bfloat16", "tokens per CPU second", "serve_real_model_cpu", _serving_real_model),
    ("Fine-tuning against TRL", "times as fast", "post_training_cpu", _post_training),
    ("HTTP server, small shape", "tokens/s", "serve_cpu", _serving),
    ("Cleaning, against datatrove", "times as fast", "data_pipeline_one_core", _cleaning),
]
"""Title, unit, file of results, and its bars."""


def draw(folder: Path, out: Path) -> None:
    """Write the picture.

    Args:
        folder: Folder of the results.
        out: File to write; its suffix chooses the format.
    """
    mpl.rcParams.update(
        {"svg.hashsalt": "lit_gpt", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}
    )
    mpl.rcParams.update(dict.fromkeys(("text.color", "xtick.color", "ytick.color", "axes.edgecolor"), INK))
    figure, axes = plt.subplots(4, 2, figsize=(10, 12), layout="constrained")
    for axis, (title, unit, name, read) in zip(axes.flat, PANELS, strict=True):
        bars = read(json.loads((folder / f"{name}.json").read_text()))
        names = list(bars)
        colors = [
            LIMIT if "roofline" in n else OURS if "lit_gpt" in n or unit.startswith("times") else PEER for n in names
        ]
        drawn = axis.barh(names, list(bars.values()), color=colors, height=0.65)
        axis.bar_label(
            drawn, [f"{value:,.2f}" if value < 10 else f"{value:,.0f}" for value in bars.values()], padding=3
        )
        if unit.startswith("times"):
            axis.axvline(1, color=INK, linewidth=1, linestyle=":")
        axis.invert_yaxis()
        axis.set_title(f"{title}: {unit}", loc="left", fontsize=9, color=INK)
        axis.spines[["top", "right", "bottom"]].set_visible(False)
        axis.tick_params(bottom=False, labelbottom=False, left=False)
        axis.margins(x=0.15)
    figure.savefig(out, transparent=True, metadata={"Date": None} if out.suffix == ".svg" else None)


def main() -> None:
    """Draw the picture of the committed results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "pages" / "assets" / "benchmarks.svg")
    arguments = parser.parse_args()
    draw(arguments.results, arguments.out)


if __name__ == "__main__":
    main()
