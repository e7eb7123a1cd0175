"""The first pass: sources → shards of documents. One task reads its parts and writes as many shards as they fill."""

import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from datatrove.data import Document as TroveDocument
from datatrove.pipeline.base import PipelineStep

from lit_gpt.data.cache import write_json
from lit_gpt.data.cleaning.step import Doc, Rejected
from lit_gpt.data.documents import BadInput, Document, OnBadInput
from lit_gpt.data.pipeline.apply import rejected_line, write_report
from lit_gpt.data.pipeline.document_shards import SUFFIX, Lines, shard_path, writing_lines
from lit_gpt.data.pipeline.parts import NO_TEXT, NamedSource
from lit_gpt.data.pipeline.progress import TaskProgress
from lit_gpt.data.pipeline.report import StepReport

READ = "read"
_PREFIX_BYTES = 200


class _Shards:
    """Rolls over to the next shard when one is full; a task without a document writes none."""

    def __init__(self, folder: Path, rank: int, shard_bytes: int) -> None:
        self._folder, self._rank, self._shard_bytes = folder, rank, shard_bytes
        self._stack = ExitStack()
        self._lines: Lines | None = None
        self._written = self._number = 0

    def write(self, line: dict[str, Any]) -> None:
        if self._lines is None:
            path = self._folder / f"{self._rank:05d}-{self._number:05d}{SUFFIX}"
            self._lines = self._stack.enter_context(writing_lines(path))
            self._number += 1
        self._lines.write(line)
        self._written += len(line["text"]) + _PREFIX_BYTES
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
        reports: Folder of the tasks' reports.
        rejected: Folder of the lists of documents without text.
        progress: Folder that shows how far the tasks have come.
        shard_bytes: Size at which a shard is finished.
        on_bad_input: What happens at what cannot be read.
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
    ) -> None:
        super().__init__()
        self.sources = sources
        self.plan, self.output, self.reports, self.rejected = plan, output, reports, rejected
        self.progress = progress
        self.shard_bytes = shard_bytes
        self.on_bad_input: OnBadInput = on_bad_input

    def run(self, data: Iterable[TroveDocument] | None = None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Reads; yields nothing, so that the executor keeps nothing."""
        report = StepReport(READ, 0)
        bad = BadInput(self.on_bad_input)
        with (
            TaskProgress(self.progress, rank) as progress,
            writing_lines(shard_path(self.rejected, rank)) as rejected,
            _Shards(self.output, rank, self.shard_bytes) as shards,
        ):
            for index, name, spec in json.loads((self.plan / f"{rank:05d}.json").read_bytes()):
                named = self.sources[index]
                nothing = report.documents_in, bad.num_skipped
                for document in _guarded(named.source.read(spec, bad), name, bad):
                    doc = to_doc(document, named)
                    progress.advance(len(doc.text))
                    why = _no_text(doc)
                    if why is not None:
                        report.reject(doc, why)
                        rejected.write(rejected_line(doc, why, keep_text=False))
                    elif _is_unicode(doc, bad):
                        report.keep(None, doc.text, doc.metadata, edited=False)
                        shards.write({"id": doc.id, "text": doc.text, "metadata": doc.metadata})
                if nothing == (report.documents_in, bad.num_skipped):
                    doc, why = to_doc(Document("", name), named), Rejected("empty", "it holds no text")
                    report.reject(doc, why)
                    rejected.write(rejected_line(doc, why, keep_text=False))
        write_report(self.reports, rank, report)
        write_json(self.reports / f"{rank:05d}-bad.json", {"num_skipped": bad.num_skipped, "named": bad.named})
        yield from ()


def _guarded(documents: Iterator[Document], name: str, bad: BadInput) -> Iterator[Document]:
    """Passes documents on; a file that the system cannot read goes to `bad`."""
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
    """Returns a source's document with its id and what the recipe declares about the source."""
    path = document.source.encode("utf-8", "backslashreplace").decode()
    metadata: dict[str, Any] = {"source": named.name, "path": path, "record": document.record}
    metadata |= named.metadata
    metadata |= document.metadata or {}
    identity = f"{named.name}/{path}:{document.record}" if document.record else f"{named.name}/{path}"
    return Doc(document.text, identity, metadata)


def _no_text(doc: Doc) -> Rejected | None:
    why = doc.metadata.pop(NO_TEXT, None)
    if why is not None:
        return Rejected(str(why))
    return None if doc.text.strip() else Rejected("empty", "it holds no text")


def _is_unicode(doc: Doc, bad: BadInput) -> bool:
    try:
        doc.text.encode()
    except UnicodeEncodeError:
        bad.reject(doc.id, "the text holds a lone surrogate, which is no Unicode text")
        return False
    return True
