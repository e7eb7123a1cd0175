"""Divide sources into parts, and group the parts into tasks.

A part is the smallest unit that a task reads: a file, a range of rows, a shard of a stream. Parts are grouped, in
order, into tasks of about equal size; the grouping depends only on the parts. Each task reads its parts from a file of
the plan, so that a worker does not need a list of a million files.
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
"""Metadata key for the reason why a document has no text; the document is counted under this reason."""

MAX_TASKS = 20_000


@dataclass(frozen=True)
class NamedSource:
    """A source of the recipe, with its declared metadata.

    Attributes:
        name: Unique in the recipe.
        source: The source.
        metadata: Declared metadata of all its documents: license, language.
    """

    name: str
    source: RecordSource
    metadata: dict[str, Any]


def _outside(folder: Path | None) -> Callable[[Part], bool]:
    """Return a predicate that is true for parts outside of a folder; each parent folder is resolved only once."""
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
        part_stamps: Stamps of all parts, for the key.
        num_bytes: Estimated bytes of text; None if unknown for a part.
        shard_bytes: Size in bytes at which a document shard is finished.
    """

    tasks: list[list[list[Any]]]
    part_stamps: list[Any]
    num_bytes: int | None
    shard_bytes: int


def make_plan(sources: list[NamedSource], shard_bytes: int | None, out: Path | None = None) -> Plan:
    """Group the parts of the sources into tasks.

    Args:
        sources: The recipe's sources.
        shard_bytes: Bytes of text per task and per shard; None chooses 1/32 of the total, between 1 and 128 MB.
        out: Folder of the prepared corpus, whose files are not input even if a source's folder contains it.

    Raises:
        UserError: if there is nothing to read.
    """
    wanted = _outside(out)
    found: list[tuple[int, Part]] = [
        (index, part) for index, named in enumerate(sources) for part in named.source.parts() if wanted(part)
    ]
    if not found:
        raise UserError("the sources are empty; name files, folders or datasets with content")
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
