"""Encode labeled texts as tokens and a class, including labeled functions of this machine's standard library."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from lit_gpt.data.chat import Message
from lit_gpt.data.instructions.forms import RowFields
from lit_gpt.data.instructions.stdlib import StdlibInstructions, described_functions
from lit_gpt.data.records import Record
from lit_gpt.data.rows.store import EncodedRow, EncodedSequence
from lit_gpt.data.tokenizers import Tokenizer
from lit_gpt.errors import UserError
from lit_gpt.hashing import FileHashes, sha256_json

STDLIB_PACKAGES = ("asyncio", "email", "idlelib", "multiprocessing", "tkinter", "unittest")
"""Packages of the standard library with many functions each."""


class ClassificationEncoder:
    """Encodes a text between two separator tokens; the class is predicted at the position of the last one.

    Args:
        tokenizer: Tokenizer of the model.
        classes: Names of the classes.
        block_size: Maximum number of tokens.
        long_rows: What to do with longer texts: keep their beginning (`cut`), leave them out (`drop`) or raise
            (`error`).
        columns: Mapping from the field name (`text`, `label`) to the name in the data.
        ignore_fields: Fields of a row to leave out.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        classes: Sequence[str],
        block_size: int,
        long_rows: Literal["cut", "drop", "error"] = "cut",
        columns: Mapping[str, str] | None = None,
        ignore_fields: Sequence[str] = (),
    ) -> None:
        self.tokenizer = tokenizer
        self.vocab_size = tokenizer.vocab_size
        self.classes = list(classes)
        self.block_size = block_size
        self.long_rows = long_rows
        self.columns = dict(columns or {})
        self.ignore_fields = list(ignore_fields)

    def fingerprint(self) -> str:
        """Return a hash of everything that the result depends on."""
        parts = [self.tokenizer.fingerprint, self.classes, self.block_size, self.long_rows, self.columns]
        parts.append(self.ignore_fields)
        return sha256_json(["classification", *parts])

    def __call__(self, row: Record) -> EncodedRow | str:
        """Encode a row.

        Raises:
            UserError: if a field is missing or empty, or the label is not one of the classes.
        """
        fields = RowFields(row.values, self.columns, self.ignore_fields)
        values = fields.values
        for name in ("text", "label"):
            if name not in values:
                raise UserError(
                    f"no field {name!r}; its fields are {', '.join(map(repr, values)) or 'none'} (set columns)"
                )
            if values[name] is None:
                raise UserError(f"its {name} is null")
        text, label = fields.get("text"), str(fields.get("label"))
        if not isinstance(text, str) or not text.strip():
            raise UserError("its text is empty" if isinstance(text, str) else f"its text is {type(text).__name__}")
        if label not in self.classes:
            raise UserError(f"its label is {label!r}, and classes are {', '.join(self.classes)}")
        try:
            ids = self.tokenizer.encode(text).tolist()
        except TypeError as error:
            raise UserError("it contains a lone surrogate, which is not valid Unicode") from error
        notes: tuple[str, ...] = ()
        if len(ids) > self.block_size - 1:
            if self.long_rows == "error":
                raise UserError(
                    f"it has {len(ids)} tokens, more than block_size {self.block_size} - 1; raise it, or set "
                    "long_rows to cut or drop"
                )
            if self.long_rows == "drop":
                return "left out as longer than the context"
            ids, notes = ids[: self.block_size - 1], ("cut off at the context's end",)
        separator = self.tokenizer.separator_id
        whole = [separator, *ids, separator]
        mask = [False] * (len(whole) - 1) + [True]
        number = {"class": float(self.classes.index(label))}
        left_out = fields.finish([Message(role="user", content=text)])
        return EncodedRow((EncodedSequence(whole, mask),), text, number, notes, left_out=left_out)


class StdlibOrigins(StdlibInstructions):
    """Functions of the standard library without name and docstring, labeled with the package they are from.

    The split depends on each function's own text rather than its file: some packages consist of few large files, one of
    which could otherwise make up most of the held-out data.

    Args:
        packages: Names of the packages, which are the classes.
        max_lines: Maximum number of lines; longer functions are left out.
    """

    name = "origin of functions of the Python standard library"
    version = 2

    def __init__(self, packages: Sequence[str] = STDLIB_PACKAGES, max_lines: int = 40) -> None:
        super().__init__(max_lines=max_lines)
        self.packages = tuple(packages)

    def fingerprint(self, hashes: FileHashes) -> str:
        """Return a hash of the files and the packages."""
        return sha256_json([super().fingerprint(hashes), self.packages])

    def generate(self) -> Iterator[Record]:
        """Yield the functions, file by file."""
        for name, path in self.files:
            package = name.split("/")[0]
            if package not in self.packages:
                continue
            text = path.read_text(encoding="utf-8")
            for function in described_functions(text):
                if function.body.count("\n") < self.max_lines:
                    yield Record({"text": function.body, "label": package}, name, function.line)
