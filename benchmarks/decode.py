"""Decoding speed, peers alternating in one run.

    python benchmarks/decode.py --litgpt_python .venv-litgpt/bin/python --out results.json
    python benchmarks/decode.py --shape 150m --new_tokens 64
    python benchmarks/decode.py --device cuda --dtype bfloat16 --shape llama-1b --contenders ours,ours-x16,transformers

Every contender has a Llama-type model of the same shape with random weights, in a process of its own that stays; the
rounds alternate, because a machine drifts. All decode greedily from a prompt of 16 tokens, without an end token.
`ours` is `Engine` with one request and weights packed as `generate` does, `ours-x4` and so on with that many at once
(tokens/s of all together), and `ours-compiled` with `compile=True`; `transformers` is `generate` with its dynamic
cache, `transformers-static` with its static one; `litgpt` is its `generate` with its own cache. `--litgpt_python` is
the interpreter of an environment with `pip install litgpt torch==2.13.0` (litgpt pins an older jsonargparse).

Tokens/s count new tokens, the prompt's reading included, and are medians over all rounds. CPU time a token, of all
threads, is what remains comparable on a machine that does other work too.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

SHAPES = {
    "small": {"n_layer": 6, "n_head": 6, "n_embd": 384, "inner": 1024, "vocab_size": 8192, "tied": True},
    "150m": {"n_layer": 12, "n_head": 12, "n_embd": 768, "inner": 3072, "vocab_size": 50304, "tied": True},
    "gpt2-124m": {"n_layer": 12, "n_head": 12, "n_embd": 768, "inner": 2048, "vocab_size": 50304, "tied": True},
    "llama-1b": {"n_layer": 16, "n_head": 32, "n_embd": 2048, "inner": 8192, "vocab_size": 128256, "tied": True},
}
CONTEXT = 1024
PROMPT_TOKENS = 16
CONTENDERS = "ours,ours-x4,ours-x16,transformers,transformers-static,litgpt"


def ours(shape: dict, new: int, device: str, dtype: torch.dtype, batch: int, compiled: bool) -> Callable[[], int]:
    """`Engine.generate`."""
    import tokenizers

    from lit_gpt.data.tokenizers import Tokenizer
    from lit_gpt.generation import Engine, SamplingParams
    from lit_gpt.models import GPT, GPTConfig
    from lit_gpt.models.packed import prepare_for_inference

    config = GPTConfig(
        n_layer=shape["n_layer"],
        n_head=shape["n_head"],
        n_embd=shape["n_embd"],
        intermediate_size=shape["inner"],
        vocab_size=shape["vocab_size"],
        tie_embeddings=shape["tied"],
        block_size=CONTEXT,
        bias=False,
        norm="rmsnorm",
        positions="rope",
        mlp="swiglu",
    )
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({f"w{i}": i for i in range(shape["vocab_size"] - 1)}))
    backend.add_special_tokens(["<|endoftext|>"])
    model = GPT(config).to(device, dtype).eval().requires_grad_(False)
    if not compiled:
        prepare_for_inference(model, tokens=batch)
    engine = Engine(model, Tokenizer(backend), max_batch_size=batch, compile=compiled)
    params = SamplingParams(max_new_tokens=new, temperature=0, ignore_eos=True)
    prompts = [[(7 * row + i) % 1000 for i in range(PROMPT_TOKENS)] for row in range(batch)]
    return lambda: sum(len(one.token_ids) for one in engine.generate(prompts, params))


def transformers_generate(shape: dict, new: int, device: str, dtype: torch.dtype, cache: str) -> Callable[[], int]:
    """`generate` of transformers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        num_hidden_layers=shape["n_layer"],
        num_attention_heads=shape["n_head"],
        num_key_value_heads=shape["n_head"],
        hidden_size=shape["n_embd"],
        intermediate_size=shape["inner"],
        vocab_size=shape["vocab_size"],
        tie_word_embeddings=shape["tied"],
        max_position_embeddings=CONTEXT,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config).to(device, dtype).eval()
    ids = torch.arange(PROMPT_TOKENS, device=device)[None]
    settings = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "cache_implementation": cache}
    mask = torch.ones_like(ids)
    return lambda: model.generate(ids, attention_mask=mask, pad_token_id=0, **settings).shape[1] - PROMPT_TOKENS


def litgpt_generate(shape: dict, new: int, device: str, dtype: torch.dtype) -> Callable[[], int]:
    """`generate` of litgpt, as its own script calls it."""
    from litgpt import GPT, Config
    from litgpt.generate.base import generate

    config = Config(
        n_layer=shape["n_layer"],
        n_head=shape["n_head"],
        n_embd=shape["n_embd"],
        intermediate_size=shape["inner"],
        vocab_size=shape["vocab_size"],
        padded_vocab_size=shape["vocab_size"],
        block_size=CONTEXT,
        bias=False,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
        parallel_residual=False,
        rotary_percentage=1.0,
    )
    model = GPT(config).to(device, dtype).eval()
    model.max_seq_length = PROMPT_TOKENS + new
    model.set_kv_cache(batch_size=1, device=torch.device(device), dtype=dtype)
    ids = torch.arange(PROMPT_TOKENS, device=device)

    @torch.inference_mode()
    def run() -> int:
        return generate(model, ids, PROMPT_TOKENS + new, temperature=0.0).numel() - PROMPT_TOKENS

    return run


def build(name: str, shape: dict, new: int, device: str, dtype: torch.dtype) -> Callable[[], int]:
    """What one round of a contender is; it returns how many tokens were written."""
    if name.startswith("ours"):
        batch = int(name.partition("-x")[2] or 1)
        return ours(shape, new, device, dtype, batch, compiled="compiled" in name)
    if name == "litgpt":
        return litgpt_generate(shape, new, device, dtype)
    return transformers_generate(shape, new, device, dtype, "static" if name.endswith("static") else "dynamic")


def work(arguments: argparse.Namespace) -> None:
    """A contender's process: a round for every line that comes in."""
    torch.manual_seed(0)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    dtype = getattr(torch, arguments.dtype)
    run = build(arguments.worker, SHAPES[arguments.shape], arguments.new_tokens, arguments.device, dtype)
    run()
    print("ready", flush=True)
    for _ in sys.stdin:
        start, cpu_start = time.perf_counter(), time.process_time()
        tokens = run()
        if arguments.device == "cuda":
            torch.cuda.synchronize()
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        print(json.dumps({"tokens": tokens, "seconds": seconds, "cpu_seconds": cpu_seconds}), flush=True)


def start(name: str, arguments: argparse.Namespace) -> subprocess.Popen:
    """A contender's process, warmed up."""
    python = arguments.litgpt_python if name == "litgpt" else sys.executable
    words = [python, __file__, "--worker", name, "--shape", arguments.shape, "--new_tokens", arguments.new_tokens]
    words += ["--device", arguments.device, "--dtype", arguments.dtype, "--threads", arguments.threads]
    process = subprocess.Popen([str(word) for word in words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == "ready":
            return process
    sys.exit(f"{name} did not start")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--contenders", default=CONTENDERS, help="names, separated by commas")
    parser.add_argument("--new_tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="of each process; 0: torch's own choice")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--litgpt_python", help="interpreter that has litgpt")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments)
        return
    names = [name for name in arguments.contenders.split(",") if name != "litgpt" or arguments.litgpt_python]
    processes = {name: start(name, arguments) for name in names}
    speeds: dict[str, list[float]] = {name: [] for name in names}
    cpu: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(arguments.rounds):
        for name, process in processes.items():
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("go\n")
            process.stdin.flush()
            measured = json.loads(process.stdout.readline())
            speeds[name].append(measured["tokens"] / measured["seconds"])
            cpu[name].append(1000 * measured["cpu_seconds"] / measured["tokens"])
    for process in processes.values():
        process.communicate()
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    print(f"{arguments.shape}, {arguments.new_tokens} new tokens, {arguments.device}, {arguments.dtype}")
    for name, median in medians.items():
        spread = f"({min(speeds[name]):.1f} to {max(speeds[name]):.1f})"
        ratio = f"ours alone / it: {medians['ours'] / median:5.2f}" if "ours" in medians else ""
        print(f"{name:20s} {median:8.1f} tokens/s {spread:20s} CPU {statistics.median(cpu[name]):6.2f} ms  {ratio}")
    if arguments.out:
        record = {
            "shape": {arguments.shape: SHAPES[arguments.shape]},
            "new_tokens": arguments.new_tokens,
            "prompt_tokens": PROMPT_TOKENS,
            "machine": {"processor": platform.processor() or platform.machine(), "device": arguments.device},
            "dtype": arguments.dtype,
            "threads": arguments.threads or torch.get_num_threads(),
            "torch": torch.__version__,
            "tokens_per_second": {name: {"median": medians[name], "rounds": speeds[name]} for name in names},
            "cpu_milliseconds_per_token": {name: statistics.median(cpu[name]) for name in names},
        }
        arguments.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
