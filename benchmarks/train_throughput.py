"""Training throughput and memory, peers alternating in one run.

    python benchmarks/train_throughput.py --litgpt_python .venv-litgpt/bin/python --out results.json

Every contender trains the same shape on the same random tokens with AdamW and clipping at 1.0, each in a process of its
own, so that its peak memory is its own; the rounds alternate, because a machine drifts. `--litgpt_python` is the
interpreter of an environment with `pip install litgpt torch==2.13.0` (litgpt pins an older jsonargparse).

`--precision bf16-mixed` trains all of them under the same autocast. With one thread on a CPU (OMP_NUM_THREADS=1), time
is the process's own CPU time, which other programs on the machine do not lengthen.

The roofline is the matrix products of one step alone, at their own shapes and precision, forward and backward, in the
faster of torch's libraries: no program that does them can be faster. Tokens/s are medians over all rounds; `vs best
peer` compares within this run.
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
from pathlib import Path

import torch
from torch.nn import functional as F

SHAPES = {
    "small": {"n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 256, "vocab_size": 8192, "batch": 16},
    "gpt2": {"n_layer": 12, "n_head": 12, "n_embd": 768, "block_size": 1024, "vocab_size": 50304, "batch": 16},
    "tiny": {"n_layer": 1, "n_head": 1, "n_embd": 64, "block_size": 32, "vocab_size": 256, "batch": 1},
}
LR, WARMUP_STEPS = 6e-4, 2
PRECISION = "32-true"
"""Of all contenders in this process: `32-true` or `bf16-mixed`."""


def tokens(shape: dict, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """One batch of random inputs and targets, the same for all."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(0, shape["vocab_size"], (shape["batch"], shape["block_size"] + 1), generator=generator)
    return rows[:, :-1].contiguous().to(device), rows[:, 1:].contiguous().to(device)


def synchronize(device: str) -> None:
    """Wait for the accelerator."""
    if device == "cuda":
        torch.cuda.synchronize()


def clock() -> float:
    """Seconds: the process's own with one thread and no accelerator, else of the wall."""
    return (
        time.process_time() if torch.get_num_threads() == 1 and not torch.cuda.is_available() else time.perf_counter()
    )


def raw_loop(model: torch.nn.Module, loss_fn: Callable, shape: dict, steps: int, device: str) -> float:
    """Plain torch: seconds a step, after a warm-up."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    inputs, targets = tokens(shape, device)
    start = 0.0
    for step in range(WARMUP_STEPS + steps):
        if step == WARMUP_STEPS:
            synchronize(device)
            start = clock()
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=PRECISION == "bf16-mixed"):
            loss = loss_fn(model, inputs, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    synchronize(device)
    return (clock() - start) / steps


def gpt_config(shape: dict) -> dict:
    """Our fields of a shape: GPT-2's architecture."""
    return {k: v for k, v in shape.items() if k != "batch"} | {"mlp": "gelu_tanh"}


def ours_raw(shape: dict, steps: int, device: str, compiled: bool) -> float:
    """Our model in a plain torch loop."""
    from functools import partial

    from lit_gpt.models import GPT, GPTConfig
    from lit_gpt.objectives import linear_cross_entropy

    model = GPT(GPTConfig(**gpt_config(shape))).to(device)
    if compiled:
        for block in model.blocks:  # as PretrainModule does
            block.compile()

    def loss(model, inputs, targets):
        return model(inputs, head_fn=partial(linear_cross_entropy, labels=targets)).loss / targets.numel()

    return raw_loop(model, loss, shape, steps, device)


def ours_trainer(shape: dict, steps: int, device: str, compiled: bool) -> float:
    """Our module through the Trainer, with the project's default callbacks."""
    import tempfile

    import lightning.pytorch as pl
    from torch.utils.data import DataLoader

    import lit_gpt.trainer
    from lit_gpt.modules import PretrainModule

    inputs, targets = tokens(shape, "cpu")
    B, T = inputs.shape
    batch = {
        "input_ids": inputs,
        "labels": targets,
        "position_ids": torch.arange(T).expand(B, T).contiguous(),
        "document_ids": torch.zeros(B, T, dtype=torch.int64),
        "num_bytes": torch.full((B,), T),
    }

    class Clock(pl.Callback):
        start = end = 0.0

        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == WARMUP_STEPS:
                synchronize(device)
                self.start = clock()
            elif trainer.global_step == WARMUP_STEPS + steps:
                synchronize(device)
                self.end = clock()

    timer = Clock()
    module = PretrainModule(
        overrides=gpt_config(shape) | FIELDS_OF_GPT2,
        optimizer=lambda groups: torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95), weight_decay=0.1, fused=True),
        compile=compiled,
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = lit_gpt.trainer.Trainer(
            default_root_dir=folder,
            max_steps=WARMUP_STEPS + steps,
            callbacks=[timer],
            accelerator=device,
            devices=1,
            precision=PRECISION,
        )
        trainer.fit(module, train_dataloaders=DataLoader([[batch]] * (WARMUP_STEPS + steps), batch_size=None))
    return (timer.end - timer.start) / steps


FIELDS_OF_GPT2 = {
    "norm": "layernorm",
    "norm_eps": 1e-5,
    "positions": "learned",
    "bias": True,
    "qk_norm": None,
    "intermediate_size": None,
    "family": "gpt2",
}
"""What makes a preset of the ladder GPT-2's architecture."""


def transformers_gpt2(shape: dict, steps: int, device: str, compiled: bool) -> float:
    """`transformers`' GPT-2 in a plain torch loop."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        n_layer=shape["n_layer"], n_head=shape["n_head"], n_embd=shape["n_embd"], n_positions=shape["block_size"],
        vocab_size=shape["vocab_size"], resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).to(device)
    if compiled:
        model.compile()

    def loss(model, inputs, targets):
        logits = model(inputs).logits
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    return raw_loop(model, loss, shape, steps, device)


def litgpt(shape: dict, steps: int, device: str, compiled: bool) -> float:
    """Litgpt's GPT in a plain torch loop, with the chunked loss of its own recipes."""
    from litgpt.model import GPT, Config
    from litgpt.utils import chunked_cross_entropy

    config = Config(
        n_layer=shape["n_layer"], n_head=shape["n_head"], n_embd=shape["n_embd"], block_size=shape["block_size"],
        padded_vocab_size=shape["vocab_size"], mlp_class_name="GptNeoxMLP", norm_class_name="LayerNorm",
        parallel_residual=False, bias=True, rotary_percentage=1.0, intermediate_size=4 * shape["n_embd"],
    )  # fmt: skip
    model = GPT(config).to(device)
    if compiled:
        model.compile()

    def loss(model, inputs, targets):
        return chunked_cross_entropy(model(inputs), targets)

    return raw_loop(model, loss, shape, steps, device)


def roofline(shape: dict, steps: int, device: str, compiled: bool) -> float:
    """Only the matrix products: seconds a step."""
    C, T, V, N = shape["n_embd"], shape["block_size"], shape["vocab_size"], shape["batch"] * shape["block_size"]
    H = shape["n_head"]
    dtype = torch.bfloat16 if PRECISION == "bf16-mixed" else torch.float32
    projections = [(C, C)] * 4 + [(C, 4 * C), (4 * C, C)]
    x = {width: torch.randn(N, width, device=device, dtype=dtype) for width in (C, 4 * C)}
    x[V] = torch.randn(N, V, device=device, dtype=dtype)
    weights = {s: torch.randn(s, device=device, dtype=dtype) for s in {*projections, (C, V)}}
    q = torch.randn(shape["batch"] * H, T, C // H, device=device, dtype=dtype)
    scores = torch.randn(shape["batch"] * H, T, T, device=device, dtype=dtype)

    multiply = {"torch": F.linear}
    if device == "cpu":
        multiply["oneDNN"] = lambda a, b: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")

    def seconds(a: torch.Tensor, b: torch.Tensor, name: str) -> float:
        start = clock()
        multiply[name](a, b)
        return clock() - start

    def linear(inside: int, outside: int) -> None:
        w = weights[inside, outside]
        # output, gradient of the input, gradient of the weight
        for a, b in ((x[inside], w.T), (x[outside], w), (x[inside].T, x[outside].T)):
            key = (a.shape, b.shape)
            if key not in fastest:
                fastest[key] = min(multiply, key=lambda name: min(seconds(a, b, name) for _ in range(4)))
            multiply[fastest[key]](a, b)

    fastest: dict[tuple, str] = {}

    def step() -> None:
        for _ in range(shape["n_layer"]):
            for inside, outside in projections:
                linear(inside, outside)
            # Causal attention needs half of each product: forward q k', p v; backward four of the same size.
            half = T // 2
            for _ in range(3):
                q[:, :half] @ q.mT
                scores[:, :half] @ q
        linear(C, V)

    start = 0.0
    for i in range(WARMUP_STEPS + steps):
        if i == WARMUP_STEPS:
            synchronize(device)
            start = clock()
        step()
    synchronize(device)
    return (clock() - start) / steps


CONTENDERS: dict[str, Callable[[dict, int, str, bool], float]] = {
    "lit_gpt, Trainer": ours_trainer,
    "lit_gpt, raw loop": ours_raw,
    "transformers GPT-2": transformers_gpt2,
    "litgpt": litgpt,
    "roofline (matmuls alone)": roofline,
}


def work(name: str, shape: dict, steps: int, device: str, compiled: bool) -> None:
    """Run one contender in this process and print its figures as the last line."""
    seconds = CONTENDERS[name](shape, steps, device, compiled)
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else _peak_rss()
    print(json.dumps({"seconds": seconds, "peak_bytes": peak}))


def _peak_rss() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def run(name: str, compiled: bool, arguments: argparse.Namespace) -> dict:
    """Run one contender in a process of its own."""
    interpreter = arguments.litgpt_python if name == "litgpt" else sys.executable
    command = [
        interpreter, __file__, "--work", name, "--shape", arguments.shape, "--steps", str(arguments.steps),
        "--device", arguments.device, "--precision", arguments.precision, *(["--compiled"] if compiled else []),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    """Alternate the contenders and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5, help="optimizer steps that are timed, each round")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=["32-true", "bf16-mixed"], help="default: bf16-mixed on GPUs alone")
    parser.add_argument("--litgpt_python", help="interpreter of an environment with litgpt; left out without one")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, help="run these alone")
    parser.add_argument("--modes", nargs="+", choices=["eager", "compile"], default=["eager", "compile"])
    parser.add_argument("--out", type=Path, help="write the figures to this json file")
    parser.add_argument("--work", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--compiled", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    shape = SHAPES[arguments.shape]
    global PRECISION
    PRECISION = arguments.precision = arguments.precision or ("bf16-mixed" if arguments.device == "cuda" else "32-true")
    if arguments.work:
        work(arguments.work, shape, arguments.steps, arguments.device, arguments.compiled)
        return

    names = [n for n in arguments.only or CONTENDERS if n != "litgpt" or arguments.litgpt_python]
    rows = [(n, c) for c in (False, True) if ("compile" if c else "eager") in arguments.modes for n in names]
    rows = [(n, c) for n, c in rows if not (c and n.startswith("roofline"))]
    figures: dict[tuple[str, bool], list[dict]] = {row: [] for row in rows}
    for number in range(arguments.rounds):
        for row in rows:
            figures[row].append(run(*row, arguments))
            print(f"round {number + 1}: {row[0]}{', compiled' * row[1]}: {figures[row][-1]}", file=sys.stderr)

    per_step = shape["batch"] * shape["block_size"]
    speed = {row: per_step / statistics.median(f["seconds"] for f in runs) for row, runs in figures.items()}
    peers = [value for (name, _), value in speed.items() if not name.startswith(("lit_gpt", "roofline"))]
    roof = speed.get(("roofline (matmuls alone)", False))
    table = []
    for row, runs in figures.items():
        table.append(
            {
                "contender": row[0] + ", compiled" * row[1],
                "tokens_per_second": round(speed[row], 1),
                "ms_per_step": round(1000 * per_step / speed[row], 3),
                "vs_best_peer": round(speed[row] / max(peers), 3) if peers else None,
                "of_roofline": round(speed[row] / roof, 3) if roof else None,
                "peak_memory_mb": round(max(f["peak_bytes"] for f in runs) / 2**20),
            }
        )
    header = list(table[0])
    print("| " + " | ".join(header) + " |\n|" + "---|" * len(header))
    for entry in table:
        print("| " + " | ".join(str(value) for value in entry.values()) + " |")
    if arguments.out:
        about = {
            "shape": arguments.shape, **shape, "device": arguments.device,
            "precision": arguments.precision, "rounds": arguments.rounds,
            "torch": torch.__version__, "machine": platform.machine(), "threads": torch.get_num_threads(),
        }  # fmt: skip
        arguments.out.write_text(json.dumps({**about, "table": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
