"""Records and documents that sources yield, and the handling of input that cannot be used."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Any, Literal

from lit_gpt.data.records.encoding import Encoding
from lit_gpt.errors import UserError
from lit_gpt.pages.text import counted, visible

SplitName = Literal["train", "val", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "val", "test")
OnBadInput = Literal["error", "skip"]


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a file or dataset: a row of a table, an object of a JSON file, or a plain text.

    Attributes:
        values: Fields of the record.
        source: File (relative to the path that the user named) or dataset that it came from.
        record: Line or row in that source, counted from 1; 0 if the source is a single text.
        split: Split that it is assigned to regardless of its hash; None: that of its source, or determined by a hash.
        split_key: Text whose hash determines the split; None: the record's text, or the part that the encoder chooses,
            such as the prompt. Records that belong together, such as those from one file, share a key.
        encoding: Encoding of its file, if that is not UTF-8.
    """

    values: dict[str, Any]
    source: str
    record: int = 0
    split: SplitName | None = None
    split_key: str | None = None
    encoding: str | None = None

    @property
    def where(self) -> str:
        """`source:record`, for messages."""
        return f"{self.source}:{self.record}" if self.record else self.source


@dataclass(frozen=True, slots=True)
class Document:
    """One text that forms a unit of training data: a record seen through a `TextField`.

    Attributes:
        text: The text itself.
        source: File (relative to the path that the user named) or dataset that it came from.
        record: Line or row in that source, counted from 1; 0 if the source is a single document.
        metadata: Further fields of the record (URL, language, ...), as JSON values; `prepare` stores them with the
            text.
    """

    text: str
    source: str
    record: int = 0
    metadata: dict[str, Any] | None = None

    @property
    def where(self) -> str:
        """`source:record`, for messages."""
        return f"{self.source}:{self.record}" if self.record else self.source


class TextField:
    """Extracts the text of records: one field, or a template of several.

    Args:
        text_field: Name of a field, or a template with fields in braces: `"{question} {answer}"`.
        keep: Additional fields that become a document's metadata; None keeps all.

    Raises:
        UserError: if a template is not valid.

    Example:
        >>> record = Record({"question": "2 + 2?", "answer": "4", "id": 7}, "a.jsonl", 1)
        >>> TextField("{question} {answer}").document(record, BadInput()).text
        '2 + 2? 4'
    """

    def __init__(self, text_field: str, keep: Sequence[str] | None = ()) -> None:
        self.text_field = text_field
        self._keep = keep
        try:
            found = list(Formatter().parse(text_field))
            if any(spec or conversion or name == "" for _, name, spec, conversion in found):
                raise ValueError("braces must contain exactly one field name")
            parts = [(literal, name) for literal, name, _, _ in found]
        except ValueError as error:
            raise UserError(
                f"text_field {text_field!r} is not a valid template ({error}); write each field as {{name}}"
            ) from error
        self._template = parts if any(name for _, name in parts) else None
        self.fields: tuple[str, ...] = (text_field,) if self._template is None else tuple(n for _, n in parts if n)
        """Fields that the text is made of."""

    @property
    def columns(self) -> list[str] | None:
        """All fields that are needed; None means every field."""
        return None if self._keep is None else list(dict.fromkeys([*self.fields, *self._keep]))

    def document(self, record: Record, bad_input: "BadInput") -> Document | None:
        """Return the record's text, or None after rejecting the record."""
        values = record.values
        texts = []
        for name in self.fields:
            text = values.get(name)
            if not isinstance(text, str):
                # The spelling of a number is unambiguous, so it may be part of a template; as the whole text it is a
                # mistake.
                if self._template is None or not isinstance(text, int | float) or isinstance(text, bool):
                    bad_input.reject(record.where, _missing(values, name))
                    return None
                text = str(text)
            texts.append(text)
        if self._template is None:
            text = texts[0]
        else:
            found = iter(texts)
            text = "".join(literal + (next(found) if name else "") for literal, name in self._template)
        metadata: dict[str, Any] | None = None
        if self._keep is None:
            metadata = {name: value for name, value in values.items() if name not in self.fields} or None
        elif self._keep:
            metadata = {name: _plain(values.get(name)) for name in self._keep}
        if record.encoding is not None:
            metadata = {**(metadata or {}), "encoding": record.encoding}
        return Document(text, record.source, record.record, metadata)


def _plain(value: Any) -> Any:
    """Return a table value as a JSON value: a struct as an object, a date as text."""
    if isinstance(value, dict):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _missing(values: dict[str, Any], name: str) -> str:
    if name in values:
        return f"the field {name!r} is {type(values[name]).__name__}, not text"
    return no_field(name, values)


def no_field(name: str, names: Any, kind: str = "field") -> str:
    """Return the message for a record or table that lacks a field."""
    return f"no {kind} {name!r}; its {kind}s are {', '.join(map(repr, names)) or 'none'} (set text_field)"


class BadInput:
    """Handles files or records that cannot be read: raises an error that names them, or counts and skips them.

    Args:
        mode: `error` raises at the first; `skip` counts all and remembers the first hundred by name.
        remedy: Remedy to suggest in error messages.

    Attributes:
        num_skipped: Number of files and records that were skipped.
        named: The first of them, each with the reason.
        encodings: Detected encoding other than UTF-8 → files that were read in it.

    Raises:
        UserError: if the mode has another value.
    """

    MAX_NAMED = 100

    def __init__(self, mode: OnBadInput = "error", remedy: str = "fix or remove it, or set on_bad_input: skip") -> None:
        if mode not in ("error", "skip"):
            raise UserError(f"on_bad_input is {mode!r}; it can be error or skip")
        self.mode = mode
        self.remedy = remedy
        self.num_skipped = 0
        self.named: list[str] = []
        self.encodings: dict[str, set[str]] = {}
        self._first_read: dict[str, str] = {}

    def reject(self, where: str, problem: str) -> None:
        """Reject the input at `where`.

        Raises:
            UserError: if `mode` is `error`.
        """
        named = visible(f"{where}: {problem}")  # a file name may contain terminal escape sequences
        if self.mode == "error":
            raise UserError(f"{named}; {self.remedy}")
        self._add(1, [named])

    def note_encoding(self, name: str, encoding: Encoding) -> None:
        """Record that the file `name` was read in an encoding other than UTF-8."""
        self.encodings.setdefault(encoding.title, set()).add(name)
        self._first_read.setdefault(encoding.title, visible(f"{name} as {encoding.describe()}"))

    def encoding_notes(self) -> list[str]:
        """Return a line for each encoding other than UTF-8 in which files were read."""
        counts = {name: len(files) - 1 for name, files in self.encodings.items()}
        return [
            f"read {first}" + (f" and {counts[name]:,} more files as {name}" if counts[name] else "")
            for name, first in self._first_read.items()
        ]

    def take(self, other: "BadInput") -> None:
        """Add the counts of another instance."""
        self._add(other.num_skipped, other.named)
        for name, files in other.encodings.items():
            self.encodings.setdefault(name, set()).update(files)
        self._first_read = other._first_read | self._first_read

    def _add(self, count: int, named: list[str]) -> None:
        self.num_skipped += count
        self.named += named[: max(0, self.MAX_NAMED - len(self.named))]


def skipped_line(num_skipped: int, named: Sequence[str]) -> str:
    """Return how many records were skipped, and the first five by name; empty if none was."""
    more = f" and {num_skipped - 5:,} more" if num_skipped > 5 else ""
    skipped = f"skipped {counted(num_skipped, 'record')} that could not be read: {'; '.join(named[:5])}{more}"
    return skipped if num_skipped else ""


class UnreadableFile(Exception):  # noqa: N818 (a file's state; readers raise it, `read_records` catches it)
    """Raised for a file that cannot be read to its end, so that none of its records may be used.

    Attributes:
        where: File, with the line or row if known.
        problem: Description of the problem.
    """

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(f"{where}: {problem}")
        self.where = where
        self.problem = problem


def documents_of(records: Iterator[Record], text: TextField, bad_input: BadInput) -> Iterator[Document]:
    """Yield the texts of records; a record without text goes to `bad_input`."""
    for record in records:
        document = text.document(record, bad_input)
        if document is not None:
            yield document
