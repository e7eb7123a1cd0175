"""One file → its rows as plain objects: json (an array), jsonl, csv, tsv, parquet, each also compressed.

`lit_gpt.data.readers` reads one text field of a row in bounded memory; here whole rows are wanted, with their nested
values. All but a `.json` array, which is parsed as a whole, are read row by row.
"""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lit_gpt.data.compression import DAMAGED, inner_suffix, open_bytes
from lit_gpt.data.documents import BadInput
from lit_gpt.data.parquet import parquet_batches
from lit_gpt.data.readers import MAX_LINE_BYTES, json_lines

SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")


class NumberedRow(NamedTuple):
    """A row and its place: its line in jsonl and csv, its number from 1 elsewhere."""

    record: int
    values: dict[str, Any]


def read_rows(path: Path, name: str, bad_input: BadInput) -> Iterator[NumberedRow]:
    """Yields the rows of a file, by its suffix.

    Args:
        path: The file.
        name: What messages call it.
        bad_input: Takes what cannot be read.
    """
    suffix = inner_suffix(path)
    try:
        if suffix == ".json":
            yield from _read_json(path, name, bad_input)
        elif suffix in (".jsonl", ".ndjson"):
            yield from _read_jsonl(path, name, bad_input)
        elif suffix in (".csv", ".tsv"):
            yield from _read_csv(path, name, bad_input, "\t" if suffix == ".tsv" else ",")
        elif suffix == ".parquet":
            yield from _read_parquet(path, name, bad_input)
        else:
            bad_input.reject(name, f"its suffix {suffix!r} is none of {', '.join(SUFFIXES)}, so it holds no rows")
    except DAMAGED as error:
        bad_input.reject(name, f"the compressed data are damaged ({error})")
    except PermissionError:
        bad_input.reject(name, "it may not be read (permission denied)")
    except OSError as error:
        bad_input.reject(name, f"it cannot be read ({error.strerror or error})")


def _objects(values: Any, name: str, bad_input: BadInput) -> Iterator[NumberedRow]:
    for record, value in enumerate(values, start=1):
        if isinstance(value, dict):
            yield NumberedRow(record, value)
        else:
            bad_input.reject(f"{name}:{record}", f"it holds a JSON {type(value).__name__}, not an object")


def _read_json(path: Path, name: str, bad_input: BadInput) -> Iterator[NumberedRow]:
    with open_bytes(path) as file:
        data = file.read()
    try:
        value = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        bad_input.reject(name, "it is not valid UTF-8")
        return
    except (ValueError, RecursionError) as error:  # ValueError: also a whole number of thousands of digits
        bad_input.reject(name, f"it is not JSON ({error}); one object a line is .jsonl")
        return
    if isinstance(value, dict):  # {"data": [...]}, as some exports have it
        lists = [item for item in value.values() if isinstance(item, list)]
        value = lists[0] if len(lists) == 1 else value
    if not isinstance(value, list):
        bad_input.reject(name, f"it holds a JSON {type(value).__name__}, not an array of rows")
        return
    yield from _objects(value, name, bad_input)


def _read_jsonl(path: Path, name: str, bad_input: BadInput) -> Iterator[NumberedRow]:
    for number, value in json_lines(path, name, bad_input):
        if isinstance(value, dict):
            yield NumberedRow(number, value)
        else:
            bad_input.reject(f"{name}:{number}", f"it holds a JSON {type(value).__name__}, not an object")


def _read_csv(path: Path, name: str, bad_input: BadInput, delimiter: str) -> Iterator[NumberedRow]:
    csv.field_size_limit(MAX_LINE_BYTES)
    with open_bytes(path) as file:
        # Strict: else a quote that is never closed swallows all rows after it as one cell.
        reader = csv.DictReader(io.TextIOWrapper(file, "utf-8-sig", newline=""), delimiter=delimiter, strict=True)
        first = 1
        while True:
            try:
                names = reader.fieldnames or ()
                if twice := [column for column in names if names.count(column) > 1]:
                    bad_input.reject(f"{name}:1", f"two columns are named {twice[0]!r}")
                    return
                first = reader.reader.line_num + 1  # DictReader's own number stands still at an error
                row = next(reader, None)
            except UnicodeDecodeError:
                bad_input.reject(name, f"it is not valid UTF-8 (after line {reader.reader.line_num})")
                return
            except csv.Error as error:
                last = max(reader.reader.line_num, first)
                lines = f"line {first}" if last == first else f"lines {first} to {last}"
                bad_input.reject(f"{name}:{first}", f"{lines}: it is no CSV ({error}); is each quote closed?")
                continue
            if row is None:
                return
            if None in row:
                bad_input.reject(f"{name}:{reader.line_num}", "it has more cells than the header has columns")
                continue
            # A line that is too short has None in its last cells; an empty cell is "".
            yield NumberedRow(reader.line_num, {key: value for key, value in row.items() if value is not None})


def _read_parquet(path: Path, name: str, bad_input: BadInput) -> Iterator[NumberedRow]:
    import pyarrow

    record = 0
    try:
        for batch in parquet_batches(path):
            for index in range(batch.num_rows):
                record += 1
                try:
                    values = batch.slice(index, 1).to_pylist()[0]
                except UnicodeDecodeError:
                    bad_input.reject(f"{name}:{record}", "the row is not valid UTF-8")
                else:
                    yield NumberedRow(record, values)
    except (pyarrow.ArrowException, OSError) as error:
        bad_input.reject(name, f"it is no readable parquet file ({str(error).splitlines()[0]})")
