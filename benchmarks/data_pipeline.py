"""Speed and memory of `prepare`, step by step, against plain datatrove and `datasets.map`, in one run.

    taskset -c 0 python benchmarks/data_pipeline.py --megabytes 20 --out one_core.json
    taskset -c 0,1 python benchmarks/data_pipeline.py --megabytes 20 --workers 2 --out two_cores.json

Three tables:

- **steps**: MB/s of text through each step alone, in one process; beside it datatrove's own block for the same purpose
  with its defaults, where there is one. Corpus steps are timed with all of their stages, reading shards and writing
  them; so is datatrove's MinHash (its JSON lines reader and writer).
- **all**: MB/s of a whole recipe, from files to token shards, with the given number of workers.
- **tokenising**: `tokenizers.encode_batch_fast` alone on the same texts, our `encode_batch` alone (the ids must be the
  same), our shards, `datasets.map`.
- **memory**: peak of the process that runs a whole recipe inline, at two sizes 10x apart: streaming steps alone must be
  flat, with near-duplicate search bounded in bytes a document.

The text is English: sentences of the language reference that comes with Python, drawn at random into documents of
about 2 kB, so no document is another's copy.
"""

import argparse
import json
import os
import platform
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

STREAMING = [
    "fix_encoding",
    "normalize",
    {"language": {"keep": ["en"], "min_confidence": 0.3}},
    "gopher_repetition",
    "pii",
]
ALL = [*STREAMING, "exact_duplicates", "near_duplicates"]
PER_DOCUMENT: list[tuple[str, dict[str, Any]]] = [
    ("fix_encoding", {}),
    ("normalize", {}),
    ("language", {}),
    ("gopher_repetition", {}),
    ("gopher_quality", {}),
    ("c4_quality", {}),
    ("fineweb_quality", {}),
    ("length", {"min_chars": 100}),
    ("lines", {"max_chars": 10_000}),
    ("pii", {}),
]
CORPUS: list[tuple[str, dict[str, Any]]] = [
    ("exact_duplicates", {}),
    ("duplicate_lines", {}),
    ("near_duplicates", {}),
    ("duplicate_substrings", {}),
]


def sentences() -> list[str]:
    """Sentences of prose that every Python brings along."""
    from pydoc_data.topics import topics

    text = re.sub(r"\s+", " ", " ".join(topics[name] for name in sorted(topics)))
    return [part for part in re.split(r"(?<=[.!?]) ", text) if 40 < len(part) < 400]


def texts(megabytes: float, seed: int = 0) -> Iterator[str]:
    """Documents of about 2 kB, so many megabytes in all."""
    pool, draw, left = sentences(), random.Random(seed), megabytes * 1e6
    while left > 0:
        text = "\n".join(" ".join(draw.choices(pool, k=4)) for _ in range(4))
        left -= len(text)
        yield text


def write_files(folder: Path, megabytes: float) -> int:
    """Writes the documents as jsonl files of 4 MB and returns how many there are."""
    folder.mkdir(parents=True)
    number, size, file = 0, 0, None
    for number, text in enumerate(texts(megabytes), start=1):
        if file is None or size > 4e6:
            file = open(folder / f"{number:08}.jsonl", "w")  # noqa: SIM115 (closed by the next, or at the end)
            size = 0
        size += file.write(json.dumps({"text": text}) + "\n")
    return number


def seconds_of(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


# ---- steps ---------------------------------------------------------------------------------------------------------


def datatrove_blocks() -> dict[str, Callable[[], Any]]:
    """Returns datatrove's own blocks, with their defaults, by step (made when called: some need more libraries)."""
    from datatrove.pipeline import filters, formatters

    return {
        "fix_encoding": formatters.FTFYFormatter,
        "gopher_repetition": filters.GopherRepetitionFilter,
        "gopher_quality": filters.GopherQualityFilter,
        "c4_quality": filters.C4QualityFilter,
        "fineweb_quality": filters.FineWebQualityFilter,
        "pii": formatters.PIIFormatter,
    }


def time_per_document(name: str, options: dict[str, Any], documents: list[str]) -> float:
    from lit_gpt.data.cleaning.base import Doc
    from lit_gpt.data.pipeline.recipe import make_spec

    step = make_spec({name: options}, 1).build()
    step.apply(Doc(documents[0], "warm"))
    return seconds_of(lambda: [step.apply(Doc(text, str(n))) for n, text in enumerate(documents)])


def time_datatrove(make: Callable[[], Any], documents: list[str]) -> float | None:
    from datatrove.data import Document

    try:
        block = make()
        list(block.run(iter([Document(text=documents[0], id="warm")])))
        return seconds_of(lambda: list(block.run(Document(text=t, id=str(n)) for n, t in enumerate(documents))))
    except Exception as error:  # a library or a download is missing: said, not hidden
        print(f"  datatrove's block did not run: {str(error).splitlines()[0][:100]}", file=sys.stderr)
        return None


def time_corpus_step(name: str, options: dict[str, Any], shards: Path, folder: Path) -> float:
    from lit_gpt.data.pipeline.document_shards import ReadDocuments, WriteDocuments, shard_paths
    from lit_gpt.data.pipeline.executor import run_pipeline
    from lit_gpt.data.pipeline.options import ExecutorOptions
    from lit_gpt.data.pipeline.recipe import make_spec
    from lit_gpt.data.pipeline.segments import ApplyTransform

    spec, inline, tasks = make_spec({name: options}, 1), ExecutorOptions(), len(shard_paths(shards))
    findings = folder / "findings"
    findings.mkdir(parents=True)
    began = time.perf_counter()
    for single in spec.build().passes(findings, ReadDocuments(shards), tasks):  # type: ignore[attr-defined]
        run_pipeline(single.pipeline, single.num_tasks, folder / single.name, inline)
    apply = ApplyTransform(spec, folder / "reports", folder / "rejected", findings)
    run_pipeline([ReadDocuments(shards), apply, WriteDocuments(folder / "out")], tasks, folder / "apply", inline)
    return time.perf_counter() - began


def time_datatrove_minhash(files: Path, folder: Path) -> float:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import (
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    tasks = len(list(files.glob("*.jsonl")))
    stages: list[tuple[list[Any], int]] = [
        ([JsonlReader(str(files)), MinhashDedupSignature(f"{folder}/signatures")], tasks),
        ([MinhashDedupBuckets(f"{folder}/signatures", f"{folder}/buckets")], 14),
        ([MinhashDedupCluster(f"{folder}/buckets", f"{folder}/remove")], 1),
        ([JsonlReader(str(files)), MinhashDedupFilter(f"{folder}/remove"), JsonlWriter(f"{folder}/out")], tasks),
    ]
    began = time.perf_counter()
    for number, (pipeline, num_tasks) in enumerate(stages):
        LocalPipelineExecutor(pipeline, tasks=num_tasks, workers=1, logging_dir=f"{folder}/logs/{number}").run()
    return time.perf_counter() - began


# ---- tokenising ----------------------------------------------------------------------------------------------------


def time_tokenising(documents: list[str], folder: Path, workers: int) -> dict[str, float]:
    """Seconds to encode alone, to make our shards, and for `datasets.map`."""
    import datasets
    import numpy as np

    from lit_gpt.data.bpe import train_bpe
    from lit_gpt.data.corpus_spec import CorpusSpec
    from lit_gpt.data.pipeline.document_shards import shard_path, writing_lines
    from lit_gpt.data.pipeline.tokenise import CleanDocuments
    from lit_gpt.data.prepare import prepare_corpus
    from lit_gpt.data.records import BadInput

    size = sum(map(len, documents))
    tokenizer = train_bpe(documents[: max(1, 4_000_000 // 2000)], 16_384)
    with writing_lines(shard_path(folder / "documents", 0)) as lines:
        for number, text in enumerate(documents):
            lines.write({"id": str(number), "text": text, "metadata": {"path": "a", "source": "a", "record": number}})
    source = CleanDocuments(folder / "documents", size, one_source=True)
    assert sum(1 for _ in source.documents(BadInput())) == len(documents)

    def alone() -> None:
        for start in range(0, len(documents), 1000):
            tokenizer.backend.encode_batch_fast(documents[start : start + 1000], add_special_tokens=False)

    def encoded() -> None:
        for start in range(0, len(documents), 1000):
            tokenizer.encode_batch(documents[start : start + 1000])

    def mapped() -> None:
        def encode(batch: dict[str, list[str]]) -> dict[str, Any]:
            encoded = tokenizer.backend.encode_batch_fast(batch["text"], add_special_tokens=False)
            return {"ids": [encoding.ids for encoding in encoded]}

        features = datasets.Features({"ids": datasets.Sequence(datasets.Value("uint16"))})
        dataset = datasets.Dataset.from_dict({"text": documents})
        dataset.map(
            encode,
            batched=True,
            remove_columns=["text"],
            features=features,
            num_proc=workers if workers > 1 else None,
            cache_file_name=str(folder / "mapped.arrow"),
        )

    def shards() -> None:
        spec = CorpusSpec([source])
        prepare_corpus(spec, tokenizer, folder / "cache", workers, folder=folder / "tokens")

    datasets.disable_progress_bars()
    if workers > 1:
        os.environ["TOKENIZERS_PARALLELISM"] = "true"  # the library's own threads, for the ceiling alone
        os.environ["RAYON_NUM_THREADS"] = str(workers)
    tokenizer.backend.encode_batch_fast(documents[:10])
    result = {"encode_batch alone": seconds_of(alone)}
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    result["lit_gpt encode_batch"] = seconds_of(encoded)
    wanted = (encoding.ids for encoding in tokenizer.backend.encode_batch_fast(documents))
    assert all(map(np.array_equal, tokenizer.encode_batch(documents), wanted)), "the ids differ"
    result["lit_gpt shards"] = seconds_of(shards)
    result["datasets.map"] = seconds_of(mapped)
    return result


# ---- whole recipes -------------------------------------------------------------------------------------------------


def run_recipe(files: Path, out: Path, steps: list[Any], workers: int) -> dict[str, float]:
    """Runs `prepare` in a process of its own; returns its seconds and the peak of its largest process in MB."""
    recipe = {
        "out": str(out),
        "sources": [{"files": str(files)}],
        "steps": steps,
        "tokenizer": {"vocab_size": 4096, "sample_megabytes": 2},
        "executor": {"kind": "local", "workers": workers} if workers > 1 else {"kind": "inline"},
    }
    path = out.with_suffix(".json")
    path.write_text(json.dumps(recipe))
    command = [sys.executable, __file__, "--only_recipe", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def only_recipe(path: str) -> None:
    from lit_gpt.cli import main

    began = time.perf_counter()
    status = main(["prepare", "--config", path])
    print(json.dumps({"seconds": time.perf_counter() - began, "peak_mb": peak_megabytes()}))
    raise SystemExit(status)


def peak_megabytes() -> float:
    """Returns the most memory that this process has held."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would tell the peak of the process that started this one, if that was higher
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 1000  # type: ignore[index]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=2.0, help="text for each measurement")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--no_memory", action="store_true", help="leave the two sizes of the memory table out")
    parser.add_argument("--out", help="JSON file for the results")
    parser.add_argument("--only_recipe", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only_recipe:
        only_recipe(options.only_recipe)

    from loguru import logger

    logger.disable("datatrove")
    documents = list(texts(options.megabytes))
    size = sum(map(len, documents)) / 1e6
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    results: dict[str, Any] = {
        "machine": {"platform": platform.machine(), "python": platform.python_version(), "cores": affinity},
        "megabytes": size,
        "documents": len(documents),
        "workers": options.workers,
    }
    with tempfile.TemporaryDirectory() as folder_name:
        folder = Path(folder_name)
        num_documents = write_files(folder / "files", options.megabytes)
        print(f"{size:.1f} MB in {num_documents:,} documents, {affinity} core(s), {options.workers} worker(s)\n")

        print(f"{'step':<24}{'lit_gpt MB/s':>14}{'datatrove MB/s':>16}{'ratio':>8}")
        steps: dict[str, Any] = {}

        def show(name: str, ours: float, theirs: float | None) -> None:
            steps[name] = {"lit_gpt": size / ours, "datatrove": None if theirs is None else size / theirs}
            other = f"{size / theirs:>16.2f}{theirs / ours:>8.2f}" if theirs else f"{'-':>16}{'-':>8}"
            print(f"{name:<24}{size / ours:>14.2f}{other}", flush=True)

        blocks = datatrove_blocks()
        for name, step_options in PER_DOCUMENT:
            theirs = time_datatrove(blocks[name], documents) if name in blocks else None
            show(name, time_per_document(name, step_options, documents), theirs)

        first = run_recipe(folder / "files", folder / "read", [], 1)
        shards = folder / "read" / "documents"
        steps["read and tokenise alone"] = {"lit_gpt": size / first["seconds"], "datatrove": None}
        for name, step_options in CORPUS:
            theirs = time_datatrove_minhash(folder / "files", folder / "trove") if name == "near_duplicates" else None
            show(name, time_corpus_step(name, step_options, shards, folder / name), theirs)
        benchmark = folder / "benchmark.jsonl"
        benchmark.write_text("".join(json.dumps({"question": s}) + "\n" for s in sentences()[:500]))
        decontaminate = ("decontaminate", {"benchmarks": [str(benchmark)]})
        show("decontaminate", time_per_document(*decontaminate, documents), None)
        results["steps"] = steps

        whole = run_recipe(folder / "files", folder / "all", ALL, options.workers)
        results["all"] = {"mb_per_second": size / whole["seconds"], "peak_mb": whole["peak_mb"]}
        print(f"\nall of {len(ALL)} steps, reading, tokenizer and token shards: {size / whole['seconds']:.2f} MB/s")

        print(f"\n{'tokenising':<24}{'MB/s':>14}{'of the library':>16}")
        taken = time_tokenising(documents, folder / "tokenising", options.workers)
        results["tokenising"] = {name: size / value for name, value in taken.items()}
        for name, value in taken.items():
            print(f"{name:<24}{size / value:>14.2f}{taken['encode_batch alone'] / value:>16.2f}")

        if not options.no_memory:
            print(f"\n{'peak memory, MB':<24}{'documents':>14}{'streaming':>12}{'near-duplicates':>17}")
            results["memory"] = []
            for megabytes in (options.megabytes / 2, options.megabytes * 5):
                files = folder / f"files-{megabytes}"
                number = write_files(files, megabytes)
                row = {"megabytes": megabytes, "documents": number}
                for kind, recipe_steps in (("streaming", STREAMING[:2]), ("near_duplicates", ["near_duplicates"])):
                    row[kind] = run_recipe(files, folder / f"{kind}-{megabytes}", recipe_steps, 1)["peak_mb"]
                results["memory"].append(row)
                print(
                    f"{f'{megabytes:.0f} MB of text':<24}{number:>14,}{row['streaming']:>12.0f}"
                    f"{row['near_duplicates']:>17.0f}",
                    flush=True,
                )
            small, large = results["memory"]
            for kind in ("streaming", "near_duplicates"):
                growth = (large[kind] - small[kind]) * 1e6 / (large["documents"] - small["documents"])
                print(f"{kind}: {growth:+.0f} bytes a document more at the larger size")
    if options.out:
        Path(options.out).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
