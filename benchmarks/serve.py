"""Serving speed under concurrent streaming clients, peers alternating in one run.

    python benchmarks/serve.py --out results.json
    python benchmarks/serve.py --transformers_python .venv/bin/python --litgpt_python .venv-litgpt/bin/python
    python benchmarks/serve.py --model smollm2 --dtype bfloat16 --vllm_python .venv-vllm/bin/python

All servers have the same Llama-type model with random weights and a tokenizer of words, or the model in the Hugging
Face folder that `--model` names. The clients are the `openai` package's own: each streams one chat after another. The
rounds alternate between the servers, because a machine drifts; all of them stay up, the others idle, while one is
measured.

- `ours`: `python -m lit_gpt serve` (`--extra` adds words to it, such as `--extra=--max_batch_size=32`)
- `transformers`: `transformers serve <model>`, by `--transformers_python`; `transformers-batched` is the same with
  `--continuous-batching`
- `litgpt`: `litgpt serve --openai_spec true`, by `--litgpt_python`, an environment with
  `pip install litgpt litserve requests jinja2 torch==2.13.0` (litgpt pins an older jsonargparse)
- `vllm`: its own server for CPUs, by `--vllm_python`, in the dtype of `--dtype`

Reported: tokens/s of all clients together, the same per second of the server's CPU time (which remains comparable on a
machine that does other work too), and the 50th and 95th percentile of the time to the first token.
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

SHAPES = {
    "small": {"n_layer": 6, "n_head": 6, "n_embd": 384, "inner": 1024, "vocab_size": 8192},
    "150m": {"n_layer": 12, "n_head": 12, "n_embd": 768, "inner": 3072, "vocab_size": 50304},
    "llama-1b": {"n_layer": 16, "n_head": 32, "n_embd": 2048, "inner": 8192, "vocab_size": 128256},
}
CONTEXT = 1024
TEMPLATE = (
    "{% for message in messages %}{{ message.content }}"
    "{{ eos_token if message.role == 'assistant' else ' ' }}{% endfor %}"
)
PROMPT_WORDS = 32
START_SECONDS = 180
VLLM = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1"}
SERVE_TRANSFORMERS = "from transformers.cli.transformers import main; main()"
WRITE_LITGPT = """
import json, sys, torch
from pathlib import Path
from safetensors.torch import load_file
from litgpt import Config
from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama
from litgpt.utils import save_config
source, out, shape, context = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]), int(sys.argv[4])
out.mkdir()
config = Config(
    name="bench", n_layer=shape["n_layer"], n_head=shape["n_head"], n_embd=shape["n_embd"],
    intermediate_size=shape["inner"], vocab_size=shape["vocab_size"], padded_vocab_size=shape["vocab_size"],
    block_size=context, bias=False, norm_class_name="RMSNorm", mlp_class_name="LLaMAMLP", parallel_residual=False,
    rotary_percentage=1.0,
)
weights = {}
copy_weights_hf_llama(config, {}, weights, load_file(source / "model.safetensors"))
torch.save(weights, out / "lit_model.pth")
save_config(config, out)
for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "config.json"):
    (out / name).write_bytes((source / name).read_bytes())
"""


def write_model(folder: Path, shape: dict, dtype: str) -> None:
    """A Hugging Face folder with random weights and a tokenizer of the words w0, w1, ..."""
    import tokenizers
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = {f"w{index}": index for index in range(shape["vocab_size"] - 1)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["<|endoftext|>"])
    end = shape["vocab_size"] - 1
    config = LlamaConfig(
        num_hidden_layers=shape["n_layer"],
        num_attention_heads=shape["n_head"],
        num_key_value_heads=shape["n_head"],
        hidden_size=shape["n_embd"],
        intermediate_size=shape["inner"],
        vocab_size=shape["vocab_size"],
        tie_word_embeddings=False,
        max_position_embeddings=CONTEXT,
        bos_token_id=end,
        eos_token_id=end,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight[end] = 0  # nobody ends before the others
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|endoftext|>", eos_token="<|endoftext|>", unk_token="w0"
    )
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": TEMPLATE}))


@dataclass
class Contender:
    """A server that runs, and how it is asked."""

    name: str
    words: list[str]
    port: int
    model: str
    has_words: bool = True
    results: dict[int, list[dict]] = field(default_factory=dict)

    def start(self, log: Path) -> None:
        """Start it and wait until it answers anything."""
        self.log = log.open("w")
        environment = os.environ | (VLLM if self.name == "vllm" else {})
        self.process = subprocess.Popen(self.words, stdout=self.log, stderr=subprocess.STDOUT, env=environment)
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise SystemExit(f"{self.name} did not start; see {log}")
            try:
                urlopen(f"http://127.0.0.1:{self.port}/health", timeout=2).read()
                return
            except URLError as error:
                if hasattr(error, "code"):
                    return
                time.sleep(0.5)
            except OSError:
                time.sleep(0.5)
        raise SystemExit(f"{self.name} did not answer in {START_SECONDS} seconds; see {log}")

    def cpu_seconds(self) -> float:
        """CPU time of the server and its processes so far."""
        import psutil

        server = psutil.Process(self.process.pid)
        return sum(sum(one.cpu_times()[:2]) for one in (server, *server.children(recursive=True)))

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.log.close()


async def one_client(contender: Contender, number: int, requests: int, new_tokens: int) -> list[tuple[float, int]]:
    """Chats one after another; the seconds to the first token and the number of tokens of each."""
    import openai

    address, answers = f"http://127.0.0.1:{contender.port}/v1", []
    counted = contender.has_words  # one word a token: counted in what arrives
    settings: dict = {} if counted else {"stream_options": {"include_usage": True}, "extra_body": {"ignore_eos": True}}
    async with openai.AsyncOpenAI(base_url=address, api_key="unused", max_retries=0, timeout=900) as client:
        for index in range(requests):
            words = " ".join(
                f"w{(number * 7919 + index * 104729 + place * 31) % 8000}" for place in range(PROMPT_WORDS)
            )
            started, first, tokens = time.perf_counter(), None, 0
            stream = await client.chat.completions.create(
                model=contender.model,
                messages=[{"role": "user", "content": words}],
                max_completion_tokens=new_tokens,
                stream=True,
                **settings,
            )
            async for chunk in stream:
                text = chunk.choices[0].delta.content if chunk.choices else None
                if text:
                    first = first or time.perf_counter() - started
                    tokens += text.count("w") if counted else 0
                if not counted and chunk.usage:
                    tokens = chunk.usage.completion_tokens
            answers.append((first if first is not None else float("nan"), tokens))
    return answers


def measure(contender: Contender, clients: int, requests: int, new_tokens: int) -> dict:
    """All clients at once."""

    async def everyone() -> list[list[tuple[float, int]]]:
        return await asyncio.gather(*(one_client(contender, number, requests, new_tokens) for number in range(clients)))

    started, cpu = time.perf_counter(), contender.cpu_seconds()
    answers = [answer for one in asyncio.run(everyone()) for answer in one]
    seconds = time.perf_counter() - started
    return {
        "tokens": sum(tokens for _, tokens in answers),
        "seconds": seconds,
        "cpu_seconds": contender.cpu_seconds() - cpu,
        "first": [first for first, _ in answers],
    }


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which this share of them lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


def summary(rounds: list[dict]) -> dict:
    """Medians over rounds of tokens/s; percentiles over all requests of the time to the first token."""
    first = [value for one in rounds for value in one["first"]]
    return {
        "tokens_per_second": round(statistics.median(one["tokens"] / one["seconds"] for one in rounds), 1),
        "tokens_per_cpu_second": round(statistics.median(one["tokens"] / one["cpu_seconds"] for one in rounds), 1),
        "first_token_p50_seconds": round(percentile(first, 0.5), 4),
        "first_token_p95_seconds": round(percentile(first, 0.95), 4),
        "tokens": sum(one["tokens"] for one in rounds),
    }


def contenders_of(options: argparse.Namespace, folder: Path) -> list[Contender]:
    """Those that were asked for and whose interpreter is known."""
    model, port = options.model or folder / "model", options.port
    has_words = options.model is None
    words = [sys.executable, "-m", "lit_gpt", "serve", "--model", str(model), "--port", str(port)]
    words += ["--device", options.device, "--max_batch_size", str(options.batch), *options.extra]
    words += ["--dtype", options.dtype, "--max_length", str(CONTEXT)] if options.model else []
    found = [Contender("ours", words, port, model.name, has_words)]
    if options.transformers_python:
        base = [options.transformers_python, "-c", SERVE_TRANSFORMERS, "serve", str(model)]
        for index, (name, more) in enumerate(
            {"transformers": [], "transformers-batched": ["--continuous-batching"]}.items(), start=1
        ):
            if name in options.contenders:
                words = [*base, *more, "--port", str(port + index), "--device", options.device]
                found.append(Contender(name, words, port + index, str(model)))
    if options.litgpt_python:
        converted = folder / "litgpt"
        code = [options.litgpt_python, "-c", WRITE_LITGPT, str(model), str(converted)]
        subprocess.run([*code, json.dumps(SHAPES[options.shape]), str(CONTEXT)], check=True)
        words = [options.litgpt_python, "-m", "litgpt", "serve", str(converted), "--port", str(port + 3)]
        words += ["--openai_spec", "true", "--accelerator", options.device, "--timeout", "900"]
        found.append(Contender("litgpt", words, port + 3, "lit-gpt"))
    if options.vllm_python:
        words = [options.vllm_python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
        words += ["--dtype", options.dtype, "--max-model-len", str(CONTEXT), "--max-num-seqs", str(options.batch)]
        words += ["--enforce-eager", "--port", str(port + 4)]
        found.append(Contender("vllm", words, port + 4, str(model), has_words))
    return [one for one in found if one.name in options.contenders]


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--model", type=Path, help="Hugging Face folder; default: random weights of --shape")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--clients", default="1,4,16,64")
    parser.add_argument("--contenders", default="ours,transformers,litgpt,vllm")
    parser.add_argument("--requests", type=int, default=1, help="of each client, one after another")
    parser.add_argument("--new_tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=64, help="our --max_batch_size")
    parser.add_argument("--port", type=int, default=8310)
    parser.add_argument("--extra", action="append", default=[], help="a word for our server")
    parser.add_argument("--transformers_python")
    parser.add_argument("--litgpt_python")
    parser.add_argument("--vllm_python")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    options.contenders = options.contenders.split(",")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.model is None:
            write_model(folder / "model", SHAPES[options.shape], options.dtype)
        contenders = contenders_of(options, folder)
        try:
            for contender in contenders:
                contender.start(Path(tempfile.gettempdir()) / f"serve-{contender.name}.log")
                measure(contender, 1, 1, 8)  # the first request pays for what is made late
            for number in range(options.rounds):
                for clients in map(int, options.clients.split(",")):
                    for contender in contenders:
                        result = measure(contender, clients, options.requests, options.new_tokens)
                        contender.results.setdefault(clients, []).append(result)
                        rate = result["tokens"] / result["seconds"]
                        print(
                            f"round {number + 1}  {contender.name:22}{clients:4} clients{rate:10.1f} tokens/s",
                            flush=True,
                        )
        finally:
            for contender in contenders:
                if hasattr(contender, "process"):
                    contender.stop()
    table = {one.name: {clients: summary(rounds) for clients, rounds in one.results.items()} for one in contenders}
    titles = {"clients": 8, "tokens/s": 10, "per CPU s": 11, "p50 first": 11, "p95 first": 11, "vs one client": 15}
    print(f"\n{'':22}" + "".join(f"{title:>{width}}" for title, width in titles.items()))
    for name, rows in table.items():
        for clients, row in rows.items():
            alone = rows[min(rows)]["tokens_per_second"]
            print(
                f"{name:22}{clients:8}{row['tokens_per_second']:10.1f}{row['tokens_per_cpu_second']:11.1f}"
                f"{row['first_token_p50_seconds']:10.3f}s"
                f"{row['first_token_p95_seconds']:10.3f}s{row['tokens_per_second'] / alone:14.2f}x"
            )
    if options.out:
        named = vars(options) | {"model": options.model and options.model.name}
        settings = {key: str(value) for key, value in named.items() if "python" not in key and key != "out"}
        machine = {"machine": platform.processor() or platform.machine(), "python": platform.python_version()}
        options.out.write_text(json.dumps({"settings": settings, **machine, "results": table}, indent=2) + "\n")


if __name__ == "__main__":
    main()
