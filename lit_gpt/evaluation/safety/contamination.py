"""Find benchmark items that occur in the training text, and report the model's scores without them.

As for GPT-3 (Brown et al. 2020, arXiv:2005.14165, appendix C), an item is contaminated if the training text shares an
n-gram of 13 words with it; a text of 8 to 12 words matches if all of it occurs. The extent is reported as for Llama 2
(Touvron et al. 2023, arXiv:2307.09288, appendix A.6): the share of an item's words that are part of such an n-gram;
from 80 % on the item is dirty. Words are lower-cased without punctuation, as in `lit_gpt.data.cleaning.decontaminate`,
which removes such documents before training.

That filter needs to know only whether a document contains an n-gram of any record. `Overlap` also needs to know which
records, so it stores every occurrence of an n-gram in the benchmarks, with the words that it covers. Memory is
proportional to the size of the benchmarks: 24 bytes per n-gram.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from lit_gpt.checks import check_at_least
from lit_gpt.data.cleaning.words import UInt64Array, match_words, n_gram_hashes, word_hashes
from lit_gpt.data.records import BadInput
from lit_gpt.data.records import read_records as records_of_file
from lit_gpt.data.records.benchmarks import read_benchmark
from lit_gpt.data.records.compression import inner_suffix
from lit_gpt.data.records.formats import TABLE_SUFFIXES
from lit_gpt.errors import UserError
from lit_gpt.evaluation.intervals import mean_score, share_score
from lit_gpt.evaluation.measure import Measure
from lit_gpt.evaluation.progress import Progress, no_progress
from lit_gpt.evaluation.result import Chart, Example, Result, Score
from lit_gpt.evaluation.safety.rows import embedded_set
from lit_gpt.evaluation.subject import Subject
from lit_gpt.evaluation.texts import ReadTexts, Texts, training_texts, unknown_training
from lit_gpt.hashing import sha256_file

_SHOWN_CHARACTERS = 600

IntArray = np.ndarray[Any, np.dtype[np.int64]]


@dataclass
class Record:
    """One record of a benchmark, and how much of it was found in the training text.

    Attributes:
        number: Its position in the file, from 1.
        text: Its texts, shortened for the report.
        parts: The words of each text that is long enough to search for.
        num_words: Number of words in them; 0: the record is too short.
        num_covered: Number of words that are part of an n-gram that was found.
        words: Words of the first such n-gram.
        where: The document in which it was found first.
    """

    number: int
    text: str = ""
    parts: list[list[str]] = field(default_factory=list)
    num_words: int = 0
    num_covered: int = 0
    words: str = ""
    where: str = ""


def read_records(path: Path, fields: list[str] | None, n_gram: int = 13, min_words: int = 8) -> list[Record]:
    """Read the records of a benchmark.

    Args:
        path: The file.
        fields: Fields to read; None: all fields with text.
        n_gram: Number of words in an n-gram.
        min_words: Shorter texts are ignored; one of min_words to n_gram - 1 words matches if all of it occurs.

    Raises:
        UserError: If it is missing or damaged, or contains no text that is long enough.
    """
    if not path.is_file():
        raise UserError(f"there is no benchmark file {path}; is the path right (seen from {Path.cwd()})?")
    records: dict[int, Record] = {}
    for number, text in read_benchmark(path, fields):
        record = records.setdefault(number, Record(number))
        record.text = f"{record.text}\n{text}".strip()[:_SHOWN_CHARACTERS]
        words = match_words(text)
        if len(words) >= min(min_words, n_gram):
            record.parts.append(words)
            record.num_words += len(words)
    if not any(record.num_words for record in records.values()):
        raise UserError(
            f"benchmark {path} has no text of {min(min_words, n_gram)} words or more, so no overlap could be found; "
            "lower min_words, or remove it"
        )
    return list(records.values())


@dataclass
class _NGrams:
    """All n-grams of one length in the benchmarks; a word's index counts the words of all benchmarks."""

    hashes: UInt64Array  # distinct hashes, sorted
    which: IntArray  # for each n-gram: the index of its hash
    slots: IntArray  # for each n-gram: the index of its first word
    seen: np.ndarray[Any, np.dtype[np.bool_]]  # for each hash: whether it was found in the training text
    first: dict[int, str]  # index of a hash → the document in which it was found first


class Overlap:
    """Finds n-grams of benchmarks in a stream of texts.

    Args:
        benchmarks: The records of each benchmark; `found` writes the results into them.
        n_gram: Number of words in an n-gram.
        max_records: An n-gram that occurs in more records of one benchmark than this is ignored.
    """

    def __init__(self, benchmarks: list[list[Record]], n_gram: int = 13, max_records: int = 50) -> None:
        self.benchmarks = benchmarks
        self._num_words = 0
        self._starts: list[list[list[int]]] = []  # [benchmark][record][part]: index of its first word
        parts: dict[int, list[tuple[UInt64Array, IntArray]]] = {}
        for records in benchmarks:
            own: dict[int, list[tuple[UInt64Array, IntArray, IntArray]]] = {}
            self._starts.append([])
            for position, record in enumerate(records):
                self._starts[-1].append([])
                for words in record.parts:
                    length = min(n_gram, len(words))
                    hashes = n_gram_hashes(word_hashes(words), length)
                    slots = np.arange(self._num_words, self._num_words + len(hashes), dtype=np.int64)
                    own.setdefault(length, []).append((hashes, slots, np.full(len(hashes), position, np.int64)))
                    self._starts[-1][-1].append(self._num_words)
                    self._num_words += len(words)
            for length, triples in own.items():
                hashes, slots, positions = map(np.concatenate, zip(*triples, strict=True))
                kept = _in_few_records(hashes, positions, max_records)
                parts.setdefault(length, []).append((hashes[kept], slots[kept]))
        self._runs: dict[int, _NGrams] = {}
        for length, pairs in parts.items():
            hashes, slots = map(np.concatenate, zip(*pairs, strict=True))
            unique, which = np.unique(hashes, return_inverse=True)
            if len(unique):
                self._runs[length] = _NGrams(unique, which, slots, np.zeros(len(unique), dtype=bool), {})

    def search(self, text: str, where: str) -> None:
        """Mark the n-grams that a training text contains.

        Args:
            text: The training text.
            where: Name of the text in the report.
        """
        words = word_hashes(match_words(text))
        for length, runs in self._runs.items():
            own = n_gram_hashes(words, length)
            if not len(own):
                continue
            indices = np.searchsorted(runs.hashes, own)
            indices[indices == len(runs.hashes)] = 0
            hits = np.unique(indices[runs.hashes[indices] == own])
            for hit in hits[~runs.seen[hits]].tolist():
                runs.first[hit] = where
            runs.seen[hits] = True

    def found(self, benchmark: int) -> list[Record]:
        """Return the records of a benchmark, updated with the matches so far."""
        covered = np.zeros(self._num_words + 1, dtype=np.int64)
        origin: dict[int, str] = {}
        for length, runs in self._runs.items():
            hit = runs.seen[runs.which]
            slots = runs.slots[hit]
            np.add.at(covered, slots, 1)
            np.add.at(covered, slots + length, -1)
            origin |= {
                slot: runs.first[index] for slot, index in zip(slots.tolist(), runs.which[hit].tolist(), strict=True)
            }
        inside = np.cumsum(covered) > 0
        records = self.benchmarks[benchmark]
        for record, starts in zip(records, self._starts[benchmark], strict=True):
            record.num_covered, record.words, record.where = 0, "", ""
            for words, start in zip(record.parts, starts, strict=True):
                mask = inside[start : start + len(words)]
                record.num_covered += int(mask.sum())
                if mask.any() and not record.words:
                    begin = int(mask.argmax())
                    end = begin + int(np.append(mask[begin:], False).argmin())
                    record.words, record.where = " ".join(words[begin:end]), origin[start + begin]
        return records


def _in_few_records(hashes: UInt64Array, records: IntArray, most: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return for each n-gram whether it occurs in at most `most` different records."""
    _, which = np.unique(hashes, return_inverse=True)
    pairs = np.unique(np.stack([which, records]), axis=1)
    return np.bincount(pairs[0])[which] <= most


DIRTY = 0.8
_MAX_EXAMPLES = 5


@dataclass(frozen=True)
class Benchmark:
    """A benchmark to search for: a file or an embedded set.

    Attributes:
        file: JSON, JSON lines, CSV, TSV, Parquet, Arrow or plain text (each paragraph is an item); optionally
            compressed.
        embedded: Alternative to `file`: an embedded set, such as truths.jsonl.
        fields: Fields or columns to search for; null: all that contain text.
        result: Name of another result of the same evaluation on these items, one per record in the order of the file;
            its scores are also reported without the contaminated items. Null: none.
        name: Name in the report; null: the file's name.
    """

    file: str | None = None
    embedded: str | None = None
    fields: list[str] | None = None
    result: str | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        if (self.file is None) is (self.embedded is None):
            raise UserError("a benchmark is either a file or an embedded set; set exactly one of them")

    @property
    def path(self) -> Path:
        """Path of the file."""
        return Path(self.file) if self.file is not None else embedded_set(self.embedded or "")

    @property
    def title(self) -> str:
        """Name in the report."""
        return self.name or self.path.name.split(".")[0]


class Contamination(Measure):
    """Benchmark items that occur in the training text. The model itself is not run.

    Args:
        benchmarks: The benchmarks to search for.
        training: Training text; null: the corpus of the model's run.
        n_gram: Number of words in an n-gram (GPT-3: 13).
        min_words: A text of min_words to n_gram - 1 words matches if all of it occurs; shorter ones are ignored.
        max_records: An n-gram that occurs in more items of one benchmark than this is ignored, as an instruction.
        name: Prefix of the results' names.

    Raises:
        UserError: There are no benchmarks, or two have the same name.
    """

    def __init__(
        self,
        benchmarks: list[Benchmark],
        training: Texts | None = None,
        n_gram: int = 13,
        min_words: int = 8,
        max_records: int = 50,
        name: str = "contamination",
    ) -> None:
        if not benchmarks:
            raise UserError("benchmarks is empty; name the files to look for in the training text")
        for label, value in (("n_gram", n_gram), ("min_words", min_words), ("max_records", max_records)):
            check_at_least(label, value, 1)
        titles = [benchmark.title for benchmark in benchmarks]
        if len(set(titles)) < len(titles):
            raise UserError(f"two benchmarks have the same name ({', '.join(sorted(titles))}); give each a name")
        self.training, self.benchmarks = training, benchmarks
        self.n_gram, self.min_words, self.max_records = n_gram, min_words, max_records
        self.name = name

    def run(self, subject: Subject, progress: Progress = no_progress) -> list[Result]:
        """Search for the benchmarks; see `Measure`."""
        known = training_texts(subject, self.training)
        if known is None:
            return [
                unknown_training(f"{self.name}_{benchmark.title}", f"Contamination: {benchmark.title}")
                for benchmark in self.benchmarks
            ]
        records = [read_records(b.path, b.fields, self.n_gram, self.min_words) for b in self.benchmarks]
        overlap = Overlap(records, self.n_gram, self.max_records)
        read = known.training.read()
        expected = read.expected_bytes() or 0
        for document in read:
            overlap.search(document.text, document.where)
            progress(read.num_bytes, max(read.num_bytes, expected))
        return [self._result(b, overlap.found(at), read) for at, b in enumerate(self.benchmarks)]

    def finish(self, own: list[Result], every: Sequence[Result]) -> list[Result]:
        """Add the scores of the named results on clean and on contaminated items."""
        known = {result.name: result for result in every}
        finished = []
        for benchmark, result in zip(self.benchmarks, own, strict=True):
            if benchmark.result is not None and result.scores:
                scored = known.get(benchmark.result)
                if scored is None:
                    note = f"There is no result {benchmark.result} to report without the contaminated items."
                    result = replace(result, notes=(*result.notes, note))
                else:
                    result = _with_clean_scores(result, scored, benchmark.path)
            finished.append(result)
        return finished

    def _result(self, benchmark: Benchmark, records: list[Record], read: ReadTexts) -> Result:
        items = [str(record.number) for record in records if record.num_words]
        looked = [record for record in records if record.num_words]
        short = len(records) - len(looked)
        hits = [record.num_covered > 0 for record in looked]
        covered = [record.num_covered / record.num_words for record in looked]
        notes = read.notes()
        if short:
            notes += (f"{short} items have no text of {self.min_words} words or more, so they were not searched for.",)
        notes += ("Only words in the same order are found: a translation or paraphrase of an item is not.",)
        return Result(
            name=f"{self.name}_{benchmark.title}",
            title=f"Contamination: {benchmark.title} in the training text",
            definition=(
                f"An item is contaminated if the training text contains {self.n_gram} consecutive words of it "
                f"(or all of a text of {self.min_words} words or more); dirty if such runs cover "
                f"{DIRTY:.0%} of its words or more."
            ),
            source=(
                "13-grams: Brown et al. 2020, arXiv:2005.14165, appendix C; share of words: Touvron et al. 2023, "
                "arXiv:2307.09288, appendix A.6"
            ),
            scores=(
                share_score("contaminated", hits, items),
                share_score("dirty", [share >= DIRTY for share in covered], items),
                mean_score("covered", covered, items, "share", bounds=(0.0, 1.0)),
            ),
            examples=tuple(
                Example(
                    f"item {record.number}: {record.num_covered} of {record.num_words} words, in {record.where}",
                    {"item": record.text, "found": record.words},
                    str(record.number),
                )
                for record in sorted(looked, key=lambda r: -r.num_covered / r.num_words)[:_MAX_EXAMPLES]
                if record.num_covered
            ),
            charts=_chart(benchmark.title, covered) if any(hits) else (),
            settings={
                "file": benchmark.path.name,
                "sha256": sha256_file(benchmark.path),
                "fields": benchmark.fields,
                "n_gram": self.n_gram,
                "min_words": self.min_words,
                "max_records": self.max_records,
                "training": read.describe(),
            },
            notes=notes,
        )


def _chart(title: str, covered: list[float]) -> tuple[Chart, ...]:
    edges = [k / 10 for k in range(11)]
    shares: list[float | None] = [
        sum(share >= max(edge, 1e-9) for share in covered) / max(1, len(covered)) for edge in edges
    ]
    return (
        Chart(
            "Items by the share of their words that occur in the training text",
            "share of the item's words",
            "share of items",
            edges,
            {title: shares},
        ),
    )


def _with_clean_scores(result: Result, scored: Result, file: Path) -> Result:
    """Add each score of another result over its clean items, and over its contaminated ones."""
    contaminated = {name for name, hit in result.score("contaminated").per_item.items() if hit}
    added: list[Score] = []
    notes: list[str] = []
    for score in scored.scores:
        if not score.per_item:
            continue
        records = records_of(list(score.per_item), file)
        if records is None:
            notes.append(f"The items of {scored.name}.{score.name} cannot be matched with the records of {file.name}.")
            continue
        for label, wanted in (("clean", False), ("contaminated", True)):
            part = {item: value for item, value in score.per_item.items() if (records[item] in contaminated) is wanted}
            if part:
                name = f"{score.name}_on_{label}"
                added.append(mean_score(name, list(part.values()), list(part), score.unit, better=score.better))
    if added:
        notes.append(f"On clean and contaminated items: the scores of {scored.name}; a short item counts as clean.")
    return replace(result, scores=(*result.scores, *added), notes=(*result.notes, *notes))


def records_of(items: Sequence[str], file: Path) -> dict[str, str] | None:
    """Return the benchmark record of each item of a result.

    Args:
        items: Item ids: indices from 0 (lm-eval's), or "file:line"; otherwise all records of the file in order.
        file: The benchmark.

    Returns:
        Map from item to the line or row of its record; None if they cannot be matched.
    """
    known = inner_suffix(file) in TABLE_SUFFIXES
    positions = [str(row.record) for row in records_of_file(file, file.name, BadInput("skip"))] if known else []
    if all(item.isdecimal() for item in items):
        if not known:
            return {item: str(int(item) + 1) for item in items}
        if max(map(int, items), default=0) >= len(positions):  # another file, or only a part of it
            return None
        return {item: positions[int(item)] for item in items}
    if not known:
        return None
    ends = [item.rpartition(":")[2] for item in items]
    if all(":" in item and end.isdecimal() for item, end in zip(items, ends, strict=True)):
        return dict(zip(items, ends, strict=True)) if set(ends) <= set(positions) else None
    if len(items) == len(positions):
        return dict(zip(items, positions, strict=True))
    return None
