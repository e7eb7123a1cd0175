"""GGUF files of every family, and of a model of your own, against a real llama.cpp.

    python benchmarks/llama_cpp.py --llama_python llama/bin/python --model runs/quickstart

`--llama_python` is the Python of an environment with `llama-cpp-python` (pip builds it from source, 10 to 30 minutes on
two cores); it runs in a process of its own. For each family a preset is shrunk, filled with large random weights (small
ones give logits that any mistake hides in), and written as GGUF; both programs then read the same tokens. Reported are
the largest difference of logits over the whole context, in units of their own standard deviation, how many of the
greedy tokens agree, and of how many texts the tokenizers make the same tokens. llama.cpp keeps its cache in float32.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

TEXTS = [
    "def add(left, right):\n    return left + right\n",
    "Hello world!  Two  spaces,\ttabs\t\tand\r\nline ends\n\n\n  of every kind.   ",
    "1 12 123 1234 12345 3.14159 0x1F 1e-9 2026-11-22 ²³½ Ⅻ",
    "I'll say it's what they've got; WE'RE sure. Don't you'd 'tis",
    "héllo naïve Straße ÆØÅ Ελληνικά русский 中文字 日本語 한국어 हिन्दी ไทย العربية",
    "🚀 🦙🦙 👩‍👩‍👧 ✅ e\u0301 a\u0300\u200b\ufeff\u00a0x",
    "    indented\n        more\n\tif (x && y || !z) { return [a[0], *b, **c]; } // comment -- ==> <=",
    "",
    " ",
    "\n",
    "<0x0A> <s> </s> [INST] <|im_start|>",
]


def worker() -> None:
    """In llama.cpp's own Python: jobs as JSON on standard input, answers as JSON on standard output."""
    import llama_cpp

    for line in sys.stdin:
        job = json.loads(line)
        model = llama_cpp.Llama(
            job["path"],
            n_ctx=len(job["ids"]) + job["tokens"],
            n_batch=512,
            logits_all=True,
            n_threads=job["threads"],
            type_k=0,
            type_v=0,
            flash_attn=False,
            verbose=False,
        )
        model.eval(job["ids"])
        logits = model.scores[: len(job["ids"])].astype("float64")
        written = []
        for _ in range(job["tokens"]):
            written.append(int(model.scores[model.n_tokens - 1].argmax()))
            model.eval(written[-1:])
        words = [model.tokenize(text.encode(), add_bos=False, special=False) for text in job["texts"]]
        opened = model.tokenize(b"x", add_bos=True, special=False)
        logits.tofile(job["logits"])
        print(json.dumps({"written": written, "words": words, "opened": opened}), flush=True)


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, linear": ("llama", {"rope_scaling": {"kind": "linear", "factor": 4.0}}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True, "rope_scaling": None}),
    "llama, 3.1": ("llama", {"rope_scaling": {"kind": "llama3", "factor": 8.0, "original_block_size": 64}}),
    "qwen3, yarn": ("qwen3", {"rope_scaling": {"kind": "yarn", "factor": 4.0, "original_block_size": 64}}),
    "qwen2, yarn with its own factor": (
        "qwen2",
        {"rope_scaling": {"kind": "yarn", "factor": 4.0, "original_block_size": 64, "attention_factor": 0.7}},
    ),
    "gemma3, linear": ("gemma3", {"rope_scaling": {"kind": "linear", "factor": 8.0}, "rope_local_theta": 1e4}),
    "phi3, longrope": (
        "phi3",
        {
            "rope_scaling": {
                "kind": "longrope",
                "factor": 4.0,
                "original_block_size": 64,
                "short_factors": [1.0 + 0.1 * pair for pair in range(16)],
                "long_factors": [1.0 + 0.5 * pair for pair in range(16)],
            }
        },
    ),
    "gpt_neox, not parallel": ("gpt_neox", {"parallel_residual": False}),
    "qwen3, wide heads": ("qwen3", {"head_size": 48, "n_kv_head": 2}),
}
"""Families with a switch thrown."""


def random_model(family: str, **changes: Any) -> Any:
    """A small model of a family with weights so large that every part of it shows in the logits."""
    import torch

    from lit_gpt.models import GPT, get_preset, preset_names
    from lit_gpt.models.families.ladder import shrink

    preset = get_preset(next(name for name in preset_names() if get_preset(name).family == family))
    config = shrink(preset, n_layer=6, n_embd=128, n_head=4, block_size=256, vocab_size=1040)
    if family in ("mistral", "phi3"):  # whose windows llama.cpp does not compute
        changes["sliding_window"] = None
    config = config.overridden(changes)
    torch.manual_seed(0)
    model = GPT(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn_like(weight)
            if weight.dim() == 1 and name.endswith("weight"):
                weight.add_(0.2 * noise)
            else:
                weight.copy_(noise * (0.1 if weight.dim() == 1 else weight.shape[-1] ** -0.5))
    return model


def tokenizer_of(kind: str) -> Any:
    """A tokenizer of 1,024 entries, trained on a few modules of the standard library."""
    import tokenizers
    from tokenizers import decoders, models, normalizers, trainers

    from lit_gpt.data.bpe import train_bpe
    from lit_gpt.data.tokenizers import Tokenizer

    texts = [Path(module.__file__).read_text() for module in (argparse, json, subprocess, tempfile)]
    texts += TEXTS[:7]
    if kind != "sentencepiece":
        pattern, _, digits = kind.partition("+")
        return train_bpe(texts, 1024, pattern, split_digits=bool(digits))
    backend = tokenizers.Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    spaces = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(spaces)
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=1024, special_tokens=special + [f"<0x{byte:02X}>" for byte in range(256)], show_progress=False
    )
    words = [piece for text in texts for piece in text.replace(" ", " \0").split("\0")]
    backend.train_from_iterator(words, trainer)
    state = json.loads(backend.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in special]
    return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(state)), "</s>")


def compare(model: Any, tokenizer: Any, dtype: str, llama: Any, folder: Path, tokens: int) -> dict[str, Any]:
    """One file: what both programs make of it."""
    import numpy as np
    import torch

    from lit_gpt.checkpoints.gguf import save_gguf
    from lit_gpt.checkpoints.gguf.vocabulary import begins_with

    config, path = model.config, folder / "model.gguf"
    path.unlink(missing_ok=True)
    save_gguf(path, config, model.state_dict(), tokenizer, tokenizer.stop_ids, dtype)
    length = min(config.block_size, 512) - tokens
    text = tokenizer.encode(Path(json.__file__).read_text())[: length - len(tokenizer.opening_ids)]
    ids = torch.tensor([[*tokenizer.opening_ids, *text.tolist()]])
    job = {"path": str(path), "ids": ids[0].tolist(), "tokens": tokens, "texts": TEXTS, "threads": 1}
    llama.stdin.write(json.dumps(job | {"logits": str(folder / "logits")}) + "\n")
    llama.stdin.flush()
    line = llama.stdout.readline()
    if not line:
        raise RuntimeError("llama.cpp ended; its words are above")
    answer = json.loads(line)
    with torch.no_grad():
        logits, written = model(ids), []
        for _ in range(tokens):
            last = model(torch.cat([ids, torch.tensor([written], dtype=torch.int64)], dim=1))[0, -1]
            written.append(int(last.argmax()))
    theirs = np.fromfile(folder / "logits").reshape(length, config.vocab_size)
    difference = np.abs(theirs - logits[0].double().numpy()).max()
    words = [tokenizer.encode(text).tolist() for text in TEXTS]
    same = [ours == them for ours, them in zip(words, answer["words"], strict=True)]
    agreed = next((i for i, (a, b) in enumerate(zip(written, answer["written"], strict=True)) if a != b), tokens)
    return {
        "family": config.family,
        "dtype": dtype,
        "difference": float(difference),
        "relative": float(difference / logits.std()),
        "greedy_agreed": f"{agreed}/{tokens}",
        "texts_alike": f"{sum(same)}/{len(same)}",
        "unlike": [text for text, alike in zip(TEXTS, same, strict=True) if not alike],
        "opened": answer["opened"] == [*begins_with(tokenizer), *tokenizer.encode("x").tolist()],
    }


def main() -> None:
    """Run the trial and print a line a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--llama_python", help="Python of an environment with llama-cpp-python")
    parser.add_argument("--families", nargs="*", help="all that are written as GGUF")
    parser.add_argument("--model", nargs="*", default=[], help="runs, checkpoints, bundles or Hugging Face folders")
    parser.add_argument("--types", nargs="*", default=["float32", "q8_0"])
    parser.add_argument("--tokens", type=int, default=32, help="to write greedily")
    parser.add_argument("--out", type=Path, help="a JSON file")
    options = parser.parse_args()
    if options.worker:
        worker()
        return
    import torch

    from lit_gpt.checkpoints.gguf import gguf_families
    from lit_gpt.checkpoints.resolve import resolve_model
    from lit_gpt.generation.loading import load_source

    command = [options.llama_python, "-P", __file__, "--worker"]  # -P: this file has the package's name
    asked = [options.llama_python, "-c", "from importlib.metadata import version; print(version('llama-cpp-python'))"]
    version = subprocess.run(asked, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    llama = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    kinds = ("gpt2", "gpt4", "gpt4+digits", "sentencepiece")
    tokenizers = [tokenizer_of(kind) for kind in kinds]
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cases = [(path, None) for path in options.model]
        cases += [(None, family) for family in options.families or [*gguf_families(), *VARIANTS]]
        for number, (path, family) in enumerate(cases):
            kind = kinds[number % len(kinds)]
            if path is None:
                base, changes = VARIANTS.get(family, (family, {}))
                model, tokenizer = random_model(base, **changes), tokenizers[number % len(kinds)]
            else:
                model, tokenizer = load_source(resolve_model(path), "cpu")
                model = model.float()
            for dtype in options.types:
                row = {"case": family or Path(path).name, "tokenizer": "its own" if path else kind} | compare(
                    model, tokenizer, dtype, llama, folder, options.tokens
                )
                rows.append(row)
                print(
                    f"{row['case']:22} {row['tokenizer']:14} {dtype:8} logits {row['difference']:.2e} "
                    f"({row['relative']:.1e} of their spread)  greedy {row['greedy_agreed']}  "
                    f"texts {row['texts_alike']}  opens {row['opened']}  {row['unlike'] or ''}",
                    flush=True,
                )
    llama.stdin.close()
    if options.out:
        about = {"torch": torch.__version__, "machine": platform.machine(), "llama_cpp_python": version}
        options.out.write_text(json.dumps({**about, "table": rows}, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
