"""Runs a cleaning step over documents as the pipeline does, in this process; imported by the tests of the steps."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datatrove.data import Document

from lit_gpt.data.cleaning.base import Doc, Rejected
from lit_gpt.data.pipeline.document_shards import ReadDocuments, WriteDocuments


@dataclass
class Outcome:
    """What a step made of documents."""

    kept: dict[str, str] = field(default_factory=dict)
    rejected: dict[str, Rejected] = field(default_factory=dict)
    clusters: dict[str, int] = field(default_factory=dict)

    @property
    def dropped(self) -> set[str]:
        return set(self.rejected)


def judge(step: Any, text: str, **metadata: Any) -> Doc | Rejected:
    """What a per-document step says about one text."""
    return step.apply(Doc(text, "a document", dict(metadata)))


def texts_by_id(texts: Iterable[str]) -> dict[str, str]:
    return {f"document-{number:05d}": text for number, text in enumerate(texts)}


def run_corpus_step(step: Any, texts: dict[str, str], folder: Path, num_shards: int = 3) -> Outcome:
    """Runs a corpus step's stages and then the step itself over shards of the texts, in their order."""
    documents = [Document(text=text, id=name) for name, text in texts.items()]
    size = -(-len(documents) // num_shards)
    shards = [documents[rank * size : (rank + 1) * size] for rank in range(num_shards)]
    for rank, shard in enumerate(shards):
        deque(WriteDocuments(folder / "documents").run(shard, rank, num_shards), maxlen=0)
    findings = folder / "findings-of-step"
    for stage in step.passes(findings, ReadDocuments(folder / "documents"), num_shards):
        for rank in range(stage.num_tasks):
            data = None
            for part in stage.pipeline:
                data = part(data, rank, stage.num_tasks)
            deque(data or (), maxlen=0)
    outcome = Outcome()
    for rank, shard in enumerate(shards):
        step.begin(findings, rank)
        for document in shard:
            result = step.apply(Doc(document.text, document.id, {}))
            if isinstance(result, Rejected):
                outcome.rejected[document.id] = result
            else:
                outcome.kept[document.id] = result.text
                if result.cluster is not None:
                    outcome.clusters[result.cluster] = result.cluster_size
    return outcome


def keep_all(document: Doc) -> bool:
    """A user's predicate that keeps every document."""
    return True
