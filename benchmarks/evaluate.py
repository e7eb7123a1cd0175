"""Benchmarks through our model against lm-eval's own `hf` model, on the same weights, in one run.

    python benchmarks/evaluate.py --hellaswag hellaswag_val.jsonl --truthfulqa mc_task.json --gsm8k test.jsonl
    python benchmarks/evaluate.py --model <Hugging Face folder> --hellaswag hellaswag_val.jsonl --limit 500 --rounds 3
    python benchmarks/evaluate.py --device cuda --shape llama-1b --hf_batch_size 64 --hellaswag hellaswag_val.jsonl

Without `--model`, a Llama with random weights and a byte-level BPE trained on the files' own text; its weights are
drawn wide (`--init_std`), so that its choices differ as a trained model's do. Both models read the same tasks; the
rounds alternate, because a machine drifts. Printed for each task: the scores of both, the questions on which they
differ, the largest difference of a log-likelihood, and the seconds of each (medians): all of it, with lm-eval's own
work of writing prompts and scoring, and the model's part alone; wall clock, and CPU time of all threads, which is
what remains comparable on a machine that does other work too.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

SHAPES = {
    "tiny": {"num_hidden_layers": 4, "num_attention_heads": 4, "hidden_size": 128, "intermediate_size": 344},
    "small": {"num_hidden_layers": 6, "num_attention_heads": 6, "hidden_size": 384, "intermediate_size": 1024},
    "gpt2-124m": {"num_hidden_layers": 12, "num_attention_heads": 12, "hidden_size": 768, "intermediate_size": 2048},
    "llama-1b": {"num_hidden_layers": 16, "num_attention_heads": 32, "hidden_size": 2048, "intermediate_size": 8192},
}
TASKS = {"hellaswag": ["hellaswag"], "truthfulqa": ["truthfulqa_mc1", "truthfulqa_mc2"], "gsm8k": ["gsm8k"]}


def random_model(shape: str, files: list[str], vocab_size: int, init_std: float, folder: Path) -> None:
    """A Llama folder with random weights and a tokenizer of the files' text."""
    import tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    end = "<|endoftext|>"
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[end], initial_alphabet=alphabet, show_progress=False
    )
    backend.train(files, trainer)
    torch.manual_seed(0)
    config = LlamaConfig(
        **SHAPES[shape],
        vocab_size=vocab_size,
        max_position_embeddings=1024,
        initializer_range=init_std,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=end, eos_token=end, pad_token=end)
    tokenizer.save_pretrained(folder)


def ask(
    model: Any, task: str, file: str, limit: int | None, shots: int | None, new_tokens: int | None
) -> tuple[dict, dict[str, float]]:
    """One task put to one model: what lm-eval says, and seconds."""
    from lm_eval.evaluator import evaluate

    from lit_gpt.evaluation.harness.find import SEED, find_tasks

    found = find_tasks([task], data={task: file})
    for one in found.tasks.values():
        if shots is not None and one.get_config("num_fewshot") != 0:
            one.set_config(key="num_fewshot", value=shots)
        if new_tokens is not None and one.OUTPUT_TYPE == "generate_until":
            one.set_config(key="generation_kwargs", value={"max_gen_toks": new_tokens}, update=True)
        one.set_fewshot_seed(seed=SEED)
    asked = {"model_seconds": 0.0, "model_cpu_seconds": 0.0}
    for kind in ("loglikelihood", "generate_until"):
        setattr(model, kind, timed(getattr(type(model), kind).__get__(model), asked))
    begin, cpu = time.perf_counter(), time.process_time()
    said = evaluate(model, task_dict={"tasks": found.tasks, "groups": {}}, limit=limit, bootstrap_iters=0)
    return said, asked | {"seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - cpu}


def timed(method: Callable, into: dict[str, float]) -> Callable:
    """A method that adds up what it takes."""

    def run(*arguments: Any) -> Any:
        begin, cpu = time.perf_counter(), time.process_time()
        result = method(*arguments)
        into["model_seconds"] += time.perf_counter() - begin
        into["model_cpu_seconds"] += time.process_time() - cpu
        return result

    return run


def differences(task: str, ours: dict, theirs: dict) -> dict[str, Any]:
    """Where two answers to one task differ."""
    rows = list(zip(ours["samples"][task], theirs["samples"][task], strict=True))
    metrics = [key for key in ours["results"][task] if "," in key and "_stderr" not in key]
    result: dict[str, Any] = {
        "questions": len({row["doc_id"] for row, _ in rows}),
        "ours": {key: ours["results"][task][key] for key in metrics},
        "hf": {key: theirs["results"][task][key] for key in metrics},
        "questions_that_differ": sum(
            any(abs(float(a[name]) - float(b[name])) > 1e-3 for name in a["metrics"]) for a, b in rows
        ),
    }
    if isinstance(rows[0][0]["resps"][0][0], str):
        result["texts_that_differ"] = sum(a["resps"] != b["resps"] for a, b in rows)
    else:
        pairs = [
            (x[0], y[0]) for a, b in rows for x, y in zip(a["resps"], b["resps"], strict=True)
        ]  # each choice: [(log-likelihood, is greedy)]
        result["largest_log_likelihood_difference"] = max(abs(x[0] - y[0]) for x, y in pairs)
        result["greedy_that_differ"] = sum(x[1] != y[1] for x, y in pairs)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="Hugging Face folder; default: random weights")
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--vocab_size", type=int, default=8192)
    parser.add_argument("--init_std", type=float, default=0.08)
    for name in TASKS:
        parser.add_argument(f"--{name}", metavar="FILE")
    parser.add_argument("--limit", type=int, help="questions of each task")
    parser.add_argument("--shots", type=int, help="examples before each question; default: as the task says")
    parser.add_argument("--max_gen_toks", type=int, help="new tokens of a written answer")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--hf_batch_size", type=int, default=16)
    parser.add_argument("--max_batch_tokens", type=int, help="default: what suits the device")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    files = {task: getattr(args, name) for name, tasks in TASKS.items() for task in tasks if getattr(args, name)}
    if not files:
        parser.error("name at least one file: --hellaswag, --truthfulqa or --gsm8k")

    import logging

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    from lm_eval.models.huggingface import HFLM

    from lit_gpt.evaluation.harness.model import HarnessModel
    from lit_gpt.evaluation.subject import load_subject

    with tempfile.TemporaryDirectory() as temporary:
        folder = args.model or temporary
        if args.model is None:
            random_model(args.shape, list(dict.fromkeys(files.values())), args.vocab_size, args.init_std, Path(folder))
        theirs = HFLM(folder, device=args.device, dtype=args.dtype, batch_size=args.hf_batch_size)
        subject = load_subject(folder, device=args.device, max_batch_size=args.hf_batch_size)
        subject.model.to(getattr(torch, args.dtype))
        results: dict[str, Any] = {}
        for task, file in files.items():
            ours = HarnessModel(subject, "hf", max_batch_tokens=args.max_batch_tokens)
            took: dict[str, list[dict[str, float]]] = {"ours": [], "hf": []}
            for _ in range(args.rounds):
                said = {}
                for name, model in (("ours", ours), ("hf", theirs)):
                    said[name], spent = ask(model, task, file, args.limit, args.shots, args.max_gen_toks)
                    took[name].append(spent)
            results[task] = differences(task, said["ours"], said["hf"])
            for unit in ("seconds", "cpu_seconds", "model_seconds", "model_cpu_seconds"):
                medians = {name: statistics.median(one[unit] for one in each) for name, each in took.items()}
                results[task][unit] = medians | {"times_less": medians["hf"] / medians["ours"]}
            print(task, json.dumps(results[task], indent=2))
    if args.out:
        where = {"machine": platform.processor() or platform.machine(), "torch": torch.__version__}
        files = {name: Path(value).name for name, value in vars(args).items() if name in (*TASKS, "model") and value}
        settings = {name: value for name, value in vars(args).items() if name != "out"} | files
        args.out.write_text(json.dumps({"settings": settings, **where, **results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
