"""Benchmark files → their texts, each with the record it stands in: json, jsonl, csv, tsv, parquet and plain text.

A record may hold several texts (question, choices, answer): each is a text of its own. Unlike a source of documents, a
file of which a part cannot be read is an error, because a benchmark that is half known protects half.
"""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lit_gpt.data.compression import DAMAGED, inner_suffix, open_bytes
from lit_gpt.data.parquet import parquet_batches
from lit_gpt.errors import UserError

_MAX_FIELD_CHARS = 1 << 28


def read_benchmark(path: Path, fields: list[str] | None = None) -> Iterator[tuple[int, str]]:
    """Yields (record counted from 1, text).

    Args:
        path: The file; its suffix (before .gz or .zst) says what it is: anything that is no table is plain text, of
            which each paragraph is a record.
        fields: Fields or columns to take; None takes every one that holds text, lists and nested objects included.

    Raises:
        UserError: if the file is missing, damaged or not what its suffix says, or has none of the fields.
    """
    suffix = inner_suffix(path)
    try:
        if suffix == ".parquet":
            records: Iterator[Any] = _parquet_rows(path)
        elif suffix in (".jsonl", ".ndjson"):
            records = (json.loads(line) for line in _lines(path) if line.strip())
        elif suffix == ".json":
            records = iter(_json_records(path))
        elif suffix in (".csv", ".tsv"):
            csv.field_size_limit(_MAX_FIELD_CHARS)
            rows = csv.DictReader(io.StringIO(_text(path), newline=""), delimiter="\t" if suffix == ".tsv" else ",")
            records = iter(rows)
        else:
            yield from enumerate((part for part in _text(path).split("\n\n") if part.strip()), start=1)
            return
        seen: set[str] = set()
        found = False
        for number, record in enumerate(records, start=1):
            if fields is not None and isinstance(record, dict):
                seen |= record.keys()
                record = {field: record[field] for field in fields if field in record}
            for text in _texts(record):
                found = True
                yield number, text
    except DAMAGED as error:
        raise UserError(f"benchmark {path}: the compressed data are damaged ({error}); fetch it again") from error
    except UserError:
        raise
    except (ValueError, RecursionError, csv.Error) as error:  # also a whole number of thousands of digits
        raise UserError(
            f"benchmark {path} is no readable {suffix or 'text'} file ({error}); mend it or leave it out"
        ) from error
    except OSError as error:
        raise UserError(f"benchmark {path} cannot be read ({error.strerror or error})") from error
    if not found:
        wanted = (
            ""
            if fields is None
            else f" in {', '.join(fields)}; its fields are {', '.join(sorted(map(str, seen))) or 'none'}"
        )
        raise UserError(f"benchmark {path} holds no text{wanted}")


def _text(path: Path) -> str:
    with open_bytes(path) as file:
        return file.read().decode("utf-8-sig")


def _lines(path: Path) -> Iterator[str]:
    with open_bytes(path) as file:
        for line in file:
            yield line.decode("utf-8-sig")


def _json_records(path: Path) -> list[Any]:
    """Returns the records of a JSON file: the list that it is, or the only list that its object holds, or itself."""
    text = _text(path)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if not error.msg.startswith("Extra data"):
            raise
        return [json.loads(line) for line in text.splitlines() if line.strip()]  # JSON lines under another name
    if isinstance(value, list):
        return value
    if isinstance(value, dict):
        lists = [part for part in value.values() if isinstance(part, list)]
        if len(lists) == 1:
            return lists[0]
    return [value]


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow

    try:
        for batch in parquet_batches(path):
            yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        message = str(error).splitlines()[0]
        raise UserError(f"benchmark {path} is no readable parquet file ({message}); mend it or leave it out") from error


def _texts(value: Any) -> Iterator[str]:
    """Yields the texts in a JSON value, however deep."""
    if isinstance(value, str):
        if value.strip():
            yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part)
