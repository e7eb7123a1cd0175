"""Forward and backward of every family against transformers' own class for it, alternating in one process.

    python benchmarks/families.py --out benchmarks/results/families_cpu.json

Each family's first preset is shrunk to one small shape; our exporter writes its config.json, from which transformers
builds the same architecture with the same number of parameters. Both compute the next-token loss of the same random
tokens and its gradients, without an optimizer: ours with its fused head, transformers with the loss of its own class.
Rounds alternate, so that a drifting machine hits both; a family's speed is the median over the rounds. Peak memory is
taken in a further process for each of the two, beyond what both have in memory before their model is built.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lit_gpt.checkpoints.huggingface import config_to_hf
from lit_gpt.models import GPT, GPTConfig, get_preset, preset_names
from lit_gpt.models.families.ladder import shrink
from lit_gpt.objectives import linear_cross_entropy

BATCH = 4
SMALL: dict[str, Any] = {"n_layer": 4, "n_head": 8, "n_embd": 256, "block_size": 256, "vocab_size": 8192}


def families() -> list[str]:
    """Those that have presets."""
    return sorted({get_preset(name).family for name in preset_names()})


def first_preset(family: str) -> str:
    """The first preset of a family, in the registry's order."""
    return next(name for name in preset_names() if get_preset(name).family == family)


def ours(config: GPTConfig, device: str) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Our model as a function (inputs, targets) → mean loss."""
    model = GPT(config).to(device).train()

    def loss(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        head_fn = partial(linear_cross_entropy, labels=targets, softcap=config.logit_softcap)
        return model(inputs, head_fn=head_fn).loss / targets.numel()

    loss.model = model  # type: ignore[attr-defined]
    return loss


def import_theirs(config: GPTConfig) -> Any:
    """The transformers class of a family: its code is read when it is first asked for."""
    import transformers

    return getattr(transformers, config_to_hf(config)["architectures"][0])


def theirs(config: GPTConfig, device: str) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The model of the same family in transformers, with its fastest attention and its own loss."""
    import transformers

    hf = transformers.AutoConfig.for_model(**config_to_hf(config))
    hf.use_cache = False
    their_class = import_theirs(config)
    model = their_class._from_config(hf, dtype=torch.float32).to(device).train()

    def loss(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return model(input_ids=inputs, labels=inputs, shift_labels=targets).loss

    loss.model = model  # type: ignore[attr-defined]
    return loss


CONTENDERS = {"lit_gpt": ours, "transformers": theirs}


def steps(loss: Callable, device: str, count: int) -> float:
    """Seconds of `count` forward and backward passes."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(SMALL["vocab_size"], (BATCH, SMALL["block_size"] + 1), generator=generator).to(device)
    inputs, targets = rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
    start = time.perf_counter()
    for _ in range(count):
        loss.model.zero_grad(set_to_none=True)  # type: ignore[attr-defined]
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            value = loss(inputs, targets)
        value.backward()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def race(family: str, rounds: int, count: int, device: str) -> dict[str, Any]:
    """Median seconds a step of both, alternating."""
    config = shrink(get_preset(first_preset(family)), **SMALL)
    torch.manual_seed(0)
    losses = {name: build(config, device) for name, build in CONTENDERS.items()}
    sizes = {name: sum(p.numel() for p in loss.model.parameters()) for name, loss in losses.items()}  # type: ignore[attr-defined]
    if len(set(sizes.values())) != 1:
        sys.exit(f"{family}: different models: {sizes}")
    for loss in losses.values():
        steps(loss, device, 2)
    seconds: dict[str, list[float]] = {name: [] for name in losses}
    for _ in range(rounds):
        for name, loss in losses.items():
            seconds[name].append(steps(loss, device, count) / count)
    return {"parameters": sizes["lit_gpt"], **{name: statistics.median(values) for name, values in seconds.items()}}


def peak(family: str, name: str, device: str) -> int:
    """Peak memory in bytes of one of the two alone: of model, activations and gradients, not of imported code."""
    config = shrink(get_preset(first_preset(family)), **SMALL)
    import_theirs(config)  # in both processes, so that both start from the same code in memory
    before = highest_resident()
    loss = CONTENDERS[name](config, device)
    steps(loss, device, 2)
    return torch.cuda.max_memory_allocated() if device == "cuda" else highest_resident() - before


def highest_resident() -> int:
    """The most memory that this process has held so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # `ru_maxrss` also counts the process that started this one
        return 1024 * next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def in_a_process(*arguments: str) -> Any:
    """Run a part of this file alone and read the last line it prints."""
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(arguments)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    """Race every family and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=families(), default=families())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="passes that are timed, each round")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="write the figures to this json file")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        kind, family, *rest = arguments.part
        if kind == "race":
            print(json.dumps(race(family, arguments.rounds, arguments.steps, arguments.device)))
        else:
            print(json.dumps(peak(family, rest[0], arguments.device)))
        return

    per_step = BATCH * SMALL["block_size"]
    common = ["--rounds", str(arguments.rounds), "--steps", str(arguments.steps), "--device", arguments.device]
    table = []
    for family in arguments.families:
        figures = in_a_process(*common, "--part", "race", family)
        memory = {name: in_a_process(*common, "--part", "peak", family, name) for name in CONTENDERS}
        table.append(
            {
                "family": family,
                "preset": first_preset(family),
                "million_parameters": round(figures["parameters"] / 1e6, 1),
                "ours_tokens_per_second": round(per_step / figures["lit_gpt"]),
                "transformers_tokens_per_second": round(per_step / figures["transformers"]),
                "speed_ratio": round(figures["transformers"] / figures["lit_gpt"], 2),
                "ours_peak_mb": round(memory["lit_gpt"] / 2**20),
                "transformers_peak_mb": round(memory["transformers"] / 2**20),
            }
        )
        print(f"{family}: {table[-1]['speed_ratio']} x", file=sys.stderr)
    header = list(table[0])
    print("| " + " | ".join(header) + " |\n|" + "---|" * len(header))
    for entry in table:
        print("| " + " | ".join(str(value) for value in entry.values()) + " |")
    if arguments.out:
        about = {
            **SMALL, "batch": BATCH, "device": arguments.device, "rounds": arguments.rounds, "steps": arguments.steps,
            "torch": torch.__version__, "machine": platform.machine(), "threads": torch.get_num_threads(),
        }  # fmt: skip
        arguments.out.write_text(json.dumps({**about, "table": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
