"""Read the records of one file: plain text, JSON, JSON lines, CSV, TSV, Parquet or Arrow, optionally compressed.

The suffix (before that of a compression) determines the format; files with other suffixes are plain text, whose content
is one record (or several, if a separator splits it). The same file gives the same records to pretraining, `prepare`,
fine-tuning, benchmarks, evaluation and prompts. The position of a record is its line in JSON lines, CSV and TSV, and
its number from 1 in other formats.

There are two kinds of bad input. A bad *record* (a line that is not JSON, a row with too few cells) is reported to
`BadInput` individually. A *file* that cannot be read to its end (damaged compression, bytes that are invalid in its
encoding, an unclosed quote, a damaged table) raises `UnreadableFile` internally, and none of its records is used: with
`on_bad_input: skip`, such a file is first read once to check that it is complete before its records are yielded.

Memory is bounded by a line, a batch of rows or `MAX_DOCUMENT_BYTES` of text; only a `.json` array is parsed as a whole.
"""

import codecs
import contextlib
import csv
import io
import json
import re
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from lit_gpt.checks import check_one_of
from lit_gpt.data.records.compression import DAMAGED, inner_suffix, is_compressed, open_bytes
from lit_gpt.data.records.encoding import DETECT, UTF8, Encoding, check_encoding, choose_encoding
from lit_gpt.data.records.record import BadInput, Record, UnreadableFile, no_field
from lit_gpt.errors import UserError

MAX_DOCUMENT_BYTES = 16 << 20
"""A plain text file longer than this becomes several records, split at line ends (a whole corpus dumped to one `.txt`
fits neither in memory nor in one document)."""

MAX_LINE_BYTES = 64 << 20
"""A longer line of JSON lines is rejected rather than loaded."""

MAX_JSON_BYTES = 256 << 20
"""A larger JSON array is rejected: parsing takes several times its size in memory."""

BATCH_BYTES = 8 << 20
"""Maximum size in bytes of a batch of Parquet rows."""

_MAX_ROWS = 256
_WHOLE_FILE_BYTES = 4 << 20  # records of smaller files are buffered until the end of the file rather than read twice

Quoting = Literal["strict", "none"]

JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
TABLE_SUFFIXES = (*JSON_SUFFIXES, ".csv", ".tsv", ".parquet", ".arrow", ".feather")

# Fields that commonly contain the rows of an exported file, next to other fields: {"version": 1, "data": [...]}.
_ROWS_NAMES = frozenset((
    "data", "rows", "examples", "instances", "items", "records", "documents", "questions", "train", "validation", "val",
    "test",
))  # fmt: skip
# Fields of a single row that contain lists of objects: {"messages": [...]} is a row, not a file of messages.
_ROW_LISTS = frozenset((
    "messages", "conversations", "conversation", "turns", "prompt", "completion", "chosen", "rejected", "tools",
    "functions", "history",
))  # fmt: skip


@dataclass(frozen=True)
class FileFormat:
    """File format options that the suffix does not determine.

    Args:
        encoding: `utf-8` (or UTF-16 and UTF-32 with a byte order mark), the name of another encoding such as `latin-1`,
            or `detect`, which chooses one for each file that is not UTF-8 and reports it.
        quoting: Quoting of CSV and TSV. `strict`: a cell may be in double quotes, and an unclosed quote is an error.
            `none`: quotes are ordinary characters, and every line is a row.
        delimiter: Delimiter of CSV and TSV cells; null: a comma for .csv, a tab for .tsv.
        column_names: Column names for CSV and TSV files without a header line; null: the first line is the header.
    """

    encoding: str = UTF8
    quoting: Quoting = "strict"
    delimiter: str | None = None
    column_names: list[str] | None = None

    def __post_init__(self) -> None:
        check_encoding(self.encoding)
        check_one_of("quoting", self.quoting, ("strict", "none"))
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter in '"\r\n'):
            raise UserError(
                f"delimiter is {self.delimiter!r}; it must be one character other than a quote or a line end"
            )
        if self.column_names is not None and (twice := _twice(self.column_names)):
            raise UserError(f"column_names has {twice!r} twice; each column needs a different name")


def read_records(
    path: Path,
    name: str,
    bad_input: BadInput,
    format: FileFormat | None = None,
    columns: Sequence[str] | None = None,
    document_separator: str | None = None,
    text_field: str = "text",
) -> Iterator[Record]:
    """Yield the records of one file.

    Args:
        path: The file.
        name: Source name of the records.
        bad_input: Collects input that cannot be read.
        format: File format options.
        columns: Fields that are needed; None reads all. A table that lacks one is rejected as a whole, and only these
            columns of Parquet and Arrow files are read. JSON records keep all their fields.
        document_separator: String at which plain text is split into records; None does not split it. A line end in it
            also matches Windows line ends.
        text_field: Field name for the text of a plain text file.
    """
    yield from _complete(_File(path, name, format or FileFormat(), document_separator, text_field), bad_input, columns)


def read_text(path: Path, name: str, bad_input: BadInput, format: FileFormat) -> Iterator[Record]:
    """Yield a file's content as plain text regardless of its suffix; see `read_records` for the arguments."""
    yield from _complete(_File(path, name, format, suffix=""), bad_input, None)


def _complete(file: "_File", bad_input: BadInput, columns: Sequence[str] | None) -> Iterator[Record]:
    """Yield the records of a file; with `skip`, only if the file can be read to its end."""
    try:
        if bad_input.mode == "error" or not file.can_fail_late():
            yield from _checked(file, bad_input, columns)
        elif file.is_small():
            own = BadInput("skip")
            records = list(_checked(file, own, columns))
            bad_input.take(own)
            yield from records
        else:
            # Read it twice: the first time only to check that it can be read to its end.
            deque(_checked(file, BadInput("skip"), columns), maxlen=0)
            yield from _checked(file, bad_input, columns)
    except UnreadableFile as error:
        bad_input.reject(error.where, error.problem)


class _File:
    """A file to read: its format, its encoding (determined on first use) and its bytes.

    Args:
        path: Path of the file.
        name: Name of the file in messages.
        format: File format options.
        separator: String at which plain text is split.
        text_field: Field name for the text of plain text.
        suffix: Suffix that determines the format; None: that of the path.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        format: FileFormat,
        separator: str | None = None,
        text_field: str = "text",
        suffix: str | None = None,
    ) -> None:
        self.path = path
        self.name = name
        self.format = format
        self.separator = separator
        self.text_field = text_field
        self.suffix = inner_suffix(path) if suffix is None else suffix
        self.is_compressed = is_compressed(path)
        self._encoding: Encoding | None = None

    def can_fail_late(self) -> bool:
        """Return whether an error may occur after some records of the file were read."""
        if self.is_compressed or self.suffix not in JSON_SUFFIXES or self.format.encoding != UTF8:
            return True
        # JSON in UTF-8 is parsed as a whole or line by line: a bad line does not affect the others.
        with contextlib.suppress(UnreadableFile, OSError):
            return self.encoding(BadInput("skip")).name != UTF8
        return False  # it cannot be opened at all

    def is_small(self) -> bool:
        """Return whether all records of the file fit in memory; compressed files and tables may expand greatly."""
        with contextlib.suppress(OSError):
            is_text = not self.is_compressed and self.suffix not in (".parquet", ".arrow", ".feather")
            return is_text and self.path.stat().st_size <= _WHOLE_FILE_BYTES
        return True  # it cannot be read at all

    def encoding(self, bad_input: BadInput, opened: BinaryIO | None = None) -> Encoding:
        """Return the file's encoding.

        Args:
            bad_input: Records an encoding that the user has not named.
            opened: The content, opened and not yet read, to avoid opening it again.

        Raises:
            UnreadableFile: if the encoding is to be detected and the file is not text.
        """
        if self._encoding is None:
            head = opened.peek(4)[:4] if isinstance(opened, io.BufferedReader) else b""
            if len(head) < 4:
                with open_bytes(self.path) as file:
                    head = file.read(4)
            found = choose_encoding(head, self.format.encoding, lambda: open_bytes(self.path))
            if found is None:
                raise UnreadableFile(self.name, "it is binary, or text whose encoding could not be detected")
            self._encoding = found
        if self._encoding.name != UTF8 and self.format.encoding in (UTF8, DETECT):
            bad_input.note_encoding(self.name, self._encoding)
        return self._encoding

    def record_encoding(self) -> str | None:
        """Return the encoding to note in records, or None for UTF-8."""
        return None if self._encoding is None or self._encoding.name == UTF8 else self._encoding.name

    def open_utf8(self, bad_input: BadInput) -> BinaryIO:
        """Open the content as UTF-8 bytes (possibly with a byte order mark)."""
        raw = open_bytes(self.path)
        try:
            encoding = self.encoding(bad_input, raw)
        except BaseException:
            raw.close()
            raise
        return raw if encoding.name == UTF8 else cast(BinaryIO, io.BufferedReader(_Transcoder(raw, encoding.name)))


class _Transcoder(io.RawIOBase):
    """Transcodes a byte stream to UTF-8, so that each format needs only one reader."""

    def __init__(self, file: BinaryIO, encoding: str) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._ready = memoryview(b"")
        self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready and not self._ended:
            data = self._file.read(1 << 18)
            self._ended = not data
            self._ready = memoryview(self._decoder.decode(data, final=not data).encode("utf-8", "surrogatepass"))
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def _checked(file: _File, bad_input: BadInput, columns: Sequence[str] | None) -> Iterator[Record]:
    """Yield the records of a file; any error that ends its reading becomes `UnreadableFile`."""
    reader = _READERS.get(file.suffix, _read_text)
    try:
        yield from reader(file, bad_input, columns)
    except DAMAGED as error:
        raise UnreadableFile(file.name, f"the compressed data are damaged ({error})") from error
    except UnicodeDecodeError as error:
        raise UnreadableFile(file.name, _not_text(file.encoding(bad_input).title)) from error
    except PermissionError as error:
        raise UnreadableFile(file.name, "permission denied") from error
    except OSError as error:
        raise UnreadableFile(file.name, f"it cannot be read ({error.strerror or error})") from error


def _not_text(title: str, near: str = "") -> str:
    remedy = "; if it is text in another encoding, set encoding to its name, or encoding: detect"
    return f"it is not valid {title}{near}{remedy}"


# ---- plain text -----------------------------------------------------------------------------------------------------


def _read_text(file: _File, bad_input: BadInput, columns: Sequence[str] | None) -> Iterator[Record]:
    parts = _cut(_decoded(file, bad_input), file.separator)
    first = next(parts, None)
    if first is None:
        return
    second = next(parts, None)
    field, encoding = file.text_field, file.record_encoding()
    if second is None:
        yield Record({field: first}, file.name, 0, encoding=encoding)
        return
    yield Record({field: first}, file.name, 1, encoding=encoding)
    yield Record({field: second}, file.name, 2, encoding=encoding)
    for record, text in enumerate(parts, start=3):
        yield Record({field: text}, file.name, record, encoding=encoding)


def _decoded(file: _File, bad_input: BadInput) -> Iterator[str]:
    """Yield a text file's content in chunks of at most `MAX_DOCUMENT_BYTES`."""
    position = 0
    with open_bytes(file.path) as stream:
        encoding = file.encoding(bad_input, stream)
        decoder = codecs.getincrementaldecoder("utf-8-sig" if encoding.name == UTF8 else encoding.name)()
        while True:
            data = stream.read(MAX_DOCUMENT_BYTES)
            if encoding.name == UTF8 and b"\0" in data:
                raise UnreadableFile(file.name, _binary(file))
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                near = f" (near byte {position + error.start})"
                raise UnreadableFile(file.name, _not_text(encoding.title, near)) from error
            if encoding.name != UTF8 and "\0" in text:
                raise UnreadableFile(file.name, f"it is binary, not {encoding.title} text (a zero character)")
            if position == 0:
                text = text.removeprefix("\ufeff")  # byte order mark of UTF-16 with an explicit byte order
            position += len(data)
            if text:
                yield text
            if not data:
                return


# First bytes of files that are often named as text or with an unknown suffix.
_MAGIC = (
    (b"\x1f\x8b", "gzip data; name it .gz"),
    (b"\x28\xb5\x2f\xfd", "zstandard data; name it .zst"),
    (b"BZh", "bzip2 data; name it .bz2"),
    (b"\xfd7zXZ\0", "xz data; name it .xz"),
    (b"PK\x03\x04", "a zip archive; unpack it first"),
    (b"PAR1", "a Parquet file; name it .parquet"),
    (b"ARROW1", "an Arrow file; name it .arrow"),
    (b"%PDF", "a PDF; extract its text first"),
    (b"SQLite format 3\0", "a SQLite database; export its tables as .jsonl or .parquet"),
)


def _binary(file: _File) -> str:
    with open_bytes(file.path) as stream:
        head = stream.read(16)
    for magic, what in _MAGIC:
        if head.startswith(magic):
            return f"it is binary, not text: {what}"
    even, odd = head[::2].count(0), head[1::2].count(0)
    if max(even, odd) >= max(2, len(head) // 4) and min(even, odd) == 0:  # every other byte is zero in Western text
        return "it is binary, or UTF-16 without a byte order mark; in that case set encoding: utf-16-le or utf-16-be"
    return "it is binary, not text (a zero byte)"


def _cut(texts: Iterator[str], separator: str | None) -> Iterator[str]:
    """Join chunks of a stream and split them into documents at `separator`, or where they become too long."""
    pattern = None
    if separator and "\n" in separator.replace("\r\n", ""):
        pattern = re.compile(re.escape(separator).replace(re.escape("\n"), "\r?\n"))
    rest = ""
    for text in texts:
        rest += text
        if separator:
            # The pattern would suffice, but a plain split is ten times as fast.
            *whole, rest = pattern.split(rest) if pattern and "\r\n" in rest else rest.split(separator)
            yield from (document for document in whole if document.strip())
        while len(rest) > MAX_DOCUMENT_BYTES:
            line_end = rest.rfind("\n", MAX_DOCUMENT_BYTES // 2, MAX_DOCUMENT_BYTES) + 1
            end = line_end or MAX_DOCUMENT_BYTES
            yield rest[:end]
            rest = rest[end:]
    if rest and (not separator or rest.strip()):
        yield rest


# ---- JSON -----------------------------------------------------------------------------------------------------------


def _read_json_lines(file: _File, bad_input: BadInput, columns: Sequence[str] | None) -> Iterator[Record]:
    """Yield one record per line, split only at line feeds (not at U+2028 in a string); blank lines are ignored."""
    with file.open_utf8(bad_input) as stream:
        encoding, name = file.record_encoding(), file.name
        number = 0
        while line := stream.readline(MAX_LINE_BYTES):
            number += 1
            if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
                while line and not line.endswith(b"\n"):
                    line = stream.readline(MAX_LINE_BYTES)
                bad_input.reject(f"{name}:{number}", f"the line is longer than {MAX_LINE_BYTES} bytes")
                continue
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if not line.strip():
                continue
            try:
                values = json.loads(line.decode())
            except UnicodeDecodeError:
                bad_input.reject(f"{name}:{number}", "the line is not valid UTF-8")
                continue
            except (
                ValueError,
                RecursionError,
            ) as error:  # ValueError is also raised for integers of thousands of digits
                bad_input.reject(f"{name}:{number}", f"the line is not JSON ({error})")
                continue
            if isinstance(values, dict):
                yield Record(values, name, number, encoding=encoding)
            else:
                bad_input.reject(f"{name}:{number}", f"it is a JSON {type(values).__name__}, not an object")


def _read_json(file: _File, bad_input: BadInput, columns: Sequence[str] | None) -> Iterator[Record]:
    """Yield the records of a `.json` file: those of an array, of JSON lines, or a single object."""
    if _starts_with_json_lines(file, bad_input):
        yield from _read_json_lines(file, bad_input, columns)
        return
    with file.open_utf8(bad_input) as stream:
        data = stream.read(MAX_JSON_BYTES + 1)
    if len(data) > MAX_JSON_BYTES:
        raise UnreadableFile(
            file.name, f"it is JSON of more than {MAX_JSON_BYTES} bytes; write one object per line, as .jsonl"
        )
    text = data.decode("utf-8-sig")
    if not text.strip():
        return
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        if _contains_json_line(text):  # JSON lines with a damaged first line
            yield from _read_json_lines(file, bad_input, columns)
            return
        raise UnreadableFile(file.name, f"it is not JSON ({error}); name it .txt to take it as plain text") from error
    rows = _rows_of(value) if isinstance(value, dict) else value
    if not isinstance(rows, list):
        raise UnreadableFile(file.name, f"it is a JSON {type(value).__name__}, not an array of objects")
    encoding = file.record_encoding()
    for record, row in enumerate(rows, start=1):
        if isinstance(row, dict):
            yield Record(row, file.name, record, encoding=encoding)
        else:
            bad_input.reject(f"{file.name}:{record}", f"it is a JSON {type(row).__name__}, not an object")


def _rows_of(value: dict[str, Any]) -> list[Any]:
    """Return the rows of a file that is one object: those in a usual field, or the object itself."""
    lists = [
        key for key, part in value.items() if isinstance(part, list) and all(isinstance(row, dict) for row in part)
    ]
    if len(lists) == 1:
        (key,) = lists
        if key.lower() in _ROWS_NAMES or (len(value) == 1 and key.lower() not in _ROW_LISTS):
            rows: list[Any] = value[key]
            return rows
    return [value]


def _starts_with_json_lines(file: _File, bad_input: BadInput) -> bool:
    """Return whether the first line is a complete object followed by others, i.e. JSON lines with a .json suffix."""
    with file.open_utf8(bad_input) as stream:
        start = stream.read(1 << 12).removeprefix(codecs.BOM_UTF8).lstrip()
        if start and not start.startswith(b"{"):  # an array may be one line of many megabytes
            return False
    with file.open_utf8(bad_input) as stream:
        first = stream.readline(MAX_LINE_BYTES).removeprefix(codecs.BOM_UTF8)
        while first and not first.strip():
            first = stream.readline(MAX_LINE_BYTES)
        others = any(line.strip() for line in iter(lambda: stream.readline(MAX_LINE_BYTES), b""))
        return others and _is_object(first)


def _contains_json_line(text: str) -> bool:
    return text.lstrip().startswith("{") and any(_is_object(line) for line in text.split("\n"))


def _is_object(line: str | bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


# ---- CSV and TSV ----------------------------------------------------------------------------------------------------


def _read_csv(file: _File, bad_input: BadInput, columns: Sequence[str] | None) -> Iterator[Record]:
    """Yield one record per row; its position is the line that it ends on."""
    delimiter = file.format.delimiter or ("\t" if file.suffix == ".tsv" else ",")
    with file.open_utf8(bad_input) as stream:
        lines = io.TextIOWrapper(stream, "utf-8-sig", newline="")
        rows = (
            _unquoted(lines, delimiter) if file.format.quoting == "none" else _quoted(lines, delimiter, file, bad_input)
        )
        encoding, name = file.record_encoding(), file.name
        names: Sequence[str] | None = file.format.column_names
        for number, row in rows:
            if names is None:
                names = row
                _check_columns(names, columns, f"{name}:{number}")
                continue
            if len(row) != len(names):
                more = "more" if len(row) > len(names) else "fewer"
                remedy = "; are cells that contain the delimiter quoted?" if more == "more" else ""
                bad_input.reject(
                    f"{name}:{number}",
                    f"it has {more} cells ({len(row)}) than the header has columns ({len(names)}){remedy}",
                )
                continue
            yield Record(dict(zip(names, row, strict=True)), name, number, encoding=encoding)


def _quoted(
    lines: io.TextIOWrapper, delimiter: str, file: _File, bad_input: BadInput
) -> Iterator[tuple[int, list[str]]]:
    """Yield (line, cells); cells in double quotes may contain line ends and doubled quotes."""
    csv.field_size_limit(MAX_LINE_BYTES)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        first = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            last = max(reader.line_num, first)
            span = f"line {first}" if last == first else f"lines {first} to {last}"
            problem = f"{span}: it is not CSV ({error}); is each quote closed? (quoting: none takes them literally)"
            if "unexpected end" in str(error):  # all rows after the quote are swallowed by its cell
                raise UnreadableFile(f"{file.name}:{first}", problem) from error
            bad_input.reject(f"{file.name}:{first}", problem)
            continue
        if row is None:
            return
        if row:  # skip blank lines
            yield reader.line_num, row


def _unquoted(lines: io.TextIOWrapper, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (line, cells) of a file in which every line is a row."""
    lines.reconfigure(newline="\n")
    for number, line in enumerate(lines, start=1):
        line = line.removesuffix("\n").removesuffix("\r")
        if line:
            yield number, line.split(delimiter)


def _check_columns(names: Sequence[str], wanted: Sequence[str] | None, where: str) -> None:
    if twice := _twice(names):
        raise UnreadableFile(where, f"two columns are named {twice!r}")
    for column in wanted or ():
        if column not in names:
            raise UnreadableFile(where, no_field(column, names, "column"))


def _twice(names: Sequence[str]) -> str | None:
    return next((name for position, name in enumerate(names) if name in names[:position]), None)


# ---- Parquet and Arrow ----------------------------------------------------------------------------------------------


def _read_parquet(file: _File, bad_input: BadInput, columns: Sequence[str] | None) -> Iterator[Record]:
    import pyarrow

    with _seekable(file.path) as source, _named_errors(file.name, "Parquet"):
        with pyarrow.parquet.ParquetFile(source) as opened:
            names = opened.schema_arrow.names
        _check_columns(names, columns, file.name)
        yield from _rows(parquet_batches(source, columns), file.name, bad_input)


def _read_arrow(file: _File, bad_input: BadInput, columns: Sequence[str] | None) -> Iterator[Record]:
    """Yield the rows of an Arrow stream (what `datasets` writes) or file (Feather)."""
    import pyarrow

    with _seekable(file.path) as source, _named_errors(file.name, "Arrow"):
        data = pyarrow.memory_map(str(source)) if isinstance(source, Path) else pyarrow.PythonFile(source)
        with data:
            is_file = data.read(6) == b"ARROW1"
            data.seek(0)
            reader = pyarrow.ipc.open_file(data) if is_file else pyarrow.ipc.open_stream(data)
            names = reader.schema.names
            _check_columns(names, columns, file.name)
            batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file else iter(reader)
            wanted = list(columns) if columns is not None else names
            yield from _rows((batch.select(wanted) for batch in batches), file.name, bad_input)


@contextlib.contextmanager
def _named_errors(name: str, kind: str) -> Iterator[None]:
    import pyarrow
    import pyarrow.ipc
    import pyarrow.parquet

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, PermissionError | FileNotFoundError):
            raise
        raise UnreadableFile(name, f"it is not a readable {kind} file ({str(error).splitlines()[0]})") from error


@contextlib.contextmanager
def _seekable(path: Path) -> Iterator[Path | BinaryIO]:
    """Yield a seekable file, which these formats need; a compressed one is decompressed to a temporary copy."""
    if not is_compressed(path):
        open(path, "rb").close()  # report missing permission as for any other file
        yield path
        return
    with tempfile.TemporaryFile() as copy, open_bytes(path) as source:
        shutil.copyfileobj(source, copy, 1 << 20)
        copy.seek(0)
        yield cast(BinaryIO, copy)


def _rows(batches: Iterator[Any], name: str, bad_input: BadInput) -> Iterator[Record]:
    record = 0
    for batch in batches:
        names = batch.schema.names
        values = batch.columns
        for row in range(batch.num_rows):
            record += 1
            try:
                # Convert value by value: a column that repeats a long text is small until it becomes Python objects.
                yield Record(
                    {key: column[row].as_py() for key, column in zip(names, values, strict=True)}, name, record
                )
            except UnicodeDecodeError:
                bad_input.reject(f"{name}:{record}", "the row is not valid UTF-8")


def parquet_batches(source: Any, columns: Sequence[str] | None = None) -> Iterator[Any]:
    """Yield the `pyarrow.RecordBatch`es of a Parquet file in order, with bounded bytes for rows of any size.

    Two kinds of file are small on disk and large in memory: rows of megabytes, of which a fixed number can be a
    gigabyte; and columns that repeat a long text, which Parquet stores once (in its dictionary) and Arrow would copy
    for each row. Therefore the number of rows is derived from the sizes that the file declares, and dictionaries are
    kept.

    Args:
        source: Path of the file, or an open binary file.
        columns: Columns to read; None reads all.

    Raises:
        pyarrow.ArrowException: if it is damaged or not a Parquet file.
    """
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(source) as file:
        wanted = None if columns is None else list(columns)
        names = [name for name in (wanted or file.schema_arrow.names) if name in file.schema_arrow.names]
        repeated = [name for name in names if _is_text(file.schema_arrow.field(name).type)]
        metadata = file.metadata
        positions = [
            position
            for position in range(metadata.num_columns)
            if metadata.schema.column(position).path.partition(".")[0] in names
        ]
    # A buffered stream decodes page by page instead of loading whole row groups.
    with pyarrow.parquet.ParquetFile(source, buffer_size=1 << 20, pre_buffer=False, read_dictionary=repeated) as file:
        for group in range(metadata.num_row_groups):
            rows = metadata.row_group(group)
            size = sum(rows.column(position).total_uncompressed_size for position in positions)
            batch_rows = max(1, min(_MAX_ROWS, BATCH_BYTES * rows.num_rows // max(size, 1)))
            yield from file.iter_batches(batch_size=batch_rows, row_groups=[group], columns=wanted)


def _is_text(kind: Any) -> bool:
    import pyarrow

    return bool(pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind))


_Reader = Callable[[_File, BadInput, Sequence[str] | None], Iterator[Record]]
_READERS: dict[str, _Reader] = {
    ".json": _read_json,
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
    ".feather": _read_arrow,
}
