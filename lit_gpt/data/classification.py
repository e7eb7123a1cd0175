"""Labelled texts → tokens and a class; also labelled functions of this machine's standard library."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from lit_gpt.data.instructions.forms import renamed
from lit_gpt.data.instructions.stdlib import StdlibInstructions, described_functions
from lit_gpt.data.records import Record
from lit_gpt.data.rows.store import EncodedRow, EncodedSequence
from lit_gpt.data.tokenizers import Tokenizer
from lit_gpt.errors import UserError
from lit_gpt.hashing import FileHashes, sha256_json

STDLIB_PACKAGES = ("asyncio", "email", "idlelib", "multiprocessing", "tkinter", "unittest")
"""Packages of the standard library with many functions each."""


class ClassificationEncoder:
    """Encodes a text between two separator tokens; the class is read at the position of the last one.

    Args:
        tokenizer: Makes the ids.
        classes: Names of the classes.
        block_size: A longer text keeps its beginning (`cut`) or is left out (`drop`).
        long_rows: Which, or `error`.
        columns: Our name of a field (`text`, `label`) → the name in the data.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        classes: Sequence[str],
        block_size: int,
        long_rows: Literal["cut", "drop", "error"] = "cut",
        columns: Mapping[str, str] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.vocab_size = tokenizer.vocab_size
        self.classes = list(classes)
        self.block_size = block_size
        self.long_rows = long_rows
        self.columns = dict(columns or {})

    def fingerprint(self) -> str:
        """Return a hash of everything that decides the result."""
        parts = [self.tokenizer.fingerprint, self.classes, self.block_size, self.long_rows, self.columns]
        return sha256_json(["classification", *parts])

    def __call__(self, row: Record) -> EncodedRow | str:
        """Encode a row.

        Raises:
            UserError: if a field is missing or empty, or its class is none of those named.
        """
        values = renamed(row.values, self.columns)
        for name in ("text", "label"):
            if name not in values:
                raise UserError(
                    f"no field {name!r}; its fields are {', '.join(map(repr, values)) or 'none'} (set columns)"
                )
            if values[name] is None:
                raise UserError(f"its {name} is null")
        text, label = values["text"], str(values["label"])
        if not isinstance(text, str) or not text.strip():
            raise UserError("its text is empty" if isinstance(text, str) else f"its text is {type(text).__name__}")
        if label not in self.classes:
            raise UserError(f"its label is {label!r}, and classes are {', '.join(self.classes)}")
        try:
            ids = self.tokenizer.encode(text).tolist()
        except TypeError as error:
            raise UserError("it holds a lone surrogate, which is no Unicode text") from error
        notes: tuple[str, ...] = ()
        if len(ids) > self.block_size - 1:
            if self.long_rows == "error":
                raise UserError(
                    f"it has {len(ids)} tokens, more than block_size {self.block_size} - 1 (long_rows: error)"
                )
            if self.long_rows == "drop":
                return "left out as longer than the context"
            ids, notes = ids[: self.block_size - 1], ("cut off at the context's end",)
        separator = self.tokenizer.separator_id
        whole = [separator, *ids, separator]
        mask = [False] * (len(whole) - 1) + [True]
        number = {"class": float(self.classes.index(label))}
        return EncodedRow((EncodedSequence(whole, mask),), text, number, notes)


class StdlibOrigins(StdlibInstructions):
    """Functions of the standard library without name and docstring, labelled with the package they are from.

    The split goes by each function's own text: some packages are few and large files, and by files one of them would
    be most of what is held out.

    Args:
        packages: The classes.
        max_lines: Functions with more lines are left out.
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
