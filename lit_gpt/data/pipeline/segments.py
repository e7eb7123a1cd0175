"""The passes between reading and tokenising, and how they go on after a kill.

The steps are cut into segments: a corpus step begins one, per-document steps join the segment before them. A segment
is one folder below `work/`:

    03-near_duplicates/findings/  what the corpus step's own stages left
                       logs/      completions of each pass (datatrove's)
                       documents/ shards that came out; shard r from shard r
                       reports/   of each step and task
                       done.json  written last: the segment is whole

When a segment is done, the folder before it goes. A start after a kill finds the last one that is done and goes on.
"""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from lit_gpt.data.cache import say, write_atomic, write_json
from lit_gpt.data.cleaning.step import CorpusStep
from lit_gpt.data.pipeline.apply import ApplyStep
from lit_gpt.data.pipeline.document_shards import ReadDocuments, WriteDocuments, shard_paths
from lit_gpt.data.pipeline.executor import run_pipeline
from lit_gpt.data.pipeline.options import ExecutorOptions
from lit_gpt.data.pipeline.parts import Plan
from lit_gpt.data.pipeline.progress import watching
from lit_gpt.data.pipeline.reading import READ, ReadParts
from lit_gpt.data.pipeline.recipe import Recipe
from lit_gpt.data.pipeline.registry import StepSpec, build_step, step_class
from lit_gpt.data.pipeline.report import StepReport
from lit_gpt.pages.text import human_bytes

DONE = "done.json"


@dataclass(frozen=True)
class Segment:
    """Steps that run in one pass over the documents.

    Attributes:
        steps: Its steps; the first may be a corpus step. Empty: reading.
    """

    steps: tuple[StepSpec, ...]

    @property
    def folder(self) -> str:
        """Name of its folder."""
        return self.steps[0].folder if self.steps else f"00-{READ}"

    @property
    def title(self) -> str:
        """What the progress bar calls it."""
        names = [spec.name for spec in self.steps]
        return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "") if names else "reading"


def make_segments(steps: list[StepSpec]) -> list[Segment]:
    """Cuts the steps into segments; the first segment is reading."""
    segments = [Segment(())]
    open_steps: list[StepSpec] = []
    for spec in steps:
        if is_corpus_step(spec) and open_steps:
            segments.append(Segment(tuple(open_steps)))
            open_steps = []
        open_steps.append(spec)
    if open_steps:
        segments.append(Segment(tuple(open_steps)))
    return segments


def is_corpus_step(spec: StepSpec) -> bool:
    """Returns whether the step must see all documents before it can judge one."""
    return str(getattr(step_class(spec.name), "kind", "per_document")) == "corpus"


class SegmentRunner:
    """Runs the segments of a recipe in order.

    Args:
        recipe: The recipe.
        work: Folder of the segments.
        steps: Folder of the merged reports and of the lists of dropped documents.
    """

    def __init__(self, recipe: Recipe, work: Path, steps: Path) -> None:
        self.recipe = recipe
        self.options: ExecutorOptions = recipe.executor
        self.work = work
        self.steps = steps

    def run(self, plan: Plan) -> Path:
        """Runs what is not done and returns the folder of the documents that are left."""
        segments = make_segments(self.recipe.steps)
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
        """Returns whether the segment is whole."""
        return (self.work / segment.folder / DONE).exists()

    def _read(self, folder: Path, plan: Plan) -> None:
        for rank, parts in enumerate(plan.tasks):
            # Not orjson: a file's name may hold bytes that are no Unicode, which json.dumps writes as escapes.
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
            self.recipe.takes_out_personal_data,
        )
        with watching(folder / "progress", plan.num_bytes or self.recipe.expected_bytes, READ):
            run_pipeline([step], len(plan.tasks), folder / "logs" / READ, self.options)

    def _bytes_left(self, segment: Segment) -> int:
        name = segment.steps[-1].folder if segment.steps else f"00-{READ}"
        return int(json.loads((self.steps / f"{name}.json").read_bytes())["out"]["bytes"])

    def _apply(self, segment: Segment, folder: Path, documents: Path, num_bytes: int) -> None:
        num_tasks = len(shard_paths(documents))
        if not num_tasks:
            return
        findings = None
        first = segment.steps[0]
        if is_corpus_step(first):
            findings = folder / "findings"
            findings.mkdir(exist_ok=True)
            step: Any = build_step(first)
            self._run_stages(step, folder, documents, num_tasks)
        pipeline: list[Any] = [ReadDocuments(documents, folder / "progress")]
        for spec in segment.steps:
            pipeline.append(
                ApplyStep(
                    spec,
                    folder / "reports" / spec.folder,
                    self.steps / "rejected" / spec.folder,
                    findings if spec is first else None,
                    self.recipe.keep_rejected,
                    self.recipe.takes_out_personal_data,
                )
            )
        pipeline.append(WriteDocuments(folder / "documents"))
        with watching(folder / "progress", num_bytes, segment.title):
            run_pipeline(pipeline, num_tasks, folder / "logs" / "apply", self.options)

    def _run_stages(self, step: CorpusStep, folder: Path, documents: Path, num_tasks: int) -> None:
        for stage in step.stages(folder / "findings", documents, num_tasks):
            logs = folder / "logs" / stage.name
            with watching(logs / "progress", None, f"{step.name}: {stage.name}"):
                run_pipeline(stage.pipeline, stage.num_tasks, logs, self.options)

    def _finish(self, segment: Segment, folder: Path, seconds: float) -> None:
        """Adds up the tasks' reports, and declares the segment whole."""
        folders = [spec.folder for spec in segment.steps] or [f"00-{READ}"]
        specs: list[StepSpec | None] = [*segment.steps] or [None]
        for name, spec in zip(folders, specs, strict=True):
            report = StepReport(spec.name if spec else READ, spec.index if spec else 0)
            for path in sorted((folder / "reports" / name).glob("[0-9]*[0-9].json")):
                report.merge(StepReport.from_json(orjson.loads(path.read_bytes())))
            value = report.to_json()
            if spec is None:
                value["bad_input"] = _merged_bad_input(folder / "reports" / name)
            write_json(self.steps / f"{name}.json", value)
            dropped = report.documents_in - report.out.documents
            say(
                f"{name}: {report.documents_in:,} documents in, {report.out.documents:,} out "
                f"({human_bytes(report.out.num_bytes)}), {dropped:,} dropped, {report.num_edited:,} edited"
            )
        write_json(self.steps / "seconds" / f"{folders[0]}.json", {"steps": folders, "seconds": round(seconds, 3)})
        for name in ("findings", "progress", "plan"):
            shutil.rmtree(folder / name, ignore_errors=True)
        write_json(folder / DONE, {"steps": folders})


def _merged_bad_input(folder: Path) -> dict[str, Any]:
    named: list[str] = []
    num_skipped = 0
    for path in sorted(folder.glob("*-bad.json")):
        value = json.loads(path.read_bytes())
        num_skipped += value["num_skipped"]
        named += value["named"]
    return {"num_skipped": num_skipped, "named": named[:100]}


@contextmanager
def nothing_half_written(folder: Path) -> Iterator[None]:
    """Removes temporary files below `folder` when the body ends by an exception, and what killed processes left."""
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
