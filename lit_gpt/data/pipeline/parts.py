"""Sources in parts, so that many tasks can read at once: what a source is for `prepare`, and how parts become tasks.

A part is the least that one task reads: a file, a range of rows, a shard of a stream. Parts are grouped, in order, into
tasks of about equal size; the grouping depends on the parts alone. Each task finds its parts in a file of the plan, so
that a worker needs no list of a million files.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from lit_gpt.data.records import Part, RecordSource
from lit_gpt.errors import UserError

NO_TEXT = "no_text_because"
"""Metadata key with which a source says why a document has no text (it is counted under this reason)."""

MAX_TASKS = 20_000


@dataclass(frozen=True)
class NamedSource:
    """A source of the recipe, with what was declared about it.

    Attributes:
        name: Unique in the recipe.
        source: The source.
        metadata: What every document of it carries: license, language, as declared.
    """

    name: str
    source: RecordSource
    metadata: dict[str, Any]


def _outside(folder: Path | None) -> Callable[[Part], bool]:
    """Return a predicate: whether a part lies outside of a folder. Each folder of parts is resolved once."""
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
    """Group the parts of the sources into tasks.

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
    remaining = 0
    for index, part in found:
        size = task_bytes if part.num_bytes is None else part.num_bytes
        if remaining <= 0:
            tasks.append([])
            remaining = task_bytes
        tasks[-1].append([index, part.name, part.spec])
        remaining -= max(size, 1)
    stamps = [[index, part.name, part.stamp] for index, part in found]
    return Plan(tasks, stamps, total, shard_bytes)
