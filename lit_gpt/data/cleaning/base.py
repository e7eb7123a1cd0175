"""The one abstraction of cleaning: documents in, documents out.

A `Transform` is a class. The keyword arguments of its constructor are its options in the recipe (`- length: {min_chars:
200}` builds `Length(min_chars=200)`), so their names, types, defaults and docstring are what `--explain length` prints.
For each document, `apply` returns

- the document, unchanged or edited: a filter that keeps it, or a transform;
- a `Rejected` with the reason: a filter that drops it;
- an iterable of documents: the document is split into these parts, in this order. An empty one drops it.

Your own one is a subclass in your own package, named in the recipe by its import path:

    class SplitChapters(Transform):
        def __init__(self, heading: str = "CHAPTER ") -> None:
            super().__init__()
            self.heading = heading

        def apply(self, document: Doc) -> Iterator[Doc]:
            for text in document.text.split(self.heading):
                yield document.part(text)

    steps:
      - class_path: my_package.SplitChapters
        init_args: {heading: "CHAPTER "}

What needs to see every document before it can judge one (deduplication) is a `CorpusTransform`: its `passes` are
datatrove pipelines that run one after another over the shards and leave what they find in a folder. Then, for each
shard, `begin(folder, rank)` opens the findings for that shard, and `apply` is called for its documents in order, as for
any other transform. No transform writes documents itself: shards, counts, examples, the lists of rejected documents and
resuming belong to the pipeline.

A transform is built anew in each worker (from its options) or unpickled there, so it opens no file in `__init__`.
`apply` must be a pure function of the document (and, for a corpus transform, of the findings): then the bytes are the
same for any number of workers and after any number of kills.
"""

import copy
import inspect
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from lit_gpt.hashing import sha256_file
from lit_gpt.instantiate import import_object


@dataclass(slots=True)
class Doc:
    """One document on its way through the transforms.

    It has the fields of datatrove's `Document` that filters read, so datatrove's filters accept it as it is.

    Args:
        text: The text, valid Unicode (no lone surrogates).
        id: Stable name, made from source and record; unique within a recipe.
        metadata: `source` (name of the source in the recipe), `path` (file, URL or data set), `record` (line, row or
            0); `language` and `license` when known; whatever else the source declared. JSON values. Written with the
            document.
        cluster: Not written. A corpus transform sets it on a kept document that represents a cluster of duplicates,
            so that the card can show the cluster.
        cluster_size: Not written. Documents in that cluster, including the kept one.
    """

    text: str
    id: str
    metadata: dict[str, Any] = field(default_factory=dict)
    cluster: str | None = None
    cluster_size: int = 0

    def part(self, text: str) -> "Doc":
        """Return a part of this document: another text with a copy of the metadata.

        The pipeline numbers the parts of a document: "novel.txt:3" becomes "novel.txt:3#1", "novel.txt:3#2", ...
        """
        return Doc(text, self.id, copy.deepcopy(self.metadata))


@dataclass(frozen=True, slots=True)
class Rejected:
    """Why a document was dropped.

    Args:
        reason: Short, stable and countable: "too_short", "gopher_too_many_bullets", "near_duplicate".
        detail: What was seen: "312 of 400 lines are bullets"; for decontamination the benchmark and what matched.
        cluster: Of a duplicate: the cluster's id, the same as the kept document's `Doc.cluster`.
        kept: Of a duplicate: the id of the document that is kept in its place.
        cluster_size: Of a duplicate: documents in the cluster, including the kept one; 0 where unknown.
    """

    reason: str
    detail: str = ""
    cluster: str | None = None
    kept: str | None = None
    cluster_size: int = 0


Applied = Doc | Rejected | Iterable[Doc]
"""What `Transform.apply` may return."""


@dataclass(frozen=True)
class Pass:
    """One datatrove pipeline of a corpus transform.

    Args:
        name: Folder name of its logs and completions, unique within the transform: "signatures", "buckets".
        pipeline: datatrove blocks, picklable, the same for every rank.
        num_tasks: How many tasks (ranks) it has. A function of the input alone, never of the workers.
    """

    name: str
    pipeline: list[Any]
    num_tasks: int


class Transform:
    """Documents in, documents out, one at a time: the base of all filters and transforms.

    Attributes:
        counts: What was done to documents that were kept, by kind ("email": 12, "lines_removed": 3). `apply` adds to
            it; the pipeline reads it after each shard, sums over shards, and starts each shard with it empty.
    """

    name: ClassVar[str] = ""
    """The short name in the recipe; "" for a class that is named by its import path."""

    removes_personal_data: ClassVar[bool] = False
    """Whether personal data are taken out of the documents, so that reports must not show them either."""

    identifies_language: ClassVar[bool] = False
    """Whether it writes `metadata["language"]`."""

    findings_per_byte: ClassVar[float] = 0.0
    """Bytes on disk, per byte of text, of what the passes of a corpus transform leave while it runs."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def apply(self, document: Doc) -> Applied:
        """Return the document to continue with (the same object, edited in place, is fine), its parts, or why not."""
        raise NotImplementedError

    def stamps(self) -> Any:
        """Return JSON values that change when what the options only name does: a file, a user's code.

        They are part of the corpus's key, so that a start with other content is noticed.
        """
        return None


class CorpusTransform(Transform):
    """A transform that must see every document before it can judge one."""

    # Signatures, digests and line hashes: 16 to 112 bytes per document or 8 per line.
    findings_per_byte: ClassVar[float] = 0.15

    def passes(self, folder: Path, documents: Any, num_tasks: int) -> list[Pass]:
        """Return the datatrove pipelines to run, in order, before `apply` is called.

        Args:
            folder: The transform's own folder, where the passes leave what they find. Deleted when it is done.
            documents: The datatrove block that reads the documents: the first block of a pass. With the pass's
                `num_tasks` equal to this one, rank r reads exactly shard r, in order.
            num_tasks: Number of shards.
        """
        raise NotImplementedError

    def begin(self, folder: Path, rank: int) -> None:
        """Open the findings for shard `rank`; the next `apply` gets the shard's first document."""
        raise NotImplementedError


def code_stamp(class_path: str, purpose: str, version: str | int = "") -> str:
    """Return what changes when the user's own code does: its `version`, or else the hash of the file it is in.

    Args:
        class_path: Import path of the code.
        purpose: What it is for, for messages.
        version: The user's name for this state of the code; with one, an edit that changes no document (a comment)
            changes nothing.
    """
    if version != "":
        return f"version {version}"
    try:
        return sha256_file(Path(inspect.getfile(import_object(class_path, purpose))))
    except (TypeError, OSError):  # built into Python, or made without a file: nothing that could be edited
        return "no file"
