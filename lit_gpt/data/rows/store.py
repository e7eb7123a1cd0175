"""Encoded rows on disk: flat memory-mapped arrays, one folder per split.

manifest.json           format, counts, skipped input; written last
train/ids.bin           all tokens, little-endian uint16 or uint32
train/mask.bin          one byte per token, 1 for targets
train/ends.npy          (sequences,) int64: end of each sequence in the tokens
train/rows.npy          (rows, 2) int64: index of the source name, record
train/numbers.npy       (rows, names) float64
train/attached.bin      UTF-8 texts attached to rows, if any
train/attached_ends.npy (rows,) int64: end of each row's text
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from lit_gpt.data.records import SPLITS, Record, SplitName
from lit_gpt.errors import UserError

FORMAT_VERSION = 3


class EncodedSequence(NamedTuple):
    """Token ids and the mask of targets."""

    ids: list[int]
    mask: list[bool]


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """A row encoded as tokens.

    Attributes:
        sequences: One sequence (an instruction) or several (a pair); the same number for every row of a dataset.
        split_key: Text whose hash determines the split, such as the prompt.
        numbers: Further values of the row by name, such as a label; every row has the same names.
        notes: Events of its encoding (such as truncation), each of which is counted.
        attached: Text that is stored with the tokens, such as a reference answer for a reward.
        left_out: Ignored fields of the row, each of which is counted.
    """

    sequences: tuple[EncodedSequence, ...]
    split_key: str
    numbers: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    attached: str = ""
    left_out: tuple[str, ...] = ()


class RowEncoder(Protocol):
    """Converts rows to tokens; a pure function of the row and of the values in its fingerprint."""

    vocab_size: int

    def fingerprint(self) -> str:
        """Return a hash of everything that the result depends on: tokenizer, template, lengths."""
        ...

    def __call__(self, row: Record) -> EncodedRow | list[EncodedRow] | str:
        """Encode a row, as one or several, or return the reason for leaving it out, under which it is counted.

        Raises:
            UserError: if the row cannot be used; the caller names its file and position.
        """
        ...


class RowSplit:
    """The rows of one split.

    Args:
        folder: Folder of its arrays.
        name: Name of the split.
        manifest: The manifest of the store.
    """

    def __init__(self, folder: Path, name: SplitName, manifest: dict[str, Any]) -> None:
        self._arguments = (folder, name, manifest)
        self.name = name
        self.sequences_per_row: int = manifest["sequences_per_row"]
        self.fingerprint = f"{manifest['key']}/{name}"
        self._sources: list[str] = manifest["sources"]
        self._ends: np.ndarray = np.load(folder / "ends.npy", mmap_mode="r")
        self._rows: np.ndarray = np.load(folder / "rows.npy", mmap_mode="r")
        self._numbers: np.ndarray = np.load(folder / "numbers.npy", mmap_mode="r")
        self._number_names: list[str] = manifest["numbers"]
        self._attached_ends: np.ndarray | None = None
        if (folder / "attached_ends.npy").exists():
            self._attached_ends = np.load(folder / "attached_ends.npy", mmap_mode="r")
            self._attached = np.memmap(folder / "attached.bin", np.uint8, "r")
        empty = len(self._ends) == 0  # an empty file cannot be memory-mapped
        self._ids = np.empty(0, manifest["dtype"]) if empty else np.memmap(folder / "ids.bin", manifest["dtype"], "r")
        self._mask = np.empty(0, np.bool_) if empty else np.memmap(folder / "mask.bin", np.bool_, "r")

    def __reduce__(self) -> tuple[type["RowSplit"], tuple[Path, SplitName, dict[str, Any]]]:
        return RowSplit, self._arguments  # a spawned worker maps the files again: pickling a memmap would copy the file

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def num_tokens(self) -> int:
        """Number of tokens in all sequences."""
        return len(self._ids)

    @property
    def num_targets(self) -> int:
        """Number of target tokens."""
        return int(np.count_nonzero(self._mask))

    def sequence(self, row: int, number: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Return (ids, mask) of the sequence `number` of a row: (n,) int64 and (n,) bool."""
        index = row * self.sequences_per_row + number
        start = 0 if index == 0 else int(self._ends[index - 1])
        span = slice(start, int(self._ends[index]))
        return self._ids[span].astype(np.int64), np.asarray(self._mask[span])

    def lengths(self) -> np.ndarray:
        """Return the length of each row's longest sequence: (rows,) int64."""
        lengths = np.diff(self._ends, prepend=0)
        return lengths.reshape(-1, self.sequences_per_row).max(axis=1) if len(lengths) else lengths

    def number(self, name: str) -> np.ndarray:
        """Return the values of a named number: (rows,) float64."""
        position = self._number_names.index(name)
        return np.asarray(self._numbers[:, position]) if len(self) else np.empty(0)

    def attached(self, row: int) -> str:
        """Return the text attached to a row; empty if rows have none."""
        if self._attached_ends is None:
            return ""
        start = 0 if row == 0 else int(self._attached_ends[row - 1])
        return bytes(self._attached[start : int(self._attached_ends[row])]).decode("utf-8")

    def where(self, row: int) -> str:
        """Return `source:record` of a row."""
        source, record = self._rows[row].tolist()
        return f"{self._sources[source]}:{record}"


class RowStore:
    """Reader of the rows written by `prepare_rows`.

    Args:
        folder: Folder of the store.

    Raises:
        UserError: if it is missing, incomplete, or of another version.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{folder} contains no prepared rows ({error}); call prepare_data() first") from error
        if self.manifest.get("version") != FORMAT_VERSION:
            raise UserError(f"{folder} was written by another version of the format; remove it and prepare it again")

    def split(self, name: SplitName) -> RowSplit:
        """Open a split."""
        return RowSplit(self.folder / name, name, self.manifest)

    def lineage(self) -> dict[str, Any]:
        """Return what a run's lineage records: content hashes and counts."""
        return {name: value for name, value in self.manifest.items() if name not in ("dtype", "skipped", "version")}

    def is_damaged(self) -> bool:
        """Return whether a file's size differs from the manifest."""
        return any(
            not (path := self.folder / name / "ids.bin").exists()
            or path.stat().st_size
            != self.manifest["splits"][name]["num_tokens"] * np.dtype(self.manifest["dtype"]).itemsize
            for name in SPLITS
        )
