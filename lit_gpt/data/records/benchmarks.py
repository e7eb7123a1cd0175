"""Read the texts of benchmark files, with their record numbers.

Each text of a record (question, choices, answer) is yielded separately. Unlike in a document source, a partly
unreadable file is always an error, because decontamination against part of a benchmark would be incomplete.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lit_gpt.data.records.formats import read_records
from lit_gpt.data.records.record import BadInput
from lit_gpt.errors import UserError


def read_benchmark(path: Path, fields: list[str] | None = None) -> Iterator[tuple[int, str]]:
    """Yield (line or row, text).

    Args:
        path: The file; in plain text each paragraph is a record.
        fields: Fields or columns to read; None reads all that contain text, including lists and nested objects.

    Raises:
        UserError: if the file is missing, damaged or in another format than its suffix says, or has none of the fields.
    """
    name = f"benchmark {path}"
    seen: set[str] = set()
    found = False
    bad_input = BadInput(remedy="fix it or leave it out")
    for record in read_records(path, name, bad_input, document_separator="\n\n"):
        seen |= record.values.keys()
        values = record.values if fields is None else [record.values[key] for key in fields if key in record.values]
        for text in nested_texts(values):
            found = True
            yield max(record.record, 1), text
    if not found:
        known = ", ".join(sorted(seen)) or "none"
        wanted = "" if fields is None else f" in {', '.join(fields)}; its fields are {known}"
        raise UserError(f"{name} contains no text{wanted}")


def nested_texts(value: Any) -> Iterator[str]:
    """Yield all texts nested in a JSON value."""
    if isinstance(value, str):
        if value.strip():
            yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from nested_texts(part)
    elif isinstance(value, list):
        for part in value:
            yield from nested_texts(part)
