"""One file → its documents, in bounded memory: plain text and code, json, jsonl, csv, parquet.

Each reader yields documents one after another and hands what it cannot read to `BadInput`, naming the file and,
where there is one, the line. None holds more than one chunk, line or row group page of a file at a time, except that a
`.json` array is parsed as a whole.
"""

import codecs
import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from lit_gpt.data.compression import COMPRESSED_SUFFIXES, DAMAGED, inner_suffix, open_bytes
from lit_gpt.data.documents import BadInput, Document
from lit_gpt.data.parquet import parquet_batches

MAX_DOCUMENT_BYTES = 16 << 20
"""A plain text file longer than this becomes several documents, cut at line ends (a dump of a whole corpus as one
`.txt` neither fits in memory nor in one document)."""

MAX_LINE_BYTES = 64 << 20
"""A longer line of jsonl is refused rather than loaded."""

MAX_JSON_BYTES = 256 << 20
"""A larger JSON array is refused: parsing takes several times its size in memory."""


def read_file(
    path: Path, name: str, bad_input: BadInput, text_field: str, document_separator: str | None
) -> Iterator[Document]:
    """Yields the documents of one file, by its suffix; any suffix that is not a table's is plain text.

    Args:
        path: The file.
        name: What its documents give as their source.
        bad_input: Takes what cannot be read.
        text_field: Field or column that holds the text (json, jsonl, csv, parquet).
        document_separator: Where a plain text file is cut into documents; None keeps it whole.
    """
    suffix = inner_suffix(path)
    try:
        if suffix in (".jsonl", ".ndjson"):
            yield from _read_jsonl(path, name, bad_input, text_field)
        elif suffix == ".json":
            yield from _read_json(path, name, bad_input, text_field)
        elif suffix in (".csv", ".tsv"):
            yield from _read_csv(path, name, bad_input, text_field, "\t" if suffix == ".tsv" else ",")
        elif suffix == ".parquet":
            yield from _read_parquet(path, name, bad_input, text_field)
        else:
            yield from _read_text(path, name, bad_input, document_separator)
    except DAMAGED as error:
        bad_input.reject(name, f"the compressed data are damaged ({error})")
    except PermissionError:
        bad_input.reject(name, "it may not be read (permission denied)")
    except OSError as error:
        bad_input.reject(name, f"it cannot be read ({error.strerror or error})")


def _read_text(path: Path, name: str, bad_input: BadInput, separator: str | None) -> Iterator[Document]:
    if path.suffix in COMPRESSED_SUFFIXES or path.stat().st_size > MAX_DOCUMENT_BYTES:
        # Look at all of it first: a skipped file must not leave its first half behind.
        for _ in _decoded(path, name, rejected := BadInput("skip")):
            pass
        if rejected.num_skipped:
            bad_input.reject(name, rejected.named[0].removeprefix(f"{name}: "))
            return
    parts = _cut(_decoded(path, name, bad_input), separator)
    first = next(parts, None)
    if first is None:
        return
    second = next(parts, None)
    if second is None:
        yield Document(first, name)
        return
    yield Document(first, name, 1)
    yield Document(second, name, 2)
    for record, text in enumerate(parts, start=3):
        yield Document(text, name, record)


def _decoded(path: Path, name: str, bad_input: BadInput) -> Iterator[str]:
    """Yields a text file's content in pieces of at most `MAX_DOCUMENT_BYTES`."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    position = 0
    with open_bytes(path) as file:
        while True:
            data = file.read(MAX_DOCUMENT_BYTES)
            if b"\0" in data:
                bad_input.reject(name, "it is binary, not text (a zero byte)")
                return
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                bad_input.reject(name, f"it is not valid UTF-8 (near byte {position + error.start})")
                return
            position += len(data)
            if text:
                yield text
            if not data:
                return


def _cut(texts: Iterator[str], separator: str | None) -> Iterator[str]:
    """Joins pieces of a stream and cuts them into documents at `separator`, or where they grow too long."""
    rest = ""
    for text in texts:
        rest += text
        if separator:
            *whole, rest = rest.split(separator)
            yield from (document for document in whole if document.strip())
        while len(rest) > MAX_DOCUMENT_BYTES:
            line_end = rest.rfind("\n", MAX_DOCUMENT_BYTES // 2, MAX_DOCUMENT_BYTES) + 1
            end = line_end or MAX_DOCUMENT_BYTES
            yield rest[:end]
            rest = rest[end:]
    if rest and (not separator or rest.strip()):
        yield rest


def _field(row: object, text_field: str, where: str, bad_input: BadInput) -> str | None:
    """Returns the row's text, or None after rejecting it."""
    if not isinstance(row, dict):
        bad_input.reject(where, f"it holds a JSON {type(row).__name__}, not an object with a text field")
        return None
    if text_field not in row:
        fields = ", ".join(repr(key) for key in row) or "none"
        bad_input.reject(where, f"no field {text_field!r}; its fields are {fields} (set text_field)")
        return None
    text = row[text_field]
    if not isinstance(text, str):
        bad_input.reject(where, f"the field {text_field!r} holds {type(text).__name__}, not text")
        return None
    return text


def json_lines(path: Path, name: str, bad_input: BadInput) -> Iterator[tuple[int, Any]]:
    """Yields the values of a file with one JSON value a line, and their lines' numbers from 1; blank lines are none."""
    with open_bytes(path) as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES):
            number += 1
            where = f"{name}:{number}"
            if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
                while line and not line.endswith(b"\n"):
                    line = file.readline(MAX_LINE_BYTES)
                bad_input.reject(where, f"the line is longer than {MAX_LINE_BYTES} bytes")
                continue
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode())
            except UnicodeDecodeError:
                bad_input.reject(where, "the line is not valid UTF-8")
                continue
            except (ValueError, RecursionError) as error:  # ValueError: also a whole number of thousands of digits
                bad_input.reject(where, f"the line is not JSON ({error})")
                continue
            yield number, row


def _read_jsonl(path: Path, name: str, bad_input: BadInput, text_field: str) -> Iterator[Document]:
    for number, row in json_lines(path, name, bad_input):
        text = _field(row, text_field, f"{name}:{number}", bad_input)
        if text is not None:
            yield Document(text, name, number)


def _read_json(path: Path, name: str, bad_input: BadInput, text_field: str) -> Iterator[Document]:
    """Yields the records of an array, of the only array in an object (`{"data": [...]}`), or of JSON lines."""
    with open_bytes(path) as file:
        if _holds_lines(file.readline(MAX_LINE_BYTES), file):
            yield from _read_jsonl(path, name, bad_input, text_field)
            return
    with open_bytes(path) as file:
        data = file.read(MAX_JSON_BYTES + 1)
    if len(data) > MAX_JSON_BYTES:
        bad_input.reject(name, f"it is JSON of more than {MAX_JSON_BYTES} bytes; write one object a line, as .jsonl")
        return
    if not data.strip():
        return
    try:
        value = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        bad_input.reject(name, "it is not valid UTF-8")
        return
    except (ValueError, RecursionError) as error:
        bad_input.reject(name, f"it is not JSON ({error}); name it .txt to take it as plain text")
        return
    if isinstance(value, dict):
        lists = [part for part in value.values() if isinstance(part, list)]
        value = [value] if text_field in value else lists[0] if len(lists) == 1 else value
    if not isinstance(value, list):
        bad_input.reject(
            name,
            f"it holds a JSON {type(value).__name__}, not an array of records, and no field {text_field!r} (set "
            "text_field, or name it .txt to take it as plain text)",
        )
        return
    for record, row in enumerate(value, start=1):
        text = _field(row, text_field, f"{name}:{record}", bad_input)
        if text is not None:
            yield Document(text, name, record)


def _holds_lines(first: bytes, rest: BinaryIO) -> bool:
    """Returns whether a file with this first line is JSON lines under another name."""
    if not first.lstrip(b" \t\r\n" + codecs.BOM_UTF8).startswith(b"{"):
        return False
    try:
        if not isinstance(json.loads(first.decode("utf-8-sig")), dict):
            return False
    except (ValueError, RecursionError):
        return False
    return any(line.strip() for line in iter(lambda: rest.readline(MAX_LINE_BYTES), b""))


def _read_csv(path: Path, name: str, bad_input: BadInput, text_field: str, delimiter: str) -> Iterator[Document]:
    csv.field_size_limit(MAX_LINE_BYTES)
    with open_bytes(path) as file:
        reader = csv.DictReader(io.TextIOWrapper(file, "utf-8-sig", newline=""), delimiter=delimiter)
        try:
            if reader.fieldnames is None:
                return
            if text_field not in reader.fieldnames:
                columns = ", ".join(map(repr, reader.fieldnames))
                bad_input.reject(f"{name}:1", f"no column {text_field!r}; its columns are {columns} (set text_field)")
                return
            for row in reader:
                text = _field(row, text_field, f"{name}:{reader.line_num}", bad_input)
                if text is not None:
                    yield Document(text, name, reader.line_num)
        except UnicodeDecodeError:
            bad_input.reject(name, f"it is not valid UTF-8 (after line {reader.line_num})")
        except csv.Error as error:
            bad_input.reject(f"{name}:{reader.line_num}", f"it is no CSV ({error})")


def _read_parquet(path: Path, name: str, bad_input: BadInput, text_field: str) -> Iterator[Document]:
    import pyarrow
    import pyarrow.parquet

    read = 0
    try:
        names = pyarrow.parquet.read_schema(path).names
        if text_field not in names:
            columns = ", ".join(map(repr, names))
            bad_input.reject(name, f"no column {text_field!r}; its columns are {columns} (set text_field)")
            return
        for batch in parquet_batches(path, [text_field]):
            for value in batch.column(0):
                read += 1
                where = f"{name}:{read}"
                try:
                    row = {text_field: value.as_py()}
                except UnicodeDecodeError:
                    bad_input.reject(where, "the row is not valid UTF-8")
                    continue
                text = _field(row, text_field, where, bad_input)
                if text is not None:
                    yield Document(text, name, read)
    except (pyarrow.ArrowException, OSError) as error:
        bad_input.reject(name, f"it is no readable parquet file ({str(error).splitlines()[0]})")
