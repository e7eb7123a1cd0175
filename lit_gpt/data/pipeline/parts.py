"""Sources in parts, so that many tasks can read at once: what a source is for `prepare`, and how parts become tasks.

A part is the least that one task reads: a file, a range of rows, a shard of a stream. Parts are grouped, in order, into
tasks of about equal size; the grouping depends on the parts alone. Each task finds its parts in a file of the plan, so
that a worker needs no list of a million files.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from lit_gpt.data.documents import BadInput, Document
from lit_gpt.data.files import estimated_bytes, expand_files
from lit_gpt.errors import UserError

NO_TEXT = "no_text_because"
"""Metadata key with which a source says why a document has no text (it is counted under this reason)."""

MAX_TASKS = 20_000


@dataclass(frozen=True)
class Part:
    """What one task can read by itself.

    Attributes:
        name: For messages.
        spec: JSON value that `PartedSource.read` understands.
        stamp: JSON value that changes when the content does; a start after a kill compares it.
        num_bytes: Estimated bytes of text; None if unknown.
        path: Where it lies on this disk, if it is a file.
    """

    name: str
    spec: Any
    stamp: Any
    num_bytes: int | None
    path: Path | None = None


class PartedSource(Protocol):
    """Where documents come from. It can be pickled."""

    def parts(self) -> Iterable[Part]:
        """Yields the parts in the order of the corpus; asked once, before the work starts."""
        ...

    def read(self, spec: Any, bad_input: BadInput) -> Iterator[Document]:
        """Yields the documents of a part, each time the same; what cannot be read goes to `bad_input`."""
        ...

    def describe(self) -> dict[str, Any]:
        """Returns what the card says about it (JSON values)."""
        ...


class FileParts:
    """Base of the sources that read files: a part is a file; subclasses say how one is read."""

    kind = "files"

    def __init__(self, patterns: str | list[str]) -> None:
        self.patterns = patterns

    def files(self) -> list[tuple[str, Path]]:
        """Lists (name, path); subclasses may leave some out."""
        return expand_files(self.patterns)

    def parts(self) -> Iterator[Part]:
        """Yields the files."""
        for name, path in self.files():
            try:
                stat = path.stat()
            except OSError as error:  # reading it will say so, and on_bad_input decides
                yield Part(name, [name, str(path)], f"unreadable: {error.strerror}", 0, path)
                continue
            yield Part(name, [name, str(path)], [stat.st_size, stat.st_mtime_ns], estimated_bytes(path), path)

    def read(self, spec: Any, bad_input: BadInput) -> Iterator[Document]:
        """Yields the documents of one file."""
        name, path = spec
        return self.read_file(name, Path(path), bad_input)

    def read_file(self, name: str, path: Path, bad_input: BadInput) -> Iterator[Document]:
        """Yields the documents of one file."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """Returns kind and patterns."""
        return {"kind": self.kind, "from": self.patterns}


@dataclass(frozen=True)
class NamedSource:
    """A source of the recipe, with what was declared about it.

    Attributes:
        name: Unique in the recipe.
        source: The source.
        metadata: What every document of it carries: license, language, as declared.
    """

    name: str
    source: PartedSource
    metadata: dict[str, Any]


def _outside(folder: Path | None) -> Callable[[Part], bool]:
    """Returns what tells whether a part lies outside of a folder; each folder of parts is resolved once."""
    if folder is None:
        return lambda part: True
    top = os.path.realpath(folder)

    @cache
    def inside(parent: Path) -> bool:
        return Path(os.path.realpath(parent)).is_relative_to(top)

    return lambda part: part.path is None or not inside(part.path.parent)


@dataclass
class Plan:
    """The parts of all sources, grouped into tasks.

    Attributes:
        tasks: For each task its parts as [source index, name, spec].
        stamps: Of all parts, for the key.
        num_bytes: Estimated bytes of text; None if a part does not know.
        shard_bytes: Size at which a shard of documents is finished.
    """

    tasks: list[list[list[Any]]]
    stamps: list[Any]
    num_bytes: int | None
    shard_bytes: int


def make_plan(sources: list[NamedSource], shard_bytes: int | None, out: Path | None = None) -> Plan:
    """Groups the parts of the sources into tasks.

    Args:
        sources: The recipe's sources.
        shard_bytes: Text of a task and of a shard; None chooses a 32nd of the whole, between 1 and 128 MB.
        out: Folder of the prepared corpus: files in it are no input, even if a source's folder holds it.

    Raises:
        UserError: if a source names nothing.
    """
    wanted = _outside(out)
    found: list[tuple[int, Part]] = [
        (index, part) for index, named in enumerate(sources) for part in named.source.parts() if wanted(part)
    ]
    if not found:
        raise UserError("the sources hold nothing to read; name files, folders or data sets that do")
    sizes = [part.num_bytes for _, part in found]
    known = [size for size in sizes if size is not None]
    total = sum(known) if len(known) == len(sizes) else None
    if shard_bytes is None:
        shard_bytes = 64 << 20 if total is None else min(max(total // 32, 1 << 20), 128 << 20)
    task_bytes = max(shard_bytes, (total or 0) // MAX_TASKS)
    tasks: list[list[list[Any]]] = []
    room = 0
    for index, part in found:
        size = task_bytes if part.num_bytes is None else part.num_bytes
        if room <= 0:
            tasks.append([])
            room = task_bytes
        tasks[-1].append([index, part.name, part.spec])
        room -= max(size, 1)
    stamps = [[index, part.name, part.stamp] for index, part in found]
    return Plan(tasks, stamps, total, shard_bytes)
