"""Convert lm-eval's scores of a task to a result: each metric with its interval and its per-question values."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from lm_eval.api.metrics import mean

from lit_gpt.evaluation.intervals import bootstrap_mean
from lit_gpt.evaluation.result import Better, Example, Interval, Result, Score

RESAMPLES = 1000
"""Bootstrap resamples of metrics that are not means (corpus BLEU, perplexity over words, F1)."""
MAX_WRONG, MAX_RIGHT = 4, 2
"""Number of examples shown."""
MAX_CHARACTERS = 600
"""Number of characters of a prompt shown in an example, from its end."""

SOURCES = {
    "hellaswag": "HellaSwag (Zellers et al. 2019, arXiv:1905.07830)",
    "truthfulqa_mc1": "TruthfulQA (Lin et al. 2022, arXiv:2109.07958)",
    "truthfulqa_mc2": "TruthfulQA (Lin et al. 2022, arXiv:2109.07958)",
    "gsm8k": "GSM8K (Cobbe et al. 2021, arXiv:2110.14168)",
}
DEFINITIONS = {
    "acc": "acc: share of questions whose right choice has the highest probability",
    "acc_norm": "acc_norm: the same with each choice's log-probability divided by its length in characters",
    "acc_bytes": "acc_bytes: the same with each choice's log-probability divided by its length in bytes",
    "exact_match": "exact_match: share of questions whose generated answer is the expected one, after the named filter",
    "perplexity": "perplexity: exponential of the mean loss of the expected continuation",
    "word_perplexity": "word_perplexity: exponential of the mean loss per word",
    "byte_perplexity": "byte_perplexity: exponential of the mean loss per byte",
    "bits_per_byte": "bits_per_byte: loss in bits per UTF-8 byte of text",
    "f1": "f1: harmonic mean of precision and recall",
}


def task_result(name: str, task: Any, output: Mapping[str, Any], settings: Mapping[str, Any], seed: int) -> Result:
    """Return the result of one task.

    Args:
        name: Name of the task.
        task: lm-eval's task.
        output: The return value of lm-eval's `evaluate`, with samples.
        settings: Settings common to all tasks of this run.
        seed: Seed of the resamples.
    """
    samples = output["samples"][name]
    directions = output["higher_is_better"].get(name, {})
    scores = []
    for metric, filtered in _metrics(samples):
        rows = [row for row in samples if row["filter"] == filtered and metric in row["metrics"]]
        value = float(output["results"][name][f"{metric},{filtered}"])
        aggregate = task.aggregation().get(metric, mean)
        scores.append(_score(metric, filtered, rows, value, aggregate, directions.get(metric, True), seed))
    config = output["configs"][name]
    shots = output["n-shot"].get(name, 0)
    metrics = [metric for metric, _ in _metrics(samples)]
    defined = [DEFINITIONS.get(metric, f"{metric}: as lm-eval defines it") for metric in dict.fromkeys(metrics)]
    if name == "truthfulqa_mc2":
        defined = ["acc: mean over questions of the true answers' share of the probability of all answers"]
    data = config.get("dataset_path") or "a file"
    notes = []
    total = output["n-samples"][name]["original"]
    if scores and scores[0].count < total:
        notes.append(f"The first {scores[0].count} of {total} questions (limit).")
    return Result(
        name=name,
        title=str(config.get("task_alias") or name),
        definition="; ".join(defined) + ".",
        source=SOURCES.get(name, f"lm-eval's task {name}, on {data}"),
        scores=tuple(scores),
        examples=_examples(task, samples),
        settings={**settings, "num_fewshot": shots, "task_version": output["versions"].get(name)},
        notes=tuple(notes),
    )


def group_results(
    groups: Mapping[str, Any],
    output: Mapping[str, Any],
    results: Sequence[Result],
    settings: Mapping[str, Any],
    seed: int,
) -> list[Result]:
    """Return a result for each group that has scores; its interval is over the questions of all its tasks."""
    of_tasks = {result.name: result for result in results}
    found = []
    for name, group in groups.items():
        values = {key: value for key, value in output.get("groups", {}).get(name, {}).items() if "," in key}
        members = [of_tasks[task.task_name] for task in group.get_all_tasks()]
        scores = []
        for key, value in values.items():
            metric, filtered = key.split(",", 1)
            if metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            called = _score_name(metric, filtered)
            parts = {
                f"{member.name}/{item}": part
                for member in members
                for score in member.scores
                if score.name == called
                for item, part in score.per_item.items()
            }
            pooled = bool(parts) and abs(statistics.fmean(parts.values()) - value) < 1e-9
            interval = _interval(parts, seed) if pooled else None
            better = output["higher_is_better"].get(name, {}).get(metric, True)
            scores.append(
                Score(
                    called,
                    float(value),
                    len(parts),
                    interval,
                    _unit(parts.values() if pooled else ()),
                    "higher" if better else "lower",
                    parts if pooled else {},
                )
            )
        if scores:
            names = ", ".join(member.name for member in members[:5]) + (", ..." if len(members) > 5 else "")
            found.append(
                Result(
                    name,
                    str(group.alias or name),
                    f"The combined scores of {len(members)} tasks: {names}.",
                    f"lm-eval's group {name}",
                    tuple(scores),
                    settings=dict(settings),
                )
            )
    return found


def _metrics(samples: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return the (metric, filter) pairs of a task, each once, in order."""
    return list(dict.fromkeys((metric, row["filter"]) for row in samples for metric in row["metrics"]))


def _score_name(metric: str, filtered: str) -> str:
    plain = metric if filtered == "none" else f"{metric}_{filtered}"
    return plain.replace("-", "_").replace(" ", "_")


def _score(
    metric: str,
    filtered: str,
    rows: Sequence[Mapping[str, Any]],
    value: float,
    aggregate: Callable[[list[Any]], Any],
    higher_is_better: bool,
    seed: int,
) -> Score:
    items = [row[metric] for row in rows]
    name = _score_name(metric, filtered)
    better: Better = "higher" if higher_is_better else "lower"
    if aggregate is mean and all(isinstance(item, bool | int | float | np.number) for item in items):
        parts = {str(row["doc_id"]): float(item) for row, item in zip(rows, items, strict=True)}
        return Score(name, value, len(items), _interval(parts, seed), _unit(parts.values()), better, parts)
    return Score(name, value, len(items), _resampled(items, aggregate, seed), better=better)


def _unit(values: Iterable[float]) -> Literal["share", ""]:
    numbers = list(values)
    return "share" if numbers and all(0 <= number <= 1 for number in numbers) else ""


def _interval(parts: Mapping[str, float], seed: int) -> Interval | None:
    bounds = (0.0, 1.0) if _unit(parts.values()) == "share" else (-math.inf, math.inf)
    return bootstrap_mean(list(parts.values()), seed, bounds=bounds)


def _resampled(items: list[Any], aggregate: Callable[[list[Any]], Any], seed: int) -> Interval | None:
    """Return the percentile bootstrap interval of any function of the items."""
    if len(items) < 2:
        return None
    generator = np.random.default_rng(seed)
    values = []
    for _ in range(RESAMPLES):
        drawn = generator.integers(len(items), size=len(items))
        values.append(float(aggregate([items[position] for position in drawn])))
    low, high = np.nanquantile(values, [0.025, 0.975])
    return Interval(float(low), float(high), "percentile bootstrap over questions")


def _examples(task: Any, samples: Sequence[Mapping[str, Any]]) -> tuple[Example, ...]:
    """Return some wrong answers and some right ones, by the first metric."""
    metrics = _metrics(samples)
    if not metrics:
        return ()
    metric, filtered = metrics[0]
    rows = [row for row in samples if row["filter"] == filtered and isinstance(row.get(metric), int | float)]
    wrong = [row for row in rows if row[metric] == 0][:MAX_WRONG]
    right = [row for row in rows if row[metric] == 1][:MAX_RIGHT]
    return tuple(_example("wrong", task, row) for row in wrong) + tuple(_example("right", task, row) for row in right)


def _example(title: str, task: Any, row: Mapping[str, Any]) -> Example:
    arguments = row["arguments"]
    prompt = str(arguments[0][0])
    fields = {"prompt": ("…" if len(prompt) > MAX_CHARACTERS else "") + prompt[-MAX_CHARACTERS:]}
    if task.OUTPUT_TYPE == "multiple_choice":
        choices = task.doc_to_choice(row["doc"])
        for number, (choice, answers) in enumerate(zip(choices, row["resps"], strict=False), start=1):
            fields[f"choice {number}"] = f"{choice} (log-probability {answers[0][0]:.2f})"
        target = row["target"]
        fields["expected"] = str(choices[target]) if isinstance(target, int) else str(target)
    else:
        fields["answer"] = str(row["resps"][0][0])
        fields["expected"] = str(row["target"])
    return Example(title, fields, str(row["doc_id"]))
