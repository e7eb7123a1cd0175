"""What a source yields, and what happens to input that cannot be used."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from lit_gpt.errors import UserError
from lit_gpt.hashing import FileHashes
from lit_gpt.pages.text import visible

SplitName = Literal["train", "val", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "val", "test")
OnBadInput = Literal["error", "skip"]


@dataclass(frozen=True, slots=True)
class Document:
    """One text that the model is to learn as a unit.

    Attributes:
        text: The text itself.
        source: File (relative to what the user named) or data set that it came from.
        record: Line or row in that source, counted from 1; 0 when the source is a single document.
        metadata: What else the source knows (URL, language, ...), JSON values; `prepare` keeps it with the text.
    """

    text: str
    source: str
    record: int = 0
    metadata: dict[str, Any] | None = None

    @property
    def where(self) -> str:
        """`source:record`, for messages."""
        return f"{self.source}:{self.record}" if self.record else self.source


class BadInput:
    """Decides about a file or a row that cannot be read: an error that names it, or counted and left out.

    Args:
        mode: `error` raises at the first; `skip` counts all and remembers the first hundred by name.
    """

    MAX_NAMED = 100

    def __init__(self, mode: OnBadInput = "error") -> None:
        if mode not in ("error", "skip"):
            raise UserError(f"on_bad_input is {mode!r}; it can be error or skip")
        self.mode = mode
        self.num_skipped = 0
        self.named: list[str] = []

    def reject(self, where: str, problem: str) -> None:
        """Refuses the input at `where`.

        Raises:
            UserError: in mode `error`.
        """
        told = visible(f"{where}: {problem}")  # a file's name may hold what moves a terminal's cursor
        if self.mode == "error":
            raise UserError(f"{told}; mend or remove it, or set on_bad_input: skip")
        self.num_skipped += 1
        if len(self.named) < self.MAX_NAMED:
            self.named.append(told)


class Source(Protocol):
    """Where documents come from. Reading it twice yields the same documents in the same order."""

    name: str
    """What messages and lineage call it."""
    split: SplitName | None
    """The split that all of its documents go to, or None: each by its own hash."""

    def fingerprint(self, hashes: FileHashes) -> str:
        """Returns a hash that changes when the documents, their order or their names do."""
        ...

    def num_bytes(self) -> int | None:
        """Estimates the UTF-8 bytes of all documents; None if that is unknown before reading them."""
        ...

    def documents(self, bad_input: BadInput) -> Iterator[Document]:
        """Yields the documents in bounded memory; what cannot be read goes to `bad_input`."""
        ...

    def describe(self) -> dict[str, Any]:
        """Returns what lineage keeps about it (JSON values)."""
        ...
