"""Measure how much of its training text a model reproduces verbatim.

Carlini et al. 2023 ("Quantifying Memorization Across Neural Language Models", arXiv:2202.07646): a passage is
extractable with k tokens of context if the model, given these k tokens of the training text, continues with exactly the
tokens that follow there. The paper decodes greedily; what sampling reproduces is counted as by Hayes et al. 2024
("Measuring memorization through probabilistic discoverable extraction", arXiv:2410.19482): at least once in n samples.
The same measurement on text that was not trained on shows how much is boilerplate that any model could continue.

`sample_passages` takes a uniform sample of passages of a given number of tokens from any texts, in one pass and bounded
memory. A document is cut into blocks that are long enough for a passage; each block has a random key (from the seed and
the document's hash), and the blocks with the smallest keys are the sample. So all passages have the same probability
wherever they are, and the same texts and seed give the same passages regardless of what else is read with them.
Passages start at white space, like the tokenizer's pieces, so that they have the same tokens as in training.
"""

import heapq
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lit_gpt.checks import check_above, check_at_least
from lit_gpt.data.corpus_spec import Admitted
from lit_gpt.data.tokenizers import Tokenizer
from lit_gpt.errors import UserError
from lit_gpt.evaluation.intervals import few_documents, mean_score, share_score
from lit_gpt.evaluation.measure import Measure, limited, seeded
from lit_gpt.evaluation.progress import Progress, no_progress, part_of
from lit_gpt.evaluation.result import Chart, Example, Result, Score
from lit_gpt.evaluation.subject import Subject, draw_seed
from lit_gpt.evaluation.texts import ReadTexts, Texts, training_texts, unknown_training
from lit_gpt.generation.request import SamplingParams

READING_STEPS = 100
"""Weight of reading a text in the progress of a measure."""
BLOCK_CHARACTERS_PER_TOKEN = 16
"""A block holds a passage at eight characters per token, and as much again to vary where it starts."""


@dataclass(frozen=True)
class Passage:
    """A passage of a text.

    Attributes:
        ids: Tokens of the passage, without opening tokens.
        opening_ids: Opening tokens, if the passage starts its document or the model's publisher puts them before every
            text; otherwise empty.
        where: Source, record and index of its first character; unique.
        document: Hash of the document.
    """

    ids: tuple[int, ...]
    opening_ids: tuple[int, ...]
    where: str
    document: str

    def prompt(self, num_tokens: int) -> list[int]:
        """Return the first tokens of the passage, opened as in training."""
        return [*self.opening_ids, *self.ids[:num_tokens]]


@dataclass(frozen=True)
class PassageSample:
    """A sample of passages, and the pass over the texts that it is from.

    Attributes:
        passages: Sampled passages, in random order.
        read: Counts and hashes of the texts, for the report.
    """

    passages: list[Passage]
    read: ReadTexts

    @property
    def clusters(self) -> list[str]:
        """The document of each passage."""
        return [passage.document for passage in self.passages]

    @property
    def one_a_document(self) -> bool:
        """Whether all passages are from different documents, so that they are independent."""
        return max(Counter(self.clusters).values(), default=0) <= 1


def sample_passages(
    texts: Texts,
    tokenizer: Tokenizer,
    num_tokens: int,
    count: int,
    seed: int = 0,
    one_a_document: bool = False,
    progress: Progress = no_progress,
) -> PassageSample:
    """Sample different passages.

    Args:
        texts: Texts to sample from.
        tokenizer: Tokenizer of the model.
        num_tokens: Number of tokens per passage.
        count: Number of passages; fewer if the texts have no more.
        seed: Seed of the sample.
        one_a_document: Whether to take at most one passage per document; otherwise long documents give more.
        progress: Called with the bytes read.

    Raises:
        UserError: If the texts are empty, or no document is as long as a passage.
    """
    read = texts.read()
    expected = read.expected_bytes() or 0
    size = BLOCK_CHARACTERS_PER_TOKEN * num_tokens
    # More blocks than passages, because some turn out to be too short or duplicates.
    kept: list[tuple[float, int, str, str, str]] = []
    capacity = 4 * count + 16
    for admitted in read.admitted():
        text = admitted.document.text
        for key, start in _starts(text, size, admitted, seed, one_a_document):
            if len(kept) < capacity or -kept[0][0] > key:
                where = f"{admitted.document.where}@{start}"
                item = (-key, start, where, admitted.digest.hex()[:32], text[start : start + size])
                (heapq.heappush if len(kept) < capacity else heapq.heapreplace)(kept, item)
        progress(read.num_bytes, max(read.num_bytes, expected))
    passages: dict[tuple[int, ...], Passage] = {}
    for _, start, where, document, piece in sorted(kept, reverse=True):
        ids = tuple(tokenizer.encode(piece)[:num_tokens].tolist())
        if len(ids) == num_tokens and ids not in passages:
            passages[ids] = Passage(ids, opening_of(tokenizer, start == 0), where, document)
        if len(passages) == count:
            break
    if not passages:
        raise UserError(
            f"{texts.title} has no document of {num_tokens} tokens or more; name longer texts, or measure shorter "
            "passages"
        )
    return PassageSample(list(passages.values()), read)


def opening_of(tokenizer: Tokenizer, at_start: bool) -> tuple[int, ...]:
    """Return the tokens before a passage of a document.

    In training here the separator starts a document, and there is nothing before a passage in the middle of one; a
    publisher's `bos_token` precedes every text.
    """
    published = tokenizer.opening_ids != (tokenizer.separator_id,)
    return tokenizer.opening_ids if at_start or published else ()


def _starts(text: str, size: int, admitted: Admitted, seed: int, only_one: bool) -> Iterable[tuple[float, int]]:
    """Yield a random key and the index of the first character, for each block of a document or for one of them."""
    num_blocks = max(1, len(text) // size)
    draws = np.random.default_rng([seed, int.from_bytes(admitted.digest[:16], "big")])
    if only_one:
        blocks, keys = [int(draws.integers(num_blocks))], [draws.random()]
    else:
        blocks, keys = list(range(num_blocks)), draws.random(num_blocks).tolist()
    for block, key in zip(blocks, keys, strict=True):
        end = len(text) if block == num_blocks - 1 else (block + 1) * size
        spare = max(0, end - block * size - size // 2)
        yield key, _at_white_space(text, block * size + int(draws.random() * spare))


def _at_white_space(text: str, start: int) -> int:
    """Return the next index at which white space starts; `start` itself if it is 0 or there is none nearby."""
    if start == 0:
        return 0
    for at in range(start, min(start + 80, len(text))):
        if text[at].isspace() and not text[at - 1].isspace():
            return at
    return start


def check_fits(passage_tokens: int, block_size: int, opening: int, what: str) -> None:
    """Raise if passages are longer than a model's context.

    Raises:
        UserError: With both lengths, and what to lower.
    """
    if passage_tokens + opening > block_size:
        raise UserError(
            f"{what} make {passage_tokens} tokens{f' and {opening} that open them' if opening else ''}, more than the "
            f"model's context of {block_size}; lower them"
        )


TITLE = "Memorization: training text reproduced verbatim"
_MAX_EXAMPLES = 5


class Memorisation(Measure):
    """The share of training passages whose continuation the model generates verbatim.

    Args:
        training: Training text; null: the corpus of the model's run.
        held_out: Similar text that the model was not trained on, for comparison; null: the run's, or no comparison.
        num_windows: Number of passages of each text.
        prefix_tokens: Number of tokens given to the model.
        continuation_tokens: Number of tokens that it must reproduce exactly.
        num_samples: Sampled continuations per passage, in addition to the greedy one; 0: only greedy.
        temperature: Temperature of the samples.
        top_p: Nucleus sampling threshold; null: all tokens.
        seed: Seed of passages and samples; null: the plan's.
        limit: Maximum number of passages of each text.
        name: Name of the result.
    """

    def __init__(
        self,
        training: Texts | None = None,
        held_out: Texts | None = None,
        num_windows: int = 200,
        prefix_tokens: int = 50,
        continuation_tokens: int = 50,
        num_samples: int = 4,
        temperature: float = 1.0,
        top_p: float | None = None,
        seed: int | None = None,
        limit: int | None = None,
        name: str = "memorisation",
    ) -> None:
        for label, value in (
            ("num_windows", num_windows),
            ("prefix_tokens", prefix_tokens),
            ("continuation_tokens", continuation_tokens),
        ):
            check_at_least(label, value, 1)
        check_at_least("num_samples", num_samples, 0, "0 decodes greedily only")
        if num_samples:
            check_above("temperature", temperature, 0, "or set num_samples: 0")
        self.training, self.held_out = training, held_out
        self.num_windows, self.num_samples = limited(num_windows, limit), num_samples
        self.prefix_tokens, self.continuation_tokens = prefix_tokens, continuation_tokens
        self.greedy = SamplingParams(max_new_tokens=continuation_tokens, temperature=0, ignore_eos=True)
        self.sampled = SamplingParams(
            max_new_tokens=continuation_tokens,
            temperature=1.0 if temperature == 0 else temperature,  # 0 only without samples, where it is unused
            top_p=top_p,
            ignore_eos=True,
        )
        self.name = name
        self.own_seed, self.seed = seed, 0 if seed is None else seed

    def run(self, subject: Subject, progress: Progress = no_progress) -> list[Result]:
        """Measure a model."""
        if self.own_seed is None:
            return seeded(self, subject.seed).run(subject, progress)
        texts = training_texts(subject, self.training, self.held_out)
        if texts is None:
            return [unknown_training(self.name, TITLE)]
        # Reading each text counts as READING_STEPS, each generated passage as one.
        total = self.num_windows * (2 + self.num_samples) + 2 * READING_STEPS
        reading = part_of(progress, 0, READING_STEPS, total)
        training = self._sample(texts.training, subject, reading)
        reading = part_of(progress, READING_STEPS, READING_STEPS, total)
        held_out = None if texts.held_out is None else self._sample(texts.held_out, subject, reading)
        others = [] if held_out is None else held_out.passages
        done = 2 * READING_STEPS
        total = len(training.passages) * (1 + self.num_samples) + len(others) + done

        def advance(finished: int, _: int) -> None:
            progress(done + finished, total)

        own = self._matched(subject, training.passages, self.greedy, advance)
        done += len(own)
        baseline = self._matched(subject, others, self.greedy, advance)
        done += len(others)
        repeated = [passage for passage in training.passages for _ in range(self.num_samples)]
        drawn = self._matched(subject, repeated, self.sampled, advance)
        return [self._result(subject, training, own, drawn, held_out, baseline)]

    def _sample(self, texts: Texts, subject: Subject, progress: Progress) -> PassageSample:
        length = self.prefix_tokens + self.continuation_tokens
        what = f"prefix_tokens {self.prefix_tokens} and continuation_tokens {self.continuation_tokens}"
        check_fits(length, subject.block_size, len(subject.tokenizer.opening_ids), what)
        return sample_passages(texts, subject.tokenizer, length, self.num_windows, self.seed, progress=progress)

    def _matched(
        self, subject: Subject, passages: Sequence[Passage], params: SamplingParams, progress: Progress
    ) -> list[int]:
        """Return, for each passage, the number of continuation tokens generated before the first difference."""
        prompts = [passage.prompt(self.prefix_tokens) for passage in passages]
        each = [replace(params, seed=draw_seed(self.seed, number)) for number in range(len(prompts))]
        completions = subject.generate(prompts, each, progress)
        return [
            _common(completion.token_ids, passage.ids[self.prefix_tokens :])
            for passage, completion in zip(passages, completions, strict=True)
        ]

    def _result(
        self,
        subject: Subject,
        training: PassageSample,
        own: list[int],
        drawn: list[int],
        held_out: PassageSample | None,
        baseline: list[int],
    ) -> Result:
        whole, items, clusters = self.continuation_tokens, [p.where for p in training.passages], training.clusters
        scores = [share_score("verbatim_greedy", [n == whole for n in own], items, clusters, seed=self.seed)]
        if self.num_samples:
            best = [max(drawn[at : at + self.num_samples]) for at in range(0, len(drawn), self.num_samples)]
            scores.append(share_score("verbatim_sampled", [n == whole for n in best], items, clusters, seed=self.seed))
        scores.append(self._mean("matched_tokens", own, items, clusters))
        series = {"training text": _at_least(own, whole)}
        notes = few_documents(clusters)
        settings = {"training": training.read.describe()}
        if len(own) < self.num_windows:
            notes += (f"The training text has {len(own)} different passages of this length, not {self.num_windows}.",)
        notes += training.read.notes()
        if held_out is not None:
            other_items = [p.where for p in held_out.passages]
            hits = [n == whole for n in baseline]
            scores.append(share_score("verbatim_held_out", hits, other_items, held_out.clusters, seed=self.seed))
            scores.append(self._mean("matched_tokens_held_out", baseline, other_items, held_out.clusters))
            series["held-out text"] = _at_least(baseline, whole)
            settings["held_out"] = held_out.read.describe()
        else:
            notes += ("Without held_out, memorization and boilerplate that any model could complete look the same.",)
        return Result(
            name=self.name,
            title=TITLE,
            definition=(
                f"The model is given {self.prefix_tokens} tokens of its training text. A passage is reproduced if the "
                f"next {whole} tokens that it writes are exactly those of the text: by greedy decoding"
                + self._sampled_too()
            ),
            source="Carlini et al. 2023, arXiv:2202.07646; sampling as Hayes et al. 2024, arXiv:2410.19482",
            scores=tuple(scores),
            examples=self._examples(subject, training.passages, own),
            charts=(
                Chart(
                    "Share of passages by the number of tokens reproduced",
                    "tokens of the continuation",
                    "share of passages",
                    [float(n) for n in range(1, whole + 1)],
                    series,
                ),
            ),
            settings={
                **settings,
                "prefix_tokens": self.prefix_tokens,
                "continuation_tokens": whole,
                "num_samples": self.num_samples,
                "temperature": self.sampled.temperature,
                "top_p": self.sampled.top_p,
                "seed": self.seed,
            },
            notes=notes,
        )

    def _sampled_too(self) -> str:
        if self.num_samples == 0:
            return "."
        return ", or in a sample." if self.num_samples == 1 else f", or in at least one of {self.num_samples} samples."

    def _mean(self, name: str, values: list[int], items: list[str], clusters: list[str]) -> Score:
        bounds = (0.0, float(self.continuation_tokens))
        return mean_score(name, values, items, "tokens", clusters, seed=self.seed, bounds=bounds)

    def _examples(self, subject: Subject, passages: list[Passage], own: list[int]) -> tuple[Example, ...]:
        order = sorted(range(len(own)), key=lambda at: -own[at])[:_MAX_EXAMPLES]
        decode, k, whole = subject.tokenizer.decode, self.prefix_tokens, self.continuation_tokens
        return tuple(
            Example(
                f"{'reproduced whole' if own[at] == whole else f'{own[at]} of {whole} tokens reproduced'}: "
                f"{passages[at].where}",
                {
                    "given": decode(passages[at].ids[:k]),
                    "reproduced": decode(passages[at].ids[k : k + own[at]]),
                    "not reproduced": decode(passages[at].ids[k + own[at] :]),
                },
                passages[at].where,
            )
            for at in order
            if own[at]
        )


def _common(written: Sequence[int], wanted: Sequence[int]) -> int:
    """Return the length of the common prefix of two sequences."""
    return next((at for at, pair in enumerate(zip(written, wanted, strict=False)) if pair[0] != pair[1]), len(written))


def _at_least(matched: list[int], whole: int) -> list[float | None]:
    return [sum(number >= n for number in matched) / len(matched) for n in range(1, whole + 1)]
