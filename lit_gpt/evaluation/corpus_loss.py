"""Language modelling: how well a model predicts a text, in numbers that models of any tokenizer share.

Every token of every document is predicted once (`sliding_window`), from the tokens before it in its document, which
opens as the model's texts do: with the publisher's opening tokens, else with the separator. So the bytes of the text
are all accounted for, and

    bits per byte = sum of losses in nats / (ln 2 · UTF-8 bytes of the text)

is comparable between any two models. The loss per token is not: longer tokens are fewer and harder.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from lit_gpt.errors import UserError
from lit_gpt.evaluation.intervals import bootstrap_ratio
from lit_gpt.evaluation.language_modeling import language_modeling_metrics
from lit_gpt.evaluation.loss_pictures import PositionLosses, by_source, examples
from lit_gpt.evaluation.measure import Measure, Progress, no_progress
from lit_gpt.evaluation.result import Interval, Result, Score
from lit_gpt.evaluation.sliding_window import Window, check_window, windows
from lit_gpt.evaluation.subject import Subject
from lit_gpt.evaluation.texts import Texts

FEW_DOCUMENTS = 10
"""Below, the interval is over windows: resampling a handful of documents says nothing."""
_TOKENS_AT_ONCE = 1 << 16


@dataclass
class DocumentLoss:
    """What one document cost.

    Attributes:
        name: Source and record.
        group: Title of the texts that it is from.
        text: Its beginning.
        num_bytes: Of all its text.
        num_tokens: Predicted.
        nats: Sum of their losses.
        windows: (nats, bytes by its share of the tokens) of each window.
    """

    name: str
    group: str
    text: str
    num_bytes: int
    num_tokens: int = 0
    nats: float = 0.0
    windows: list[tuple[float, int]] = field(default_factory=list)

    @property
    def bits_per_byte(self) -> float:
        """Its own."""
        return self.nats / math.log(2) / self.num_bytes


class LanguageModeling(Measure):
    """Loss, perplexity and bits per byte over texts.

    Args:
        texts: What to predict: one place, or several that are also reported one by one.
        stride: Tokens that the window moves on by; null: half of it. Smaller is more exact and slower.
        window: Tokens that the model reads at once; null: all of its context.
        end_of_document: Predict the token that ends a document as well (0 bytes), as validation in training does.
        limit: Documents of each place, at most; null: all.
        name: Of the result, where a plan has several.
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
        if limit is not None and limit < 1:
            raise UserError(f"limit is {limit}; it must be at least 1 document, or null for all")
        self.texts = texts if isinstance(texts, list) else [texts]
        if not self.texts:
            raise UserError("texts is an empty list; name at least one place to read from")
        self.stride, self.window, self.end_of_document = stride, window, end_of_document
        self.limit, self.name = limit, name

    def run(self, subject: Subject, progress: Progress = no_progress) -> list[Result]:
        """Predict all documents."""
        window, stride = check_window(self.window, self.stride, subject.block_size)
        positions = PositionLosses(window)
        reads = [texts.read() for texts in self.texts]
        sizes = [read.expected_bytes() for read in reads]
        expected = None if self.limit is not None or None in sizes else sum(size or 0 for size in sizes)
        documents: list[DocumentLoss] = []
        pending: list[tuple[DocumentLoss, Window]] = []
        num_pending = 0

        def finish() -> None:
            nonlocal num_pending
            found = subject.likelihoods.of_ids([w.context for _, w in pending], [w.targets for _, w in pending])
            for (document, one), scored in zip(pending, found, strict=True):
                document.nats -= scored.logprob
                document.windows.append((-scored.logprob, len(one.targets)))
                positions.add(len(one.context), scored.token_logprobs)
            pending.clear()
            num_pending = 0

        done = 0
        for document, cut in self._cut(subject, reads, window, stride):
            documents.append(document)
            for one in cut:
                pending.append((document, one))
                num_pending += len(one.context) + len(one.targets)
                document.num_tokens += len(one.targets)
                if num_pending >= _TOKENS_AT_ONCE:
                    finish()
            done += document.num_bytes
            progress(done, max(done, expected or 0))
        finish()
        progress(done, done)
        settings = {
            "window": window,
            "stride": stride,
            "end_of_document": self.end_of_document,
            "opening_tokens": list(_prefix(subject)),
            "context": "each token from all before it in its document; where that is more than the window, from the "
            f"last {window - stride + 1} to {window}",
            "texts": [read.describe() for read in reads],
        }
        notes = tuple(note for read in reads for note in read.notes())
        if self.limit is not None:
            notes += (f"The first {self.limit} documents of each place.",)
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
                    admitted.document.where, group, admitted.document.text[:2000], admitted.num_bytes
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
            notes += ("So few documents that the intervals are over windows: they are about these texts alone.",)
        charts = [positions.chart()]
        sources = by_source(documents)
        if sources is not None:
            charts.append(sources)
        return Result(
            name=self.name,
            title="Language modelling",
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
    # Parts whose mean is the ratio of the sums, so that two models can be compared document by document.
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
