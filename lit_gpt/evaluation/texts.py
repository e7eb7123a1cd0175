"""Texts that a measure reads: files, a dataset, a prepared corpus, or the standard library of this machine.

The same description is used for evaluation texts and for the training text. Splits are determined as in training, by
each document's hash, so `{stdlib: true, split: val}` is the validation split of a run on the standard library. If a
measure needs the training text and none is given, it is the corpus named by the config.yaml of the model's run.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lit_gpt.checkpoints.provenance import without_paths
from lit_gpt.checks import check_between
from lit_gpt.data.corpus_spec import Admitted, CorpusSpec, Reading, uniform
from lit_gpt.data.prepared import PreparedCorpus, open_prepared
from lit_gpt.data.records import (
    BadInput,
    Document,
    FileFormat,
    FileRecords,
    HubDataset,
    HubRecords,
    IterableRecords,
    OnBadInput,
    RecordSource,
    SplitName,
)
from lit_gpt.data.stdlib import stdlib_source
from lit_gpt.errors import UserError
from lit_gpt.evaluation.result import Result
from lit_gpt.evaluation.subject import Subject


@dataclass(frozen=True)
class Texts:
    """Documents from exactly one source.

    Attributes:
        files: Files, folders or glob patterns: text, code, JSON, JSON lines, CSV, TSV, Parquet, Arrow, optionally .gz,
            .zst, .bz2 or .xz.
        stdlib: Whether to read the source of this machine's Python standard library.
        corpus: Folder of a prepared corpus (`prepare`'s out, or token shards); its tokens are decoded again.
        hub: A Hugging Face dataset: {path: ..., name: ..., split: ...}.
        split: Only documents of this split: a `corpus` has its own splits, others are split by hash with the fractions
            below.
        val_fraction: Validation fraction of the run whose split it is; ignored for `corpus`.
        test_fraction: Test fraction of the run whose split it is.
        sample: Fraction of the documents to read, chosen by their hash.
        text_field: Field or column of the text in tables, JSON and datasets, or a template of fields.
        document_separator: String at which plain text files are split into documents; null keeps a file whole.
        on_bad_input: What to do with an unreadable file or row: `error` stops, `skip` leaves it out and counts it.
        name: Name in the report; null: derived from the source.
        format: File format options that the suffix does not determine: encoding, quoting, delimiter.
    """

    files: str | list[str] | None = None
    stdlib: bool = False
    corpus: str | None = None
    hub: HubDataset | None = None
    split: Literal["all", "train", "val", "test"] = "all"
    val_fraction: float = 0.05
    test_fraction: float = 0.05
    sample: float = 1.0
    text_field: str = "text"
    document_separator: str | None = None
    on_bad_input: OnBadInput = "error"
    name: str | None = None
    format: FileFormat | None = None

    def __post_init__(self) -> None:
        sources = {"files": self.files, "stdlib": self.stdlib, "corpus": self.corpus, "hub": self.hub}
        given = [name for name, value in sources.items() if value]
        if len(given) != 1:
            what = f"{' and '.join(given)} are given" if given else "nothing is given"
            raise UserError(f"texts come from one of files, stdlib, corpus and hub; {what}")
        check_between("sample", self.sample, 0, 1, "1 takes all documents", low_open=True)

    @property
    def title(self) -> str:
        """Name in the report."""
        name = self.name
        if name is None and self.files is not None:
            name = ", ".join(Path(file).name for file in ([self.files] if isinstance(self.files, str) else self.files))
        elif name is None:
            name = self._source().name if self.corpus is None else f"corpus {Path(self.corpus).name}"
        return name if self.split == "all" else f"{name} ({self.split})"

    def read(self) -> "ReadTexts":
        """Open the texts.

        Raises:
            UserError: If the source does not exist.
        """
        return ReadTexts(self)

    def _source(self) -> RecordSource:
        if self.stdlib:
            return stdlib_source()
        if self.hub is not None:
            return HubRecords(self.hub, self.text_field)
        if self.files is not None:
            return FileRecords(self.files, self.text_field, self.document_separator, format=self.format)
        assert self.corpus is not None
        found = open_prepared(self.corpus)
        return IterableRecords(lambda: _decoded(found, self.split), name=str(self.corpus))


@dataclass
class ReadTexts:
    """One pass over texts, with its counts.

    Attributes:
        texts: The texts.
        num_documents: Number of documents so far.
        num_bytes: UTF-8 bytes so far.
        num_empty: Number of documents without text, which are left out.
        bad_input: Files and rows that could not be read.
    """

    texts: Texts
    num_documents: int = 0
    num_bytes: int = 0
    num_empty: int = 0
    bad_input: BadInput = field(default_factory=BadInput)
    _digest: Any = field(default_factory=hashlib.sha256)

    def __iter__(self) -> Iterator[Document]:
        for admitted in self.admitted():
            yield admitted.document

    def admitted(self) -> Iterator[Admitted]:
        """Yield the documents with their hash and size.

        Raises:
            UserError: If a file or row cannot be read, or there is no document at all.
        """
        texts = self.texts
        own_split = texts.corpus is not None
        fractions = (0.0, 0.0) if own_split or texts.split == "all" else (texts.val_fraction, texts.test_fraction)
        reading = Reading(CorpusSpec([texts._source()], *fractions, texts.on_bad_input))
        self.bad_input = reading.bad_input
        for admitted in reading:
            self.num_empty = reading.num_empty
            if not own_split and texts.split not in ("all", admitted.split):
                continue
            # Independent of the split, which uses bytes 0-7 of the hash, and of a tokenizer's sample, which uses 8-15.
            if uniform(admitted.digest[16:24]) >= texts.sample:
                continue
            self.num_documents += 1
            self.num_bytes += admitted.num_bytes
            self._digest.update(admitted.digest)
            yield admitted
        if not self.num_documents:
            rest = (
                "" if texts.split == "all" and texts.sample == 1 else f" (split {texts.split}, sample {texts.sample})"
            )
            raise UserError(f"{texts.title} contains no text{rest}; name texts that are not empty, or a larger part")

    def expected_bytes(self) -> int | None:
        """Estimate the bytes that will be read; None if that is not known in advance."""
        texts, size = self.texts, self.texts._source().num_bytes()
        if size is None:
            return None
        held_out = {"val": texts.val_fraction, "test": texts.test_fraction}
        held_out |= {"all": 1.0, "train": 1.0 - sum(held_out.values())}
        return int(size * held_out[texts.split] * texts.sample)

    def describe(self) -> dict[str, Any]:
        """Return what is needed to read the same texts again: source, size, and the hash of everything read."""
        texts = self.texts
        kept = {name: value for name, value in asdict(texts).items() if value not in (None, False, "all", 1.0)}
        if texts.corpus is not None or texts.split == "all":
            kept = {name: value for name, value in kept.items() if not name.endswith("_fraction")}
        counts = {"documents": self.num_documents, "bytes": self.num_bytes, "sha256": self._digest.hexdigest()}
        return without_paths(kept) | counts

    def notes(self) -> tuple[str, ...]:
        """Return notes on what was excluded."""
        notes = []
        if self.num_empty:
            notes.append(f"{self.num_empty} documents without any text were left out.")
        if self.bad_input.num_skipped:
            first = "; ".join(self.bad_input.named[:3])
            notes.append(f"{self.bad_input.num_skipped} files or rows could not be read and were left out: {first}.")
        if self.texts.sample < 1:
            notes.append(f"A sample of {self.texts.sample:g} of the documents, chosen by their hash.")
        return tuple(notes)


def _decoded(prepared: PreparedCorpus, split: str) -> Iterator[Document]:
    """Yield the documents of a corpus's token shards, decoded to text."""
    names: list[SplitName] = ["train", "val", "test"] if split == "all" else [split]  # type: ignore[list-item]
    for name in names:
        tokens = prepared.corpus.split(name)
        for index in range(tokens.num_documents):
            span = tokens.document(index)
            ids = tokens.read(span.start + 1, span.num_tokens) if span.num_tokens else ()
            yield Document(prepared.tokenizer.decode(ids), span.source, span.record)


_FRACTIONS = ("val_fraction", "test_fraction")


class TrainingTexts(NamedTuple):
    """The training text of a model, and text of the same kind that was not trained on.

    Attributes:
        training: Training text.
        held_out: Held-out text; None if there is none.
    """

    training: Texts
    held_out: Texts | None


def training_texts(subject: Subject, training: Texts | None, held_out: Texts | None = None) -> TrainingTexts | None:
    """Return the given texts, or those that the config of the model's run names.

    Args:
        subject: The model.
        training: Training text; None: that of its run.
        held_out: Held-out text.

    Returns:
        None if nothing is given, and the model does not belong to a run on a single text corpus.

    Raises:
        UserError: If held-out text is given without training text.
    """
    if training is not None:
        return TrainingTexts(training, held_out)
    if held_out is not None:
        raise UserError("held_out is given without training; set both, or neither to use those of the model's run")
    data = _data_of_run(subject.path)
    if data is None:
        return None
    kind = str(data.get("class_path", "")).rpartition(".")[2]
    options = data.get("init_args") or {}
    if kind == "PreparedDataModule":
        corpus = str(options["path"])
        return TrainingTexts(Texts(corpus=corpus, split="train"), Texts(corpus=corpus, split="val"))
    source: dict[str, Any]
    if kind == "StdlibDataModule":
        source = {"stdlib": True}
    elif kind == "TextDataModule" and not any(options.get(x) for x in ("datasets", "val_files", "test_files")):
        source = {name: options[name] for name in ("files", "text_field", "document_separator") if name in options}
    else:
        return None
    source |= {name: float(options.get(name, 0.0)) for name in _FRACTIONS}
    held = Texts(**source, split="val") if source["val_fraction"] else None
    return TrainingTexts(Texts(**source, split="train"), held)


def unknown_training(name: str, title: str) -> Result:
    """Return the empty result of a measure that needs the training text, which is unknown."""
    return Result(
        name,
        title,
        "Not measured: it compares the model with the text that it was trained on.",
        "",
        (),
        notes=(
            "The training text is not known: the model is not part of a run on a single text corpus. Name it in a "
            "config of your own, such as training: {files: ...}.",
        ),
    )


def _data_of_run(path: Path | None) -> Mapping[str, Any] | None:
    """Return the `data` section of the config of the run that a model (run folder or checkpoint) belongs to."""
    import yaml

    if path is None:
        return None
    for folder in (path, *list(path.parents)[:2]):
        file = folder / "config.yaml"
        if file.is_file() and (folder / "checkpoints").is_dir():
            config = yaml.safe_load(file.read_text(encoding="utf-8"))
            data = config.get("data") if isinstance(config, Mapping) else None
            return data if isinstance(data, Mapping) else None
    return None
