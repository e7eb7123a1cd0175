"""Base classes of cleaning: a transform maps documents to documents.

The keyword arguments of a `Transform`'s constructor are its options in the recipe (`- length: {min_chars: 200}` builds
`Length(min_chars=200)`); their names, types, defaults and the docstring are what `--explain length` prints. For each
document, `apply` returns one of

- the document, unchanged or edited, to keep it;
- a `Rejected` with the reason, to drop it;
- an iterable of documents, to split it into these parts, in this order. An empty iterable drops it.

A custom transform is a subclass in your own package, named in the recipe by its import path:

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

A transform that needs to see every document before it can judge one (deduplication) is a `CorpusTransform`: its
`passes` are datatrove pipelines that run one after another over the shards and write their findings to a folder. Then,
for each shard, `begin(folder, rank)` loads the findings for that shard, and `apply` is called for its documents in
order, as for any other transform. Transforms do not write documents: shards, counts, examples, lists of rejected
documents and resuming are handled by the pipeline.

A transform is constructed in each worker (from its options) or unpickled there, so it must not open files in
`__init__`. `apply` must be a pure function of the document (and, for a corpus transform, of the findings), so that the
output is the same for any number of workers and after any number of interruptions.
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
    """One document that passes through the transforms.

    It has the fields of datatrove's `Document` that filters read, so datatrove's filters accept it directly.

    Args:
        text: The text, valid Unicode (no lone surrogates).
        id: Stable name, composed of source and record; unique within a recipe.
        metadata: `source` (name of the source in the recipe), `path` (file, URL or dataset), `record` (line, row or 0);
            `language` and `license` if known; any other fields that the source declares. JSON values, stored with the
            document.
        cluster: Set by a corpus transform on a kept document that represents a cluster of duplicates, so that the data
            card can show the cluster. Not stored.
        cluster_size: Number of documents in that cluster, including the kept one. Not stored.
    """

    text: str
    id: str
    metadata: dict[str, Any] = field(default_factory=dict)
    cluster: str | None = None
    cluster_size: int = 0

    def part(self, text: str) -> "Doc":
        """Return a part of this document: a new text with a copy of the metadata.

        The pipeline numbers the parts of a document: "novel.txt:3" becomes "novel.txt:3#1", "novel.txt:3#2", ...
        """
        return Doc(text, self.id, copy.deepcopy(self.metadata))


@dataclass(frozen=True, slots=True)
class Rejected:
    """Why a document was dropped.

    Args:
        reason: Short, stable identifier by which rejections are counted: "too_short", "gopher_too_many_bullets", ...
        detail: Evidence: "312 of 400 lines are bullets"; for decontamination the benchmark and the match.
        cluster: For a duplicate: id of the cluster, equal to the kept document's `Doc.cluster`.
        kept: For a duplicate: id of the document that is kept instead.
        cluster_size: For a duplicate: number of documents in the cluster, including the kept one; 0 if unknown.
    """

    reason: str
    detail: str = ""
    cluster: str | None = None
    kept: str | None = None
    cluster_size: int = 0


Applied = Doc | Rejected | Iterable[Doc]
"""Return type of `Transform.apply`."""


@dataclass(frozen=True)
class Pass:
    """One datatrove pipeline of a corpus transform.

    Args:
        name: Folder name of its logs and completions, unique within the transform: "signatures", "buckets".
        pipeline: datatrove blocks, picklable, the same for every rank.
        num_tasks: Number of tasks (ranks); a function of the input only, never of the workers.
    """

    name: str
    pipeline: list[Any]
    num_tasks: int


class Transform:
    """Base class of all filters and transforms, which process one document at a time.

    Attributes:
        counts: Counts of edits to kept documents, by kind ("email": 12, "lines_removed": 3). `apply` adds to it; the
            pipeline reads it after each shard, sums it over shards, and clears it before each shard.
    """

    name: ClassVar[str] = ""
    """Short name in the recipe; "" for a class that is named by its import path."""

    removes_personal_data: ClassVar[bool] = False
    """Whether it removes personal data from the documents, so that reports must not show them either."""

    identifies_language: ClassVar[bool] = False
    """Whether it sets `metadata["language"]`."""

    findings_per_byte: ClassVar[float] = 0.0
    """Size on disk of a corpus transform's temporary findings, in bytes per byte of text."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def apply(self, document: Doc) -> Applied:
        """Return the document (the same object may be edited in place), its parts, or the reason to drop it."""
        raise NotImplementedError

    def input_fingerprints(self) -> Any:
        """Return JSON values that identify external content named by the options, such as a file or user code.

        They are part of the corpus's key, so that a change of that content is noticed.
        """
        return None


class CorpusTransform(Transform):
    """A transform that must see every document before it can judge one."""

    # Signatures, digests and line hashes: 16 to 112 bytes per document or 8 per line.
    findings_per_byte: ClassVar[float] = 0.15

    def passes(self, folder: Path, documents: Any, num_tasks: int) -> list[Pass]:
        """Return the datatrove pipelines to run, in order, before `apply` is called.

        Args:
            folder: Folder for the findings of the passes; deleted when the transform is done.
            documents: The datatrove block that reads the documents, which is the first block of a pass. If the pass has
                this `num_tasks`, rank r reads exactly shard r, in order.
            num_tasks: Number of shards.
        """
        raise NotImplementedError

    def begin(self, folder: Path, rank: int) -> None:
        """Load the findings for shard `rank`; the next call of `apply` gets the shard's first document."""
        raise NotImplementedError


def code_fingerprint(class_path: str, purpose: str, version: str | int = "") -> str:
    """Return an identifier of the user code's state: its `version`, or else the hash of its source file.

    Args:
        class_path: Import path of the code.
        purpose: Purpose of the code, for messages.
        version: The user's version of the code; if it is set, edits of the file that do not change the output (such as
            comments) are ignored.
    """
    if version != "":
        return f"version {version}"
    try:
        return sha256_file(Path(inspect.getfile(import_object(class_path, purpose))))
    except (TypeError, OSError):  # built in or defined without a file, so it cannot be edited
        return "no file"
