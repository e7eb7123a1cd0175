"""What a change to a finished model costs and gains: bits per byte on the same documents, and decoding speed."""

import time
from dataclasses import dataclass
from statistics import median

import torch

from lit_gpt.checkpoints.resolve import ModelSource
from lit_gpt.evaluation.corpus_loss import LanguageModeling
from lit_gpt.evaluation.intervals import paired_bootstrap
from lit_gpt.evaluation.measure import Progress, no_progress
from lit_gpt.evaluation.result import Interval, Score
from lit_gpt.evaluation.subject import Subject
from lit_gpt.evaluation.texts import Texts
from lit_gpt.generation import Engine, SamplingParams
from lit_gpt.generation.loading import load_source

_WARM_UP, _REPEATS = 8, 3


@dataclass(frozen=True)
class Measured:
    """One model's numbers."""

    bits_per_byte: Score
    tokens_per_second: float
    """Of one text at a time, decoded greedily."""


def measure(
    source: ModelSource,
    device: torch.device,
    texts: Texts,
    documents: int,
    dtype: torch.dtype | None = None,
    speed_tokens: int = 48,
    progress: Progress = no_progress,
) -> Measured:
    """Load a model and measure it.

    Args:
        source: The model.
        device: Where to run.
        texts: What to predict.
        documents: Of them, at most.
        dtype: To convert it to; None: as it is.
        speed_tokens: Tokens to write in each of three timings.
        progress: Told how far the prediction is.
    """
    network, tokenizer = load_source(source, str(device))
    subject = Subject("model", network if dtype is None else network.to(dtype), tokenizer)
    (result,) = LanguageModeling(texts, limit=documents).run(subject, progress)
    score = next(score for score in result.scores if score.name == "bits_per_byte")
    return Measured(score, decoding_speed(subject, speed_tokens))


def increase(before: Measured, after: Measured, seed: int = 0) -> tuple[float, Interval | None]:
    """By how much bits per byte rose, with an interval over the documents, each compared with itself."""
    first, second = before.bits_per_byte, after.bits_per_byte
    assert first.per_item.keys() == second.per_item.keys(), "measured on the same documents"
    items = list(first.per_item)
    interval = paired_bootstrap([first.per_item[i] for i in items], [second.per_item[i] for i in items], seed)
    return second.value - first.value, interval


def decoding_speed(subject: Subject, num_tokens: int) -> float:
    """Tokens a second of one text, greedily from nothing: the median of three timings."""
    engine = Engine(subject.model, subject.tokenizer, max_batch_size=1)
    num_tokens = min(num_tokens, engine.max_length - 1)
    prompt = [subject.tokenizer.separator_id]

    def write(count: int) -> float:
        params = SamplingParams(max_new_tokens=count, temperature=0, ignore_eos=True)
        started = time.perf_counter()
        engine.generate([prompt], params)
        return time.perf_counter() - started

    write(min(_WARM_UP, num_tokens))
    return num_tokens / median(write(num_tokens) for _ in range(_REPEATS))
