"""What a cleaning step is, for whoever writes one and for the pipeline that runs it.

A step is a class. Its constructor's keyword arguments are its options in the recipe (`- length: {min_chars: 200}`
builds `Length(min_chars=200)`), so their names, types, defaults and docstring are what `--explain length` prints. There
are two kinds:

1. **per document**: `apply` looks at one document and returns it (edited or not) or a `Rejected` with the reason.
   Neighbouring per-document steps run in one pass over a shard.
2. **corpus**: what needs to see every document first (deduplication). `stages` returns datatrove pipelines which the
   pipeline runs one after another over the shards that the step receives; they leave what they find in `folder`. Then,
   for each shard, `begin(folder, rank)` opens the findings for that shard and `apply` is called for its documents in
   the order they are written in, exactly as for a per-document step. So no step writes documents itself: shards,
   counts, examples, rejected documents and resuming are the pipeline's.

A step is built anew in each worker (from its options) or unpickled there, so it keeps no open file in `__init__`.
`apply` must be a pure function of the document (and, for a corpus step, of the findings): the same bytes come out for
any number of workers and after any number of kills.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable


@dataclass(slots=True)
class Doc:
    """One document on its way through the steps.

    It has the fields of datatrove's `Document` that filters read, so datatrove's filters take it as it is.

    Args:
        text: The text, valid Unicode (no lone surrogates).
        id: Stable name, made from source and record; unique within a recipe.
        metadata: `source` (name of the source in the recipe), `path` (file, URL or data set), `record` (line, row or
            0); `language` and `license` when known; what else the source declared. Values are JSON. Written with the
            document.
        cluster: Not written. A corpus step sets it on a kept document that stands for a cluster of duplicates,
            so that the card can show the cluster.
        cluster_size: Not written. Documents in that cluster, the kept one included.
    """

    text: str
    id: str
    metadata: dict[str, Any] = field(default_factory=dict)
    cluster: str | None = None
    cluster_size: int = 0


@dataclass(frozen=True, slots=True)
class Rejected:
    """Why a document was dropped.

    Args:
        reason: Short, stable and countable: "too_short", "gopher_too_many_bullets", "near_duplicate".
        detail: What was seen: "312 of 400 lines are bullets"; for decontamination the benchmark and what matched.
        cluster: Of a duplicate: the cluster's id, the same on the kept document's `Doc.cluster`.
        kept: Of a duplicate: the id of the document that stays for it.
        cluster_size: Of a duplicate: documents in the cluster, the kept one included; 0 where unknown.
    """

    reason: str
    detail: str = ""
    cluster: str | None = None
    kept: str | None = None
    cluster_size: int = 0


@dataclass(frozen=True)
class Stage:
    """One datatrove pipeline of a corpus step.

    Args:
        name: Folder name of its logs and completions, unique within the step: "signatures", "buckets".
        pipeline: datatrove steps, picklable, the same for every rank.
        num_tasks: How many tasks (ranks) it has. A function of the input alone, never of the workers.
    """

    name: str
    pipeline: list[Any]
    num_tasks: int


@runtime_checkable
class Step(Protocol):
    """A per-document step.

    A step whose options only name what decides its result (a file, a user's code) also has a method `stamps()`, which
    returns JSON values that change when that does: they are part of the corpus's key.

    Attributes:
        name: The step's name in the recipe.
        kind: "per_document".
        counts: What the step did to documents that it kept, by kind ("email": 12, "lines_removed": 3). `apply` adds
            to it; the pipeline reads it after each shard, adds the shards up, and starts each shard with it empty.
    """

    name: str
    kind: Literal["per_document", "corpus"]
    counts: Counter[str]

    def apply(self, document: Doc) -> Doc | Rejected:
        """Returns the document to go on with (the same object, edited in place, is fine) or why it is dropped."""
        ...


@runtime_checkable
class CorpusStep(Step, Protocol):
    """A step that must see every document before it can judge one. `kind` is "corpus"."""

    def stages(self, folder: Path, documents: Path, num_tasks: int) -> list[Stage]:
        """The datatrove pipelines to run, in order, before `apply` is asked.

        Args:
            folder: The step's own folder, where the stages leave what they find. Deleted when the step is done.
            documents: The documents that the step receives: `num_tasks` shards, read with
                `lit_gpt.data.pipeline.document_shards.ReadDocuments(documents)` as the first datatrove step of a stage.
                With a stage's `num_tasks` equal to this one, rank r reads exactly shard r, in order.
            num_tasks: Number of shards.
        """
        ...

    def begin(self, folder: Path, rank: int) -> None:
        """Opens the findings for shard `rank`; the next `apply` gets the shard's first document."""
        ...
