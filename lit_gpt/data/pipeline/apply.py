"""Runs one cleaning step inside a datatrove pipeline, and keeps the books: what came in, went on, was dropped and why.

Per task it leaves `<reports>/<rank>.json` (a `StepReport`) and `<rejected>/<rank>.jsonl.zst` (one line a dropped
document: id, reason, detail; with its text if the recipe keeps rejected documents). Both are written whole or not at
all, so a task that is run again after a kill replaces them with the same bytes.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, cast

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from lit_gpt.data.cache import write_atomic
from lit_gpt.data.cleaning.step import CorpusStep, Doc, Rejected, Step
from lit_gpt.data.pipeline.document_shards import Lines, shard_path, writing_lines
from lit_gpt.data.pipeline.registry import StepSpec, build_step
from lit_gpt.data.pipeline.report import StepReport, personal_data_mask, text_bytes


def rejected_line(document: Doc, why: Rejected, keep_text: bool, mask: Callable[[str], str] = str) -> dict[str, Any]:
    """Returns the line that records a dropped document; its id stays as it is, so that the document can be found."""
    line: dict[str, Any] = {"id": document.id, "reason": why.reason, "detail": mask(why.detail)}
    if why.kept is not None:
        line |= {"kept": why.kept, "cluster": why.cluster}
    if keep_text:
        line |= {"text": document.text, "metadata": document.metadata}
    return line


def write_report(folder: Path, rank: int, report: StepReport) -> None:
    """Writes one task's report."""
    import orjson

    write_atomic(folder / f"{rank:05d}.json", orjson.dumps(report.to_json()))


class ApplyStep(PipelineStep):
    """datatrove step around one of ours.

    Args:
        spec: Which step, with which options; it is built in the worker.
        reports: Folder of the tasks' reports.
        rejected: Folder of the lists of dropped documents.
        findings: What a corpus step's stages left; None for a per-document step.
        keep_text: Whether the lists hold the dropped texts too, as they came in.
        mask: Whether personal data are replaced by tags in all that is told about a document.
    """

    type = "🧹 - CLEANING"

    def __init__(
        self,
        spec: StepSpec,
        reports: Path,
        rejected: Path,
        findings: Path | None = None,
        keep_text: bool = False,
        mask: bool = False,
    ) -> None:
        self.name = spec.name
        super().__init__()
        self.spec = spec
        self.reports = reports
        self.rejected = rejected
        self.findings = findings
        self.keep_text = keep_text
        self.mask = mask

    def run(self, data: Iterable[Document] | None = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yields what the step keeps."""
        step = build_step(self.spec)
        step.counts = Counter()
        if self.findings is not None:
            cast(CorpusStep, step).begin(self.findings, rank)
        report = StepReport(self.spec.name, self.spec.index, personal_data_mask() if self.mask else str)
        with writing_lines(shard_path(self.rejected, rank)) as lines:
            for document in data or ():
                if self._keep(step, document, report, lines):
                    yield document
        report.counts = step.counts
        write_report(self.reports, rank, report)

    def _keep(self, step: Step, document: Document, report: StepReport, lines: Lines) -> bool:
        before = document.text
        result = step.apply(Doc(before, document.id, document.metadata))
        if isinstance(result, Rejected):
            doc = Doc(before, document.id, document.metadata)
            report.reject(doc, result)
            lines.write(rejected_line(doc, result, self.keep_text, personal_data_mask() if self.mask else str))
            return False
        edited = result.text is not before and result.text != before
        document.text, document.metadata = result.text, result.metadata
        report.keep(text_bytes(before) if edited else None, result.text, result.metadata, edited)
        report.stands_for_cluster(result)
        return True
