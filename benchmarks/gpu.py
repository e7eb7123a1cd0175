"""What one GPU does, measured unattended within ten minutes, into one file.

    python benchmarks/gpu.py --out results.json
    python benchmarks/gpu.py --dry_run --out results.json       # the same code on tiny shapes on a CPU
    python benchmarks/gpu.py --parts train-124m decode --out results.json

| part | what |
|---|---|
| `tests` | the tests marked `gpu` |
| `train-124m`, `train-1b` | GPT-2 and Llama 3.2 1B in bf16 through the Trainer, eager and compiled: tokens/s, MFU |
| `fp8` | the 1B shape with torchao's float8 linear layers in the blocks, compiled |
| `packed` | 124M with documents of 300 tokens in each row (FlexAttention), compiled, beside rows of one document |
| `strategy` | 124M compiled under `ParallelStrategy` on one device, beside the same without it |
| `decode` | `decode.py`: 1 and 64 sequences of the 1B shape, compiled with CUDA graphs, against transformers |
| `post_training` | `post_training.py`: SFT and DPO against TRL; needs `--trl_python` |

Every training case runs in a process of its own and searches its micro-batch: sizes are doubled until memory is
exhausted or the speed falls, and the fastest counts. The file is written after every case, so that what was measured
stays if the time is up. A part that fails is reported in the file with its last line of output.
"""

import argparse
import itertools
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
CASES: dict[str, list[dict[str, Any]]] = {
    "train-124m": [{"preset": "gpt2", "compile": False}, {"preset": "gpt2", "compile": True}],
    "train-1b": [{"preset": "llama-3.2-1b", "compile": False}, {"preset": "llama-3.2-1b", "compile": True}],
    "fp8": [{"preset": "llama-3.2-1b", "compile": True, "fp8": True}],
    "packed": [{"preset": "gpt2", "compile": True, "document": 300}],
    "strategy": [{"preset": "gpt2", "compile": True, "strategy": True}],
}
PARTS = ("tests", *CASES, "decode", "post_training")
TINY = {"n_layer": 2, "n_head": 4, "n_kv_head": 4, "n_embd": 64, "intermediate_size": 128, "vocab_size": 512}
WARMUP_STEPS, STEPS = 3, 8
SEQUENCES = {"cuda": 64, "cpu": 4}
"""Sequences of an optimizer step; a larger micro-batch is not tried."""


def measure(case: dict[str, Any], micro_batch: int, block_size: int, device: str) -> dict[str, float]:
    """Train a few steps through the Trainer.

    Args:
        case: One of `CASES`.
        micro_batch: Sequences that the device processes at once; an optimizer step has `SEQUENCES[device]`.
        block_size: T, tokens of a sequence.
        device: `cuda` or `cpu`.

    Returns:
        Tokens per second and peak memory in bytes.
    """
    import lightning.pytorch as pl
    from torch.utils.data import DataLoader

    from lit_gpt.modules import PretrainModule
    from lit_gpt.plugins import ParallelStrategy
    from lit_gpt.trainer import Trainer

    overrides = {"block_size": block_size} | ({} if device == "cuda" else TINY)
    vocab_size = 512 if device == "cpu" else 50257
    ids = torch.randint(0, vocab_size, (micro_batch, block_size + 1), generator=torch.Generator().manual_seed(0))
    length = case.get("document", block_size)
    positions = torch.arange(block_size)
    batch = {
        "input_ids": ids[:, :-1].contiguous(),
        "labels": ids[:, 1:].contiguous(),
        "position_ids": (positions % length).expand(micro_batch, -1).contiguous(),
        "document_ids": (positions // length).expand(micro_batch, -1).contiguous(),
        "num_bytes": torch.full((micro_batch,), block_size),
    }
    ends: list[float] = []

    class Clock(pl.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            if device == "cuda":
                torch.cuda.synchronize()
            ends.append(time.perf_counter())

    class Module(PretrainModule):
        def build_model(self) -> torch.nn.Module:
            model = super().build_model()
            if case.get("fp8"):
                from torchao.float8 import convert_to_float8_training

                for block in model.blocks:
                    convert_to_float8_training(block)
            return model

    step = [batch] * (SEQUENCES[device] // micro_batch)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            default_root_dir=folder,
            max_steps=WARMUP_STEPS + STEPS,
            callbacks=[Clock()],
            accelerator=device,
            devices=1,
            precision="bf16-mixed" if device == "cuda" else "32-true",
            enable_checkpointing=False,
            **({"strategy": ParallelStrategy()} if case.get("strategy") else {}),
        )
        module = Module(preset=case["preset"], overrides=overrides, compile=case["compile"])
        trainer.fit(module, train_dataloaders=DataLoader([step] * (WARMUP_STEPS + STEPS), batch_size=None))
    seconds = statistics.median(end - start for start, end in itertools.pairwise(ends[WARMUP_STEPS - 1 :]))
    tokens_per_second = len(step) * micro_batch * block_size / seconds
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    return {"tokens_per_second": tokens_per_second, "peak_bytes": peak, "flops_per_token": _flops(module, block_size)}


def _flops(module: Any, block_size: int) -> float:
    """Return the training FLOPs per token of a model (PaLM's count, attention not halved)."""
    from lit_gpt.models.counts import flops_per_token

    return float(flops_per_token(module.config, block_size))


def search(case: dict[str, Any], device: str) -> None:
    """Find the fastest micro-batch of a case and print its figures as the last line."""
    from lit_gpt.planning.hardware import peak_flops

    block_size = 1024 if device == "cuda" else 32
    found: dict[int, dict[str, float]] = {}
    size = SEQUENCES[device] // 8 or 1
    while size <= SEQUENCES[device]:
        try:
            found[size] = measure(case, size, block_size, device)
        except torch.OutOfMemoryError:
            break
        if size // 2 in found and found[size]["tokens_per_second"] < found[size // 2]["tokens_per_second"]:
            break
        size *= 2
    best = max(found, key=lambda number: found[number]["tokens_per_second"])
    figures = found[best]
    peak = peak_flops(torch.device(device))
    mfu = None if peak is None else figures["tokens_per_second"] * figures.pop("flops_per_token") / peak
    tried = {number: round(values["tokens_per_second"]) for number, values in found.items()}
    print(json.dumps(case | {"micro_batch": best, "mfu": mfu, "tried": tried} | figures))


def command(part: str, arguments: argparse.Namespace, device: str) -> list[list[str]]:
    """Return the commands of a part; each prints or writes one result."""
    out = f"{arguments.out}.{part}.json"
    if part == "tests":
        return [
            [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", str(HERE.parent / "tests")]
        ]
    if part == "decode":
        options = ["--device", "cuda", "--dtype", "bfloat16", "--shape", "llama-1b", "--new_tokens", "128"]
        options = ["--new_tokens", "8"] if device == "cpu" else options
        contenders = "ours-compiled,ours-compiled-x64,transformers" if device == "cuda" else "ours,ours-x4"
        options += ["--rounds", "1" if device == "cpu" else "3", "--contenders", contenders, "--out", out]
        return [[sys.executable, str(HERE / "decode.py"), *options]]
    if part == "post_training":
        if arguments.trl_python is None:
            return []
        options = ["--trl_python", arguments.trl_python, "--device", device, "--tasks", "sft,dpo", "--out", out]
        options += ["--steps", "2", "--rounds", "1"] if device == "cpu" else []
        return [[sys.executable, str(HERE / "post_training.py"), *options]]
    return [[sys.executable, __file__, "--case", json.dumps(case), "--device", device] for case in CASES[part]]


def main() -> None:
    """Run the parts one after another, and write the file after each result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--minutes", type=float, default=10, help="no command is started after this, or runs past it")
    parser.add_argument("--trl_python", help="interpreter of an environment with trl; left out without one")
    parser.add_argument("--dry_run", action="store_true", help="tiny shapes on the CPU, to try the script itself")
    parser.add_argument("--out", type=Path, help="write the figures to this json file")
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--device", default="cuda", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        search(arguments.case, arguments.device)
        return
    if arguments.out is None:
        parser.error("--out is missing")
    device = "cpu" if arguments.dry_run else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device; try the script with --dry_run")
    about = {"torch": torch.__version__, "machine": platform.machine(), "dry_run": arguments.dry_run}
    about["device"] = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    results: dict[str, list[Any]] = {}
    end = time.monotonic() + 60 * arguments.minutes
    for part in arguments.parts:
        for words in command(part, arguments, device):
            left = end - time.monotonic()
            if left < 5:
                results.setdefault(part, []).append({"failed": "not started: the time is up"})
                continue
            result = run(words, left, Path(f"{arguments.out}.{part}.json"))
            results.setdefault(part, []).append(result)
            print(f"{part}: {json.dumps(result)[:300]}", file=sys.stderr)
            arguments.out.write_text(json.dumps(about | {"results": results}, indent=1) + "\n")


def run(words: list[str], seconds: float, out: Path) -> Any:
    """Run a command and return its result: the file that it wrote, or else the last line of its output."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"stopped after {seconds:.0f} s: the time is up"}
    lines = (done.stdout.strip() or done.stderr.strip()).splitlines() or [""]
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or lines)[-1]}
    if out.exists():
        result = json.loads(out.read_text())
        out.unlink()
        return result
    return json.loads(lines[-1]) if lines[-1].startswith("{") else lines[-1]


if __name__ == "__main__":
    main()
