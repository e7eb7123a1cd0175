"""Post-training against TRL: equal losses, then speed and memory, alternating in one run.

    python benchmarks/post_training.py --trl_python .venv-trl/bin/python --out results.json
    python benchmarks/post_training.py --trl_python .venv-trl/bin/python --tasks losses
    python benchmarks/post_training.py --trl_python .venv-trl/bin/python --shape llama-1b --device cuda

`--trl_python` is the interpreter of an environment with `pip install trl==1.16.0 torch==2.13.0`. Both sides load the
same Llama folder and the same rows (functions of the standard library), cut into the same tokens.

`losses`: DPO and its kin, KTO, ORPO, SimPO, GRPO, the reward model and GKD on one batch, from the same weights: TRL's
trainers against our modules. The difference must be at most 1e-5.

`sft` (packed), `dpo` (a frozen reference) and `grpo` (no reference, 8 answers a prompt): every contender trains in a
process of its own, so that its peak memory is its own; the rounds alternate, because a machine drifts. Float32 on a
CPU, bf16 autocast on a GPU; AdamW, no gradient checkpointing on either side; the same rows of a forward. TRL packs as
it does by default (`bfd`), and flattens packed rows into one. CPU time, of all threads, is what remains comparable on
a machine that does other work too.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
TASKS = ("sft", "dpo", "grpo")
UNITS = {"sft": "tokens/s", "dpo": "tokens/s", "grpo": "prompts/s"}
AIMS = {"sft": 1.3, "dpo": 1.3, "grpo": 2.0}


def child(python: str, script: str, arguments: list[str]) -> dict:
    """The JSON that a contender prints last."""
    done = subprocess.run([python, HERE / script, *arguments], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{script} {' '.join(arguments)} failed:\n{done.stderr[-3000:]}")
    result: dict = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def compare_losses(contenders: dict, common: list[str]) -> dict:
    """Print each loss on both sides, and how far they are apart."""
    values = {name: child(*call, ["--task", "losses", *common]) for name, call in contenders.items()}
    print(f"{'loss':24}{'lit_gpt':>14}{'TRL':>14}{'difference':>14}")
    worst = 0.0
    for name, theirs in values["trl"].items():
        ours = values["lit_gpt"][name]
        worst = max(worst, abs(ours - theirs))
        print(f"{name:24}{ours:14.7f}{theirs:14.7f}{abs(ours - theirs):14.1e}")
    print(f"largest difference {worst:.1e}: {'equal' if worst <= 1e-5 else 'NOT EQUAL'} (bound 1e-5)\n", flush=True)
    return values | {"largest_difference": worst}


def compare_speed(task: str, contenders: dict, common: list[str], rounds: int) -> dict:
    """Print rate and peak memory of each side, medians over rounds."""
    runs: dict[str, list[dict]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name, call in contenders.items():
            runs[name].append(child(*call, ["--task", task, *common]))
            last = runs[name][-1]
            line = f"  {task} round {number + 1} {name:8}{last['rate']:12.2f} {UNITS[task]}"
            print(line, file=sys.stderr, flush=True)
    rate = {name: statistics.median(run["rate"] for run in each) for name, each in runs.items()}
    peak = {name: statistics.median(run["peak_mb"] for run in each) for name, each in runs.items()}
    gained = {name: statistics.median(run["gained_mb"] for run in each) for name, each in runs.items()}
    work = {name: statistics.median(run["cpu_rate"] for run in each) for name, each in runs.items()}
    ratio, of_work = rate["lit_gpt"] / rate["trl"], work["lit_gpt"] / work["trl"]
    shown = " against TRL's ".join(f"{rate[name]:.2f}" for name in ("lit_gpt", "trl"))
    print(f"{task}: {shown} {UNITS[task]}: {ratio:.2f} x (aim {AIMS[task]} x); by CPU time {of_work:.2f} x")
    for name in contenders:
        print(f"   {name:8} peak {peak[name]:8.0f} MB, of which training {gained[name]:8.0f} MB")
    sys.stdout.flush()
    return {
        "rate": rate,
        "unit": UNITS[task],
        "ratio": ratio,
        "cpu_ratio": of_work,
        "peak_mb": peak,
        "gained_mb": gained,
        "runs": runs,
    }


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl_python", required=True)
    parser.add_argument("--shape", default="small")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--tasks", default="losses,sft,dpo,grpo")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out")
    args = parser.parse_args()
    contenders = {
        "lit_gpt": (sys.executable, "post_training_ours.py"),
        "trl": (args.trl_python, "post_training_trl.py"),
    }
    results: dict = {"machine": platform.machine(), "shape": args.shape, "device": args.device, "steps": args.steps}
    with tempfile.TemporaryDirectory() as folder:
        material = ["--material", folder, "--steps", str(args.steps), "--device", args.device]
        results["versions"] = child(*contenders["lit_gpt"], ["--task", "material", "--shape", args.shape, *material])
        for task in args.tasks.split(","):
            if task == "losses":  # of a small model: sums of few float32 numbers can be compared to 1e-5
                small = ["--material", tempfile.mkdtemp(dir=folder), "--steps", "2"]
                child(*contenders["lit_gpt"], ["--task", "material", "--shape", "tiny", *small])
                results[task] = compare_losses(contenders, small)
            elif task in TASKS:
                results[task] = compare_speed(task, contenders, material, args.rounds)
            else:
                sys.exit(f"no task {task!r}; there are losses, {', '.join(TASKS)}")
    if args.out:
        Path(args.out).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
