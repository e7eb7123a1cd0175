"""Items of a measure, from a file or dataset in a published format, or from a small embedded set.

The embedded sets (`sets/*.jsonl`) were written for this package, a few dozen rows each, in the published formats:
enough to try everything without a network and to see large effects, too few to distinguish two good models.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, TypeVar

from lit_gpt.checks import check_at_least
from lit_gpt.data.instructions.forms import renamed
from lit_gpt.data.records import (
    BadInput,
    FileFormat,
    FileRecords,
    HubDataset,
    HubRecords,
    OnBadInput,
    Record,
    RecordSource,
)
from lit_gpt.errors import UserError
from lit_gpt.hashing import FileHashes

T = TypeVar("T")
SAMPLE_SEED = 0
"""Seed of the sample for `limit`, so that every model gets the same items."""


@dataclass(frozen=True)
class RowSet:
    """Source of the rows.

    Attributes:
        files: JSON, JSON lines, CSV, TSV, Parquet or Arrow files; None, and no `hub`: the embedded set.
        hub: Alternative to `files`: a Hugging Face dataset, by name or with its configuration and split.
        columns: Mapping from the expected field name to the dataset's.
        limit: Number of rows to sample, the same for every model; None: all.
        on_bad_input: What to do with an unusable row: `error` stops, `skip` leaves it out and counts it.
        embedded: Name of the embedded set.
        format: File format options that the suffix does not determine: encoding, quoting, delimiter.
    """

    files: str | Sequence[str] | None = None
    hub: str | HubDataset | Mapping[str, Any] | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    limit: int | None = None
    on_bad_input: OnBadInput = "error"
    embedded: str = ""
    format: FileFormat | None = None

    def __post_init__(self) -> None:
        if self.files is not None and self.hub is not None:
            raise UserError("items come from files or from hub, and both are set; remove one of them")
        check_limit(self.limit)
        BadInput(self.on_bad_input)

    @property
    def is_embedded(self) -> bool:
        """Whether the rows are those of the embedded set."""
        return self.files is None and self.hub is None

    def read(self, required: Sequence[str]) -> "ReadRows":
        """Read the rows, with their fields renamed to the expected names.

        Args:
            required: Fields that must contain text in every row.

        Raises:
            UserError: If there is no such file or dataset, a row lacks a field (with file and row), or no row is left.
        """
        bad_input = BadInput(self.on_bad_input)
        source = self._source()
        rows = []
        for row in source.records(bad_input):
            try:
                values = renamed(row.values, self.columns)
                _check(values, required)
            except UserError as error:
                bad_input.reject(row.where, str(error))
            else:
                rows.append(replace(row, values=values))
        if not rows:
            skipped = f"; {bad_input.num_skipped} were left out: {bad_input.named[0]}" if bad_input.named else ""
            raise UserError(f"{source.title} contains no usable rows{skipped}; name a file that is not empty")
        total = len(rows)
        rows = rows if self.limit is None else sample_items(rows, self.limit)
        settings: dict[str, Any] = {"items": source.title, "fingerprint": source.fingerprint(FileHashes())}
        if self.columns:
            settings["columns"] = dict(self.columns)
        notes = []
        if self.is_embedded:
            settings["items"] = f"embedded: {self.embedded}"
            notes.append(
                f"{total} embedded items, in English: they show large effects; for scores that can be compared "
                "with published ones, use the published files."
            )
        if len(rows) < total:
            notes.append(f"A sample of {len(rows)} of {total} items (limit).")
        if bad_input.num_skipped:
            notes.append(f"{bad_input.num_skipped} rows could not be used and were left out: {bad_input.named[0]}.")
        return ReadRows(rows, settings, tuple(notes))

    def _source(self) -> RecordSource:
        if self.hub is not None:
            hub = self.hub
            spec = HubDataset(hub) if isinstance(hub, str) else hub
            return HubRecords(HubDataset(**spec) if isinstance(spec, Mapping) else spec)
        if self.files is not None:
            return FileRecords(self.files, format=self.format)
        return FileRecords([(self.embedded, embedded_set(self.embedded))])


@dataclass(frozen=True)
class ReadRows:
    """Rows, the settings to read them again, and notes on excluded rows."""

    rows: list[Record]
    settings: dict[str, Any]
    notes: tuple[str, ...]


def check_limit(limit: int | None) -> None:
    """Raise a `UserError` for a limit below 1."""
    check_at_least("limit", limit, 1, "null for all")


def sample_items(items: Sequence[T], limit: int) -> list[T]:
    """Return at most `limit` items, in order; the same ones for every model."""
    if len(items) <= limit:
        return list(items)
    return [items[position] for position in sorted(random.Random(SAMPLE_SEED).sample(range(len(items)), limit))]


def embedded_set(name: str) -> Path:
    """Return the path of an embedded set."""
    with as_file(files("lit_gpt.evaluation.safety") / "sets" / name) as path:
        return path


def _check(values: Mapping[str, Any], required: Sequence[str]) -> None:
    for name in required:
        value = values.get(name)
        if value is None:
            fields = ", ".join(map(repr, values)) or "none"
            raise UserError(f"no field {name!r}; its fields are {fields} (set columns for other names)")
        if not isinstance(value, str):
            raise UserError(f"the field {name!r} is {type(value).__name__}, not text")
        if not value.strip():
            raise UserError(f"the field {name!r} is empty")
