"""The first pass: a task reads its parts of the sources and writes as many document shards as needed."""

import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from datatrove.data import Document as TroveDocument
from datatrove.pipeline.base import PipelineStep

from lit_gpt.data.cache import write_json
from lit_gpt.data.cleaning.base import Doc, Rejected
from lit_gpt.data.pipeline.document_shards import SUFFIX, Lines, encode_line, shard_path, writing_lines
from lit_gpt.data.pipeline.parts import NO_TEXT, NamedSource
from lit_gpt.data.pipeline.progress import TaskProgress
from lit_gpt.data.pipeline.report import TransformReport, personal_data_mask, rejected_line, write_report
from lit_gpt.data.records import BadInput, Document, OnBadInput

READ = "read"
RESERVED = ("source", "path", "record")
"""Metadata that trace a document back to its source; fields of a row with these names are stored under `meta`."""

_PREFIX_BYTES = 200


class _Shards:
    """Writer that starts a new shard when one is full; a task without documents writes none."""

    def __init__(self, folder: Path, rank: int, shard_bytes: int) -> None:
        self._folder, self._rank, self._shard_bytes = folder, rank, shard_bytes
        self._stack = ExitStack()
        self._lines: Lines | None = None
        self._written = self._number = 0

    def write(self, line: bytes, num_characters: int) -> None:
        if self._lines is None:
            path = self._folder / f"{self._rank:05d}-{self._number:05d}{SUFFIX}"
            self._lines = self._stack.enter_context(writing_lines(path))
            self._number += 1
        self._lines.write_encoded(line)
        self._written += num_characters + _PREFIX_BYTES
        if self._written >= 2 * self._shard_bytes:  # a task is about one shard; only a large file fills several
            self.close()

    def close(self) -> None:
        self._stack.close()
        self._lines, self._written = None, 0

    def __enter__(self) -> "_Shards":
        return self

    def __exit__(self, *error: Any) -> None:
        if error[0] is None:
            self.close()
        else:
            self._stack.__exit__(*error)


class ReadParts(PipelineStep):
    """datatrove step that reads the parts of a task and writes them as shards.

    Args:
        sources: The recipe's sources.
        plan: Folder with the parts of each task.
        output: Folder of the shards.
        reports: Folder for the tasks' reports.
        rejected: Folder for the lists of documents without text.
        progress: Folder for the tasks' progress files.
        shard_bytes: Size in bytes at which a shard is finished.
        on_bad_input: What to do with unreadable input: `error` or `skip`.
        mask: Whether to replace personal data by tags in everything that reports contain about a document.
    """

    type = "📖 - READER"
    name = "sources"

    def __init__(
        self,
        sources: list[NamedSource],
        plan: Path,
        output: Path,
        reports: Path,
        rejected: Path,
        progress: Path,
        shard_bytes: int,
        on_bad_input: OnBadInput,
        mask: bool = False,
    ) -> None:
        super().__init__()
        self.sources = sources
        self.plan, self.output, self.reports, self.rejected = plan, output, reports, rejected
        self.progress = progress
        self.shard_bytes = shard_bytes
        self.on_bad_input: OnBadInput = on_bad_input
        self.mask = mask

    def run(self, data: Iterable[TroveDocument] | None = None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Read the task's parts. It yields nothing, so that the executor holds no documents in memory."""
        mask = personal_data_mask() if self.mask else str
        report = TransformReport(READ, 0, mask)
        bad = BadInput(self.on_bad_input)
        with (
            TaskProgress(self.progress, rank) as progress,
            writing_lines(shard_path(self.rejected, rank)) as rejected,
            _Shards(self.output, rank, self.shard_bytes) as shards,
        ):
            for index, name, spec in json.loads((self.plan / f"{rank:05d}.json").read_bytes()):
                named = self.sources[index]
                nothing = report.documents_in, bad.num_skipped
                for document in _guarded(named.source.read_documents(spec, bad), name, bad):
                    if (problem := _problem(document)) is not None:
                        bad.reject(f"{named.name}/{document.where}", problem)
                        continue
                    doc = to_doc(document, named)
                    progress.advance(len(doc.text))
                    why = _no_text(doc)
                    if why is not None:
                        report.reject(doc, why)
                        rejected.write(rejected_line(doc, why, keep_text=False))
                    elif (line := _line(doc, bad)) is not None:
                        report.keep(None, doc.text, doc.metadata, edited=False)
                        shards.write(line, len(doc.text))
                if nothing == (report.documents_in, bad.num_skipped):
                    doc, why = to_doc(Document("", name), named), Rejected("empty", "it contains no text")
                    report.reject(doc, why)
                    rejected.write(rejected_line(doc, why, keep_text=False))
        write_report(self.reports, rank, report)
        named_bad = [mask(words) for words in bad.named]
        value = {
            "num_skipped": bad.num_skipped,
            "named": named_bad,
            "encodings": [mask(note) for note in bad.encoding_notes()],
        }
        write_json(self.reports / f"{rank:05d}-bad.json", value)
        yield from ()


def _guarded(documents: Iterator[Document], name: str, bad: BadInput) -> Iterator[Document]:
    """Pass documents on; report a file that cannot be read to `bad`."""
    while True:
        try:
            document = next(documents)
        except StopIteration:
            return
        except OSError as error:
            bad.reject(name, f"it cannot be read ({error.strerror or error})")
            return
        yield document


def to_doc(document: Document, named: NamedSource) -> Doc:
    """Return a source's document as a `Doc` with its id and the metadata declared in the recipe."""
    path = document.source.encode("utf-8", "backslashreplace").decode()
    own = document.metadata or {}
    metadata: dict[str, Any] = {"source": named.name, "path": path, "record": document.record}
    metadata |= named.metadata
    # An empty column does not override the declared license or language.
    metadata |= {k: v for k, v in own.items() if k not in RESERVED and not (v is None and k in named.metadata)}
    if taken := {key: own[key] for key in RESERVED if key in own}:
        metadata["meta"] = taken | ({"meta": own["meta"]} if "meta" in own else {})
    identity = f"{named.name}/{path}:{document.record}" if document.record else f"{named.name}/{path}"
    return Doc(document.text, identity, metadata)


def _no_text(doc: Doc) -> Rejected | None:
    why = doc.metadata.pop(NO_TEXT, None)
    if why is not None:
        return Rejected(str(why))
    return None if doc.text.strip() else Rejected("empty", "it contains no text")


def _problem(document: Document) -> str | None:
    """Return the problem of an unusable document (user code may put anything into its fields), or None."""
    if not isinstance(document.text, str):
        return f"its text is a {type(document.text).__name__}"
    record = document.record
    if not isinstance(record, int) or isinstance(record, bool) or not 0 <= record < 1 << 63:
        return f"its record is {record!r}; it must be a whole number from 0, the line or row of the source"
    return None


def _line(doc: Doc, bad: BadInput) -> bytes | None:
    """Return the document encoded as a line, or None after rejecting it."""
    try:
        doc.text.encode()
    except UnicodeEncodeError:
        bad.reject(doc.id, "the text contains a lone surrogate (not valid Unicode)")
        return None
    try:
        return encode_line({"id": doc.id, "text": doc.text, "metadata": doc.metadata})
    except TypeError as error:
        bad.reject(doc.id, f"its metadata cannot be represented in JSON ({error})")
        return None
