"""Language modeling: how well a model predicts a text, in numbers that are comparable across tokenizers.

Every token of every document is predicted exactly once, from the tokens before it in its document. A document longer
than the context is cut into windows: the first window predicts everything that fits, each further one advances by
`stride` tokens and predicts only those, from the `window - stride` tokens before them and the part of the stride
already read. A smaller stride is more exact and slower: each token is read window / stride times.

A document starts as in training: with the publisher's opening tokens, else with the separator. So all bytes of the
text are accounted for, and

    bits per byte = sum of losses in nats / (ln 2 · UTF-8 bytes of the text)

is comparable between any two models. The loss per token is not: longer tokens are fewer and harder.
"""

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise
from statistics import median
from typing import NamedTuple

import numpy as np
import torch

from lit_gpt.checkpoints.resolve import ModelSource
from lit_gpt.checks import check_at_least, check_between
from lit_gpt.data.corpus_spec import Admitted
from lit_gpt.errors import UserError
from lit_gpt.evaluation.intervals import bootstrap_ratio, paired_bootstrap
from lit_gpt.evaluation.measure import Measure
from lit_gpt.evaluation.metrics import language_modeling_metrics
from lit_gpt.evaluation.progress import Progress, no_progress
from lit_gpt.evaluation.result import Chart, Example, Interval, Result, Score
from lit_gpt.evaluation.subject import Subject
from lit_gpt.evaluation.texts import Texts
from lit_gpt.generation import Engine, SamplingParams
from lit_gpt.generation.loading import load_source, prepare_weights


class Window(NamedTuple):
    """A part of a text: `context` is read, `targets` are predicted.

    Attributes:
        start: Index of the first target among the text's own tokens; 0 is the token after the prefix.
        context: Token ids that are read, at least one.
        targets: Token ids after the context that are predicted, at least one.
    """

    start: int
    context: Sequence[int]
    targets: Sequence[int]


def check_window(window: int | None, stride: int | None, block_size: int) -> tuple[int, int]:
    """Return window and stride with their defaults: the model's whole context, and its `default_stride`.

    Raises:
        UserError: If one of them is out of bounds.
    """
    width = block_size if window is None else window
    check_between("window", width, 1, block_size, "the model's context is the longest window")
    step = default_stride(width) if stride is None else stride
    check_between("stride", step, 1, width, "it must not be longer than the window")
    return width, step


ENOUGH_CONTEXT = 1024
"""Tokens before a predicted one that a longer window leaves at least."""


def default_stride(window: int) -> int:
    """Return the stride with which every token is predicted from half of the window or 1,024 tokens, if that is less.

    Each token is read window / stride times. On a novel, each doubling of SmolLM2-135M's context from 1,024 to 8,192
    tokens lowers the bits per byte by about 1 %.
    """
    return max(1, window - min((window + 1) // 2, ENOUGH_CONTEXT))


def windows(prefix: Sequence[int], ids: Sequence[int], window: int, stride: int) -> Iterator[Window]:
    """Cut a text into windows.

    Args:
        prefix: Tokens before the text that are not predicted, at least one.
        ids: The text's tokens, each of which is predicted exactly once.
        window: Maximum number of tokens that the model reads at once, up to the one before the last target.
        stride: Number of targets of every window after the first.
    """
    text = [*prefix, *ids]
    first = len(prefix)
    begin = first
    # The context of a window ends one token before its last target, and is at most `window` tokens with the targets.
    while begin < len(text):
        count = max(1, window - first + 1) if begin == first else stride
        end = min(begin + count, len(text))
        yield Window(begin - first, text[max(0, end - 1 - window) : begin], text[begin:end])
        begin = end


MAX_SOURCES = 16
SHOWN_CHARACTERS = 500
_MIN_EXAMPLE_BYTES = 200
"""Minimum size of a document shown as easy or hard: the loss of a very short one is mostly noise."""
_BINS_AN_OCTAVE = 2


class PositionLosses:
    """Sums of losses by context length, i.e. the number of tokens from which a prediction is made.

    Args:
        window: Largest possible context length.
    """

    def __init__(self, window: int) -> None:
        self._sums, self._counts = np.zeros(window + 1), np.zeros(window + 1, dtype=np.int64)

    def add(self, num_context: int, logprobs: Sequence[float]) -> None:
        """Add a window: its first target is predicted from `num_context` tokens, the next from one more."""
        positions = slice(num_context, num_context + len(logprobs))
        self._sums[positions] -= logprobs
        self._counts[positions] += 1

    def chart(self) -> Chart:
        """Return the mean loss in bins that widen with the context."""
        window = len(self._sums) - 1
        octaves = math.log2(max(window, 2))
        edges = sorted({round(2 ** (n / _BINS_AN_OCTAVE)) for n in range(int(octaves * _BINS_AN_OCTAVE) + 1)})
        edges.append(window + 1)
        bins = [slice(low, high) for low, high in pairwise(edges) if self._counts[low:high].sum()]
        middles = [float(np.average(np.arange(b.start, b.stop), weights=self._counts[b])) for b in bins]
        means: list[float | None] = [float(self._sums[b].sum() / self._counts[b].sum()) for b in bins]
        return Chart(
            "Loss against position: how much the model gains from more context",
            "tokens before the predicted one",
            "nats per token",
            [round(middle, 1) for middle in middles],
            {"loss": means},
        )


def by_source(documents: Sequence["DocumentLoss"]) -> Chart | None:
    """Chart bits per byte of each source: the named ones, else the topmost folders; None if there is only one."""
    groups = {document.group for document in documents}
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for document in documents:
        name = document.group if len(groups) > 1 else document.name.split(":")[0].split("/")[0]
        sums[name][0] += document.nats / math.log(2)
        sums[name][1] += document.num_bytes
    if len(sums) < 2:
        return None
    largest = sorted(sums, key=lambda name: -sums[name][1])[:MAX_SOURCES]
    ordered = sorted(largest, key=lambda name: sums[name][0] / sums[name][1])
    title = "By source" if len(sums) <= MAX_SOURCES else f"By source: the {MAX_SOURCES} largest of {len(sums)}"
    values: list[float | None] = [sums[name][0] / sums[name][1] for name in ordered]
    return Chart(title, "", "bits per byte", ordered, {"bits per byte": values}, "bar")


def examples(documents: Sequence["DocumentLoss"], count: int = 2) -> tuple[Example, ...]:
    """Return the documents that were easiest and hardest to predict."""
    long = sorted((d for d in documents if d.num_bytes >= _MIN_EXAMPLE_BYTES), key=lambda d: d.bits_per_byte)
    if len(long) < 2 * count:
        return ()
    shown = [("easy to predict", document) for document in long[:count]]
    shown += [("hard to predict", document) for document in reversed(long[-count:])]
    return tuple(
        Example(
            f"{words}: {document.bits_per_byte:.2f} bits per byte",
            {"from": document.name, "begins": document.text[:SHOWN_CHARACTERS]},
            document.name,
        )
        for words, document in shown
    )


FEW_DOCUMENTS = 10
"""With fewer documents the interval is over windows, because resampling a handful of documents is uninformative."""
_TOKENS_AT_ONCE = 1 << 16


@dataclass
class DocumentLoss:
    """The loss of one document.

    Attributes:
        name: Source and record.
        group: Title of the texts that it is from.
        text: The beginning of its text.
        num_bytes: UTF-8 bytes of the whole text.
        total_tokens: Tokens of the whole text.
        num_tokens: Tokens predicted so far.
        nats: Sum of their losses in nats.
        windows: (loss in nats, number of predicted tokens) of each window.
    """

    name: str
    group: str
    text: str
    num_bytes: int
    total_tokens: int = 0
    num_tokens: int = 0
    nats: float = 0.0
    windows: list[tuple[float, int]] = field(default_factory=list)

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of this document."""
        return self.nats / math.log(2) / self.num_bytes


class LanguageModeling(Measure):
    """Loss, perplexity and bits per byte over texts.

    Args:
        texts: Texts to predict: one source, or several that are also reported separately.
        stride: Tokens by which the window advances; null: half of it, or all but 1,024 tokens of a long one. A smaller
            stride is more exact and slower.
        window: Tokens that the model reads at once; null: its whole context.
        end_of_document: Whether to predict the end-of-document token, too (0 bytes), as validation in training does.
        limit: Maximum number of documents of each source; null: all.
        name: Name of the result, needed if a plan has several.

    Raises:
        UserError: `texts` is an empty list.
    """

    def __init__(
        self,
        texts: Texts | list[Texts],
        stride: int | None = None,
        window: int | None = None,
        end_of_document: bool = False,
        limit: int | None = None,
        name: str = "language_modeling",
    ) -> None:
        check_at_least("limit", limit, 1, "null for all documents")
        self.texts = texts if isinstance(texts, list) else [texts]
        if not self.texts:
            raise UserError("texts is an empty list; name at least one source")
        self.stride, self.window, self.end_of_document = stride, window, end_of_document
        self.limit, self.name = limit, name

    def run(self, subject: Subject, progress: Progress = no_progress) -> list[Result]:
        """Predict all documents; progress is in bytes of text, and advances within a long document."""
        window, stride = check_window(self.window, self.stride, subject.block_size)
        positions = PositionLosses(window)
        reads = [texts.read() for texts in self.texts]
        sizes = [read.expected_bytes() for read in reads]
        expected = None if self.limit is not None or None in sizes else sum(size or 0 for size in sizes)
        documents: list[DocumentLoss] = []
        pending: list[tuple[DocumentLoss, Window]] = []
        num_pending = 0
        predicted, read_bytes = 0.0, 0  # bytes of text whose tokens are predicted, and of all documents read so far

        def finish() -> None:
            """Predict the pending windows, which may be of several documents."""
            nonlocal num_pending, predicted
            # A window counts for its share of its document's bytes.
            batch_bytes = sum(
                len(one.targets) / document.total_tokens * document.num_bytes for document, one in pending
            )
            total = max(read_bytes, expected or 0)

            def report(done: int, of: int) -> None:
                progress(min(total, int(predicted + batch_bytes * done / of)), total)

            contexts, targets = [one.context for _, one in pending], [one.targets for _, one in pending]
            found = subject.likelihoods.of_ids(contexts, targets, report)
            for (document, one), scored in zip(pending, found, strict=True):
                document.nats -= scored.logprob
                document.windows.append((-scored.logprob, len(one.targets)))
                positions.add(len(one.context), scored.token_logprobs)
            predicted += batch_bytes
            pending.clear()
            num_pending = 0

        for document, cut in self._cut(subject, reads, window, stride):
            documents.append(document)
            read_bytes += document.num_bytes
            for one in cut:
                pending.append((document, one))
                num_pending += len(one.context) + len(one.targets)
                document.num_tokens += len(one.targets)
                if num_pending >= _TOKENS_AT_ONCE:
                    finish()
        finish()
        progress(read_bytes, read_bytes)
        settings = {
            "window": window,
            "stride": stride,
            "end_of_document": self.end_of_document,
            "opening_tokens": list(_prefix(subject)),
            "context": "each token from all preceding ones in its document; if that is more than the window, from the "
            f"last {window - stride + 1} to {window}",
            "texts": [read.describe() for read in reads],
        }
        notes = tuple(note for read in reads for note in read.notes())
        if self.limit is not None:
            notes += (f"The first {self.limit} documents of each source.",)
        return [self._result(documents, positions, settings, notes, subject.seed)]

    def _cut(
        self, subject: Subject, reads: list, window: int, stride: int
    ) -> Iterator[tuple[DocumentLoss, Iterator[Window]]]:
        tokenizer, prefix = subject.tokenizer, _prefix(subject)
        for read in reads:
            group = read.texts.title
            for number, admitted in enumerate(read.admitted(), start=1):
                ids = tokenizer.encode(admitted.document.text).tolist()
                if self.end_of_document:
                    ids.append(tokenizer.separator_id)
                document = DocumentLoss(
                    admitted.document.where, group, admitted.document.text[:2000], admitted.num_bytes, len(ids)
                )
                yield document, windows(prefix, ids, window, stride)
                if number == self.limit:
                    break

    def _result(
        self,
        documents: list[DocumentLoss],
        positions: PositionLosses,
        settings: dict,
        notes: tuple[str, ...],
        seed: int,
    ) -> Result:
        nats, tokens, size = (sum(getattr(d, name) for d in documents) for name in ("nats", "num_tokens", "num_bytes"))
        totals = language_modeling_metrics(nats, tokens, size)
        scores = [_bits_per_byte("bits_per_byte", documents, seed)]
        loss = _interval(documents, "num_tokens", seed)
        scores.append(Score("loss", totals["loss"], tokens, loss, "nats per token", "lower"))
        perplexity = None
        if loss is not None:
            perplexity = Interval(_exp(loss.low), _exp(loss.high), loss.method, loss.level)
        scores.append(Score("perplexity", totals["perplexity"], tokens, perplexity, "", "lower"))
        if len(self.texts) > 1:
            for group in dict.fromkeys(document.group for document in documents):
                chosen = [document for document in documents if document.group == group]
                scores.append(_bits_per_byte(f"bits_per_byte_{_snake(group)}", chosen, seed))
        if len(documents) < FEW_DOCUMENTS:
            notes += ("With so few documents the intervals are over windows: they only cover these texts.",)
        charts = [positions.chart()]
        sources = by_source(documents)
        if sources is not None:
            charts.append(sources)
        return Result(
            name=self.name,
            title="Language modeling",
            definition=(
                "How well the model predicts text that it is shown, token by token. Bits per byte is what a compressor "
                "built on the model would need for each byte of the text: lower is better, and models with different "
                "tokenizers can be compared by it. (8 is no compression; gzip needs about 2 to 3 on prose and code.)"
            ),
            source="Sliding-window evaluation as in Hugging Face's guide on perplexity of fixed-length models; "
            "bits per byte as in The Pile (Gao et al. 2020)",
            scores=tuple(scores),
            examples=examples(documents),
            charts=tuple(charts),
            settings=settings | {"seed": seed},
            notes=notes,
        )


def _prefix(subject: Subject) -> tuple[int, ...]:
    tokenizer = subject.tokenizer
    return tokenizer.opening_ids or (tokenizer.separator_id,)


def _bits_per_byte(name: str, documents: list[DocumentLoss], seed: int) -> Score:
    size = sum(document.num_bytes for document in documents)
    # Per-document values whose mean is the ratio of the sums, so that models can be compared document by document.
    scale = len(documents) / (size * math.log(2))
    parts: dict[str, float] = {}
    for document in documents:
        key = document.name
        while key in parts:
            key += "'"
        parts[key] = document.nats * scale
    value = sum(document.nats for document in documents) / (size * math.log(2))
    found = _interval(documents, "num_bytes", seed, 1 / math.log(2))
    return Score(name, value, len(documents), found, "bits per byte", "lower", parts)


def _interval(documents: list[DocumentLoss], below: str, seed: int, scale: float = 1.0) -> Interval | None:
    if len(documents) >= FEW_DOCUMENTS:
        sums = [document.nats * scale for document in documents]
        return bootstrap_ratio(sums, [getattr(document, below) for document in documents], seed, "documents")
    sums, sizes = [], []
    for document in documents:
        for nats, tokens in document.windows:
            sums.append(nats * scale)
            sizes.append(tokens * getattr(document, below) / document.num_tokens)
    return bootstrap_ratio(sums, sizes, seed, "windows")


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def _snake(words: str) -> str:
    return "_".join("".join(c.lower() if c.isalnum() else " " for c in words).split())


# ------------------------------------------------------------------ the cost of quantization

_WARM_UP, _SPEED_TOKENS, _REPEATS = 8, 48, 3
_COST_CHARACTERS = 3072
"""Of each document, quantization is measured on the beginning: many short ones say more than a few long ones."""
_COST_WINDOW = 1024


@dataclass(frozen=True)
class ModelCost:
    """Quality and speed of one model, to compare it before and after quantization.

    Attributes:
        documents: The loss of each document's beginning.
        tokens_per_second: Greedy decoding speed of a single sequence.
    """

    documents: Sequence[DocumentLoss]
    tokens_per_second: float

    def bits_per_byte(self, count: int | None = None) -> Score:
        """Return the bits per byte of the first documents; None = of all."""
        return _bits_per_byte("bits_per_byte", list(self.documents[:count]), 0)


def measure_cost(
    source: ModelSource,
    device: torch.device,
    texts: Texts,
    documents: int,
    dtype: torch.dtype | None = None,
    seconds: float = math.inf,
    progress: Progress = no_progress,
) -> ModelCost:
    """Load a model as the other commands do (`--weights auto`) and measure it.

    Args:
        source: The model.
        device: Where to run.
        texts: Texts to predict.
        documents: Maximum number of documents.
        dtype: The dtype to convert the model to; None: its own.
        seconds: Time after which no further document is measured; the first one always is.
        progress: Called with the share that is done, of documents or of time, whichever is more.
    """
    network, tokenizer = load_source(source, str(device))
    network = network if dtype is None else network.to(dtype)
    prepare_weights(network, "auto")
    subject = Subject("model", network, tokenizer)
    window, stride = check_window(min(_COST_WINDOW, subject.block_size), None, subject.block_size)
    started, losses = time.monotonic(), []
    for number, admitted in enumerate(islice(texts.read().admitted(), documents), start=1):
        losses.append(_beginning(subject, admitted, window, stride))
        share = max(number / documents, (time.monotonic() - started) / seconds)
        progress(min(1000, int(1000 * share)), 1000)
        if share >= 1:
            break
    speed = decoding_speed(subject, _SPEED_TOKENS, seconds)
    progress(1000, 1000)
    return ModelCost(losses, speed)


def _beginning(subject: Subject, admitted: Admitted, window: int, stride: int) -> DocumentLoss:
    """Return the loss of a document's beginning."""
    text = admitted.document.text[:_COST_CHARACTERS]
    cut = list(windows(_prefix(subject), subject.tokenizer.encode(text).tolist(), window, stride))
    found = subject.likelihoods.of_ids([one.context for one in cut], [one.targets for one in cut])
    losses = [(-scored.logprob, scored.num_tokens) for scored in found]
    tokens, nats = sum(count for _, count in losses), sum(loss for loss, _ in losses)
    return DocumentLoss(admitted.document.where, "", text, len(text.encode()), tokens, tokens, nats, losses)


def increase(before: ModelCost, after: ModelCost, seed: int = 0) -> tuple[Score, Score, Interval | None]:
    """Return bits per byte on the documents that both were measured on, and an interval of their difference."""
    count = min(len(before.documents), len(after.documents))
    first, second = before.bits_per_byte(count), after.bits_per_byte(count)
    assert first.per_item.keys() == second.per_item.keys(), "measured on the same documents"
    items = list(first.per_item)
    interval = paired_bootstrap([first.per_item[i] for i in items], [second.per_item[i] for i in items], seed)
    return first, second, interval


def decoding_speed(subject: Subject, num_tokens: int, seconds: float = math.inf) -> float:
    """Return tokens per second of one sequence, decoded greedily from an empty prompt: the median of three timings.

    Args:
        subject: The model.
        num_tokens: Tokens of each timing.
        seconds: Time for all of it, roughly: fewer tokens are decoded where these would take longer.
    """
    engine = Engine(subject.model, subject.tokenizer, max_batch_size=1)
    num_tokens = min(num_tokens, engine.max_length - 1)
    prompt = [subject.tokenizer.separator_id]

    def write(count: int) -> float:
        params = SamplingParams(max_new_tokens=count, temperature=0, ignore_eos=True)
        started = time.perf_counter()
        engine.generate([prompt], params)
        return time.perf_counter() - started

    warm_up = min(_WARM_UP, num_tokens)
    if (left := seconds / (_REPEATS * write(warm_up) / warm_up)) < num_tokens:
        num_tokens = max(warm_up, int(left))
    return num_tokens / median(write(num_tokens) for _ in range(_REPEATS))
