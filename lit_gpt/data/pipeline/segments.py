"""The passes between reading and tokenizing, and how they resume after an interruption.

The transforms are grouped into segments: a corpus transform starts a new one, the others join the segment before them.
A segment is one pass over the documents, with one folder below `work/`:

    03-near_duplicates/findings/  output of the corpus transform's own passes
                       logs/      datatrove's logs and completion markers of each pass
                       documents/ output shards; shard r is made from shard r of the previous segment
                       reports/   reports of each transform and task
                       done.json  written last: the segment is complete

When a segment is done, the folder of the previous one is deleted. A restart finds the last segment that is done and
continues after it.
"""

import copy
import json
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import orjson
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from lit_gpt.data.cache import print_status, write_atomic, write_json
from lit_gpt.data.cleaning.base import CorpusTransform, Doc, Rejected, Transform
from lit_gpt.data.pipeline.document_shards import (
    ReadDocuments,
    WriteDocuments,
    shard_path,
    shard_paths,
    writing_lines,
)
from lit_gpt.data.pipeline.executor import run_pipeline
from lit_gpt.data.pipeline.options import ExecutorOptions
from lit_gpt.data.pipeline.parts import Plan
from lit_gpt.data.pipeline.progress import watching
from lit_gpt.data.pipeline.reading import READ, RESERVED, ReadParts
from lit_gpt.data.pipeline.recipe import Recipe, TransformSpec
from lit_gpt.data.pipeline.report import (
    TransformReport,
    personal_data_mask,
    rejected_line,
    text_bytes,
    write_report,
)
from lit_gpt.data.records import skipped_line
from lit_gpt.errors import UserError
from lit_gpt.pages.text import human_bytes

DONE = "done.json"


@dataclass(frozen=True)
class Segment:
    """Transforms that run in one pass over the documents.

    Attributes:
        transforms: The transforms, of which the first may be a corpus transform. Empty for the reading pass.
    """

    transforms: tuple[TransformSpec, ...]

    @property
    def folder(self) -> str:
        """Name of the segment's folder."""
        return self.transforms[0].folder if self.transforms else f"00-{READ}"

    @property
    def title(self) -> str:
        """Label of the progress bar."""
        names = [spec.name for spec in self.transforms]
        return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "") if names else "reading"


def make_segments(transforms: list[TransformSpec]) -> list[Segment]:
    """Group the transforms into segments; the first segment is reading."""
    segments = [Segment(())]
    group: list[TransformSpec] = []
    for spec in transforms:
        if spec.sees_corpus and group:
            segments.append(Segment(tuple(group)))
            group = []
        group.append(spec)
    if group:
        segments.append(Segment(tuple(group)))
    return segments


class SegmentRunner:
    """Runs the segments of a recipe in order.

    Args:
        recipe: Recipe of the corpus.
        work: Folder of the segments.
        steps: Folder for the merged reports and the lists of dropped documents (`steps/` of the corpus).
    """

    def __init__(self, recipe: Recipe, work: Path, steps: Path) -> None:
        self.recipe = recipe
        self.options: ExecutorOptions = recipe.executor
        self.work = work
        self.steps = steps

    def run(self, plan: Plan) -> Path:
        """Run the unfinished segments and return the folder of the remaining documents."""
        segments = make_segments(self.recipe.transforms)
        done = max((n for n, segment in enumerate(segments) if self.is_done(segment)), default=-1)
        for number, segment in enumerate(segments):
            folder = self.work / segment.folder
            before = self.work / segments[number - 1].folder if number else None
            if number > done:
                began = time.monotonic()
                folder.mkdir(parents=True, exist_ok=True)
                if before is None:
                    self._read(folder, plan)
                else:
                    self._apply(segment, folder, before / "documents", self._bytes_left(segments[number - 1]))
                self._finish(segment, folder, time.monotonic() - began)
            if before is not None and number >= done:
                shutil.rmtree(before / "documents", ignore_errors=True)
        return self.work / segments[-1].folder / "documents"

    def is_done(self, segment: Segment) -> bool:
        """Return whether the segment is complete."""
        return (self.work / segment.folder / DONE).exists()

    def _read(self, folder: Path, plan: Plan) -> None:
        for rank, parts in enumerate(plan.tasks):
            # Not orjson: a file name may contain bytes that are not Unicode, which json.dumps escapes.
            write_atomic(folder / "plan" / f"{rank:05d}.json", json.dumps(parts).encode())
        step = ReadParts(
            self.recipe.sources,
            folder / "plan",
            folder / "documents",
            folder / "reports" / f"00-{READ}",
            self.steps / "rejected" / f"00-{READ}",
            folder / "progress",
            plan.shard_bytes,
            self.recipe.on_bad_input,
            self.recipe.removes_personal_data,
        )
        with watching(folder / "progress", plan.num_bytes or self.recipe.expected_bytes, READ):
            run_pipeline([step], len(plan.tasks), folder / "logs" / READ, self.options)

    def _bytes_left(self, segment: Segment) -> int:
        name = segment.transforms[-1].folder if segment.transforms else f"00-{READ}"
        return int(json.loads((self.steps / f"{name}.json").read_bytes())["out"]["bytes"])

    def _apply(self, segment: Segment, folder: Path, documents: Path, num_bytes: int) -> None:
        num_tasks = len(shard_paths(documents))
        if not num_tasks:
            return
        findings = None
        first = segment.transforms[0]
        if first.sees_corpus:
            findings = folder / "findings"
            findings.mkdir(exist_ok=True)
            self._run_passes(cast(CorpusTransform, first.build()), folder, documents, num_tasks)
        pipeline: list[Any] = [ReadDocuments(documents, folder / "progress")]
        for spec in segment.transforms:
            pipeline.append(
                ApplyTransform(
                    spec,
                    folder / "reports" / spec.folder,
                    self.steps / "rejected" / spec.folder,
                    findings if spec is first else None,
                    self.recipe.keep_rejected,
                    self.recipe.removes_personal_data,
                )
            )
        pipeline.append(WriteDocuments(folder / "documents"))
        with watching(folder / "progress", num_bytes, segment.title):
            run_pipeline(pipeline, num_tasks, folder / "logs" / "apply", self.options)

    def _run_passes(self, transform: CorpusTransform, folder: Path, documents: Path, num_tasks: int) -> None:
        for single in transform.passes(folder / "findings", ReadDocuments(documents), num_tasks):
            logs = folder / "logs" / single.name
            with watching(logs / "progress", None, f"{transform.name}: {single.name}"):
                run_pipeline(single.pipeline, single.num_tasks, logs, self.options)

    def _finish(self, segment: Segment, folder: Path, seconds: float) -> None:
        """Merge the tasks' reports and mark the segment as complete."""
        folders = [spec.folder for spec in segment.transforms] or [f"00-{READ}"]
        specs: list[TransformSpec | None] = [*segment.transforms] or [None]
        for name, spec in zip(folders, specs, strict=True):
            report = TransformReport(spec.name if spec else READ, spec.index if spec else 0)
            for path in sorted((folder / "reports" / name).glob("[0-9]*[0-9].json")):
                report.merge(TransformReport.from_json(orjson.loads(path.read_bytes())))
            value = report.to_json()
            if spec is None:
                value["bad_input"] = _merged_bad_input(folder / "reports" / name)
                if skipped := skipped_line(value["bad_input"]["num_skipped"], value["bad_input"]["named"]):
                    print_status(skipped)
            write_json(self.steps / f"{name}.json", value)
            dropped = sum(documents for documents, _ in report.rejected.values())
            split = f", {report.split[0]:,} split into {report.split[1]:,}" if report.split[0] else ""
            print_status(
                f"{name}: {report.documents_in:,} documents in, {report.out.documents:,} out "
                f"({human_bytes(report.out.num_bytes)}), {dropped:,} dropped, {report.num_edited:,} edited{split}"
            )
        write_json(self.steps / "seconds" / f"{folders[0]}.json", {"steps": folders, "seconds": round(seconds, 3)})
        for name in ("findings", "progress", "plan"):
            shutil.rmtree(folder / name, ignore_errors=True)
        write_json(folder / DONE, {"steps": folders})


class ApplyTransform(PipelineStep):
    """datatrove block around one transform, which runs it and counts what was received, kept, split, dropped and why.

    Each task writes `<reports>/<rank>.json` (a `TransformReport`) and `<rejected>/<rank>.jsonl.zst` (one line per
    dropped document: id, reason, detail, and its text if the recipe keeps rejected documents). Both are written
    atomically, so that a repeated task replaces them with the same bytes.

    Args:
        spec: Specification of the transform, which is built in the worker.
        reports: Folder for the tasks' reports.
        rejected: Folder for the lists of dropped documents.
        findings: Findings of a corpus transform's passes; None for other transforms.
        keep_text: Whether the lists include the dropped texts, as received.
        mask: Whether to replace personal data by tags in everything that is reported about a document.
    """

    type = "🧹 - CLEANING"

    def __init__(
        self,
        spec: TransformSpec,
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
        """Yield the transformed documents, in order."""
        transform = self.spec.build()
        transform.counts = Counter()
        if self.findings is not None:
            cast(CorpusTransform, transform).begin(self.findings, rank)
        mask = personal_data_mask() if self.mask else str
        report = TransformReport(self.spec.name, self.spec.index, mask)
        with writing_lines(shard_path(self.rejected, rank)) as lines:

            def reject(document: Doc, why: Rejected, is_part: bool = False) -> None:
                report.reject(document, why, is_part)
                lines.write(rejected_line(document, why, self.keep_text, mask))

            for document in data or ():
                before = document.text
                result = apply_transform(transform, Doc(before, document.id, document.metadata), self.spec)
                if isinstance(result, Rejected):
                    reject(Doc(before, document.id, document.metadata), result)
                elif isinstance(result, Doc):
                    edited = result.text is not before and result.text != before
                    document.text, document.metadata = result.text, result.metadata
                    report.keep(text_bytes(before) if edited else None, result.text, result.metadata, edited)
                    report.represents_cluster(result)
                    yield document
                else:
                    report.split_document(text_bytes(before), len(result))
                    for part in result:
                        if part.text.strip():
                            report.keep_part(part.text, part.metadata)
                            yield Document(text=part.text, id=part.id, metadata=part.metadata)
                        else:
                            reject(part, Rejected("empty", "a part without text"), is_part=True)
        report.counts = transform.counts
        write_report(self.reports, rank, report)


def apply_transform(transform: Transform, document: Doc, spec: TransformSpec) -> Doc | Rejected | list[Doc]:
    """Apply a transform to a document, and set ids and origin of the returned documents.

    A transform cannot change ids or the metadata that trace a document to its source. An iterable of one document is an
    edit, an empty one a rejection; with several, part n has the id `<id>#<n>`, from 1.

    Raises:
        UserError: if a custom transform fails or returns an invalid value; the message names transform and document.
    """
    trace = {key: document.metadata[key] for key in RESERVED if key in document.metadata} if spec.is_custom else {}
    try:
        result = transform.apply(document)
        if isinstance(result, Rejected) or (isinstance(result, Doc) and not spec.is_custom):
            return result
        # Copy parts one by one as they come: a generator may repeatedly yield the same object with another text.
        parts = [result] if isinstance(result, Doc) else [_copied(part) for part in result]
    except Exception as error:
        if isinstance(error, UserError) or not spec.is_custom:
            raise
        raise UserError(f"{spec.where} failed on document {document.id}: {error!r}") from error
    for part in parts:
        if not isinstance(part, Doc) or not isinstance(part.text, str) or not isinstance(part.metadata, dict):
            raise UserError(
                f"{spec.where} returned {part!r:.200} for document {document.id}; return the document, a Rejected, or "
                "yield its parts, each a Doc with a text (document.part(text))"
            )
        part.metadata.update(trace)
    if isinstance(result, Doc):
        return result
    if not parts:
        return Rejected("no_parts", f"{spec.name} yielded no document")
    if len(parts) == 1:
        parts[0].id = document.id
        return parts[0]
    for number, part in enumerate(parts, start=1):
        part.id = f"{document.id}#{number}"
    return parts


def _copied(part: Any) -> Any:
    return Doc(part.text, part.id, copy.deepcopy(part.metadata)) if isinstance(part, Doc) else part


def _merged_bad_input(folder: Path) -> dict[str, Any]:
    named: list[str] = []
    encodings: list[str] = []
    num_skipped = 0
    for path in sorted(folder.glob("*-bad.json")):
        value = json.loads(path.read_bytes())
        num_skipped += value["num_skipped"]
        named += value["named"]
        encodings += value["encodings"]
    for note in encodings[:5]:
        print_status(note)
    return {"num_skipped": num_skipped, "named": named[:100], "encodings": encodings[:100]}


@contextmanager
def no_partial_files(folder: Path) -> Iterator[None]:
    """Remove temporary files below `folder` if the body raises, and those left by killed processes."""
    _remove_temporaries(folder)
    try:
        yield
    except BaseException:
        _remove_temporaries(folder)
        raise


def _remove_temporaries(folder: Path) -> None:
    for path in folder.rglob(".tmp-*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
