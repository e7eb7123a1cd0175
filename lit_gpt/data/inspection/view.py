"""Extract windows that can be displayed from batches.

A window consists of the input tokens and, after the last of them, the token that is only predicted. A token is
"learned" if some position is trained to predict it, i.e. its label is not -100.
"""

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from lit_gpt.batch import IGNORE_INDEX
from lit_gpt.data.compiled_bpe import byte_alphabet
from lit_gpt.data.provenance import Piece
from lit_gpt.data.tokenizers import Tokenizer

_SUFFIX = "input_ids"


@dataclass(frozen=True)
class Token:
    """One token of a window.

    Attributes:
        index: Index in the window.
        id: Id in the vocabulary.
        text: Text that it adds to the preceding tokens; "" while a character is incomplete.
        raw: Bytes of the token.
        document: Index of its document.
        position: Position id that the model receives; None for the last target, which is not an input.
        learned: Whether it is a target of the loss.
        special: Whether it is a special token, such as the separator.
    """

    index: int
    id: int
    text: str
    raw: bytes
    document: int
    position: int | None
    learned: bool
    special: bool


@dataclass
class Window:
    """One row of a batch.

    Attributes:
        name: Name of the rows if a batch has several kinds (`chosen`, `rejected`); "" otherwise.
        sample: Index in the global order; None if the batch does not contain it.
        corpus: Name of its corpus, if there are several.
        length: T, number of positions.
        tokens: Tokens without padding.
        blocks: (first, end) of the ranges of positions that attend to each other, one per document.
        isolated: Whether documents are isolated; otherwise every position attends to all earlier ones.
        num_padding: Number of padding positions.
        num_learned: Number of positions with a label.
        num_bytes: UTF-8 bytes of the targets; None if the batch does not contain it.
        surprises: Warnings for the reader, such as labels that are not the next token.
        pieces: Documents of the window, if the DataModule can trace them.
        has_labels: Whether the batch has labels.
    """

    name: str
    sample: int | None
    corpus: str
    length: int
    tokens: list[Token]
    blocks: list[tuple[int, int]]
    isolated: bool
    num_padding: int
    num_learned: int
    num_bytes: int | None
    surprises: list[str]
    pieces: list[Piece] = field(default_factory=list)
    has_labels: bool = True

    @property
    def num_stops(self) -> int:
        """Number of special tokens among the targets, i.e. where the model learns to stop."""
        return sum(token.special and token.learned for token in self.tokens)

    def allowed(self, query: int, key: int) -> bool:
        """Return whether position `query` attends to position `key`."""
        return key <= query and any(first <= key and query < end for first, end in self.blocks)


class TokenTexts:
    """Bytes of tokens, and the texts that a sequence of them adds up to.

    Args:
        tokenizer: The tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._alphabet = byte_alphabet()
        self._added = tokenizer.backend.get_added_tokens_decoder()
        types = str(tokenizer.backend.decoder) + str(tokenizer.backend.pre_tokenizer)
        self._byte_level = "ByteLevel" in types

    def is_special(self, index: int) -> bool:
        """Return whether this is a special token."""
        return index in self._added and self._added[index].special

    def raw(self, index: int) -> bytes:
        """Return the bytes of a token; for an added token those of its name."""
        if index in self._added:
            return str(self._added[index].content).encode()
        token = self.tokenizer.backend.id_to_token(index)
        if token is None:  # padding of the vocabulary size
            return f"<id {index}>".encode()
        if self._byte_level and all(character in self._alphabet for character in token):
            return bytes(self._alphabet[character] for character in token)
        if len(token) == 6 and token.startswith("<0x"):
            return bytes([int(token[3:5], 16)])
        return str(token).replace("▁", " ").encode()

    def texts(self, ids: Sequence[int]) -> list[str]:
        """Return the text that each token adds; a character made of several tokens comes with the last of them."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        texts = []
        for index in ids:
            if index in self._added:
                texts.append(decoder.decode(b"", final=True) + self._added[index].content)
                decoder.reset()
            else:
                texts.append(decoder.decode(self.raw(index)))
        if texts:
            texts[-1] += decoder.decode(b"", final=True)
        return texts


def windows_of(
    batch: Any, texts: TokenTexts, pieces: Sequence[list[Piece]] | None = None, isolated: bool = False
) -> list[Window]:
    """Return the windows of a batch.

    Args:
        batch: A `Batch`, a list of batches, or a (possibly nested) mapping with token ids under names that end in
            `input_ids` (such as `chosen_input_ids`); the fields that belong to them have the same prefix.
        texts: Token texts of the tokenizer.
        pieces: Documents of each row, if known.
        isolated: Whether a row without document ids is one document rather than several that attend to each other.
    """
    if isinstance(batch, list | tuple):
        found: list[Window] = []
        for micro_batch in batch:
            found += windows_of(micro_batch, texts, None if pieces is None else pieces[len(found) :], isolated)
        return found
    windows = []
    for name, fields in _groups(batch):
        for row in range(len(fields[_SUFFIX])):
            window = _window(name, {key: _row(value, row) for key, value in fields.items()}, texts)
            window.isolated = window.isolated or isolated
            if pieces is not None and row < len(pieces):
                window.pieces = list(pieces[row])
                window.corpus = window.corpus or next((piece.corpus for piece in window.pieces), "")
            windows.append(window)
    return windows


def _groups(batch: Any, name: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the groups of token id rows in a batch by name, with the fields that belong to them."""
    for key, value in batch.items():
        if isinstance(value, dict):
            yield from _groups(value, f"{name} {key}".strip())
        elif key.endswith(_SUFFIX) and getattr(value, "ndim", 0) == 2:
            prefix = key.removesuffix(_SUFFIX)
            shared = {k: v for k, v in batch.items() if k in ("sample_ids", "corpus")}
            own = {k.removeprefix(prefix): v for k, v in batch.items() if k.startswith(prefix)}
            yield f"{name} {prefix.strip('_')}".strip(), shared | own


def _row(value: Any, row: int) -> Any:
    if isinstance(value, str) or not hasattr(value, "__getitem__") or (hasattr(value, "ndim") and value.ndim == 0):
        return value
    return value[row] if not isinstance(value, dict) and row < len(value) else value


def _array(value: Any) -> np.ndarray | None:
    return None if value is None else np.asarray(value)


def _window(name: str, fields: dict[str, Any], texts: TokenTexts) -> Window:
    ids = np.asarray(fields[_SUFFIX])
    length = len(ids)
    labels = _array(fields.get("labels"))
    documents, positions = _array(fields.get("document_ids")), _array(fields.get("position_ids"))
    padding = _padding(ids, labels, documents, positions, fields.get("attention_mask"), texts.tokenizer.separator_id)
    blocks, document_of = _blocks(length, documents, padding)
    shown, learned, surprises = _shown(ids, labels, padding)
    added_texts = texts.texts([index for _, index in shown])
    tokens = [
        Token(
            index=number,
            id=index,
            text=text,
            raw=texts.raw(index),
            document=int(
                document_of[min(number, length - 1)]
                if number < length and not padding[number]
                else document_of[max(number - 1, 0)]
            ),
            position=None
            if number >= length or padding[number]
            else (number if positions is None else int(positions[number])),
            learned=number in learned,
            special=texts.is_special(index),
        )
        for (number, index), text in zip(shown, added_texts, strict=True)
    ]
    sample, num_bytes = fields.get("sample_ids"), fields.get("num_bytes")
    if positions is not None and documents is not None:
        restarts = sum(int(positions[first]) != 0 for first, _ in blocks)
        if restarts:
            surprises.append(f"{restarts} of the documents do not start at position 0")
    return Window(
        name=name,
        sample=None if sample is None else int(sample),
        corpus=str(fields.get("corpus", "")) if isinstance(fields.get("corpus"), str) else "",
        length=length,
        tokens=tokens,
        blocks=blocks,
        isolated=documents is not None,
        num_padding=int(padding.sum()),
        num_learned=len(learned),
        num_bytes=None if num_bytes is None else int(num_bytes),
        surprises=surprises,
        has_labels=labels is not None,
    )


def _padding(
    ids: np.ndarray,
    labels: np.ndarray | None,
    documents: np.ndarray | None,
    positions: np.ndarray | None,
    attention_mask: Any,
    separator_id: int,
) -> np.ndarray:
    """Return the mask of padding positions: (T,)."""
    if documents is not None:
        return documents < 0
    if attention_mask is not None and np.ndim(attention_mask) == 1:
        return np.asarray(attention_mask) == 0
    padding = np.zeros(len(ids), dtype=bool)
    if labels is not None and positions is not None:
        # Without document ids: separators without a label at the end, at position 0.
        empty = (labels == IGNORE_INDEX) & (ids == separator_id) & (positions == 0)
        full = np.flatnonzero(~empty)
        padding[(full[-1] + 1 if len(full) else 0) :] = True
    return padding


def _blocks(length: int, documents: np.ndarray | None, padding: np.ndarray) -> tuple[list[tuple[int, int]], np.ndarray]:
    """Return the ranges of positions that attend to each other, and the document index of each position."""
    if documents is None:
        end = int(length - padding.sum())
        return ([(0, end)] if end else []), np.zeros(length, dtype=np.int64)
    changes = np.flatnonzero(np.diff(documents)) + 1
    bounds = [0, *changes.tolist(), length]
    blocks = [(a, b) for a, b in pairwise(bounds) if documents[a] >= 0]
    return blocks, documents


def _shown(
    ids: np.ndarray, labels: np.ndarray | None, padding: np.ndarray
) -> tuple[list[tuple[int, int]], set[int], list[str]]:
    """Return (index, id) of the tokens to show, the indices of the learned ones, and warnings."""
    shown: list[tuple[int, int]] = []
    learned: set[int] = set()
    odd = 0
    for position in range(len(ids) + 1):
        target = (
            None
            if labels is None or position == 0 or labels[position - 1] == IGNORE_INDEX
            else int(labels[position - 1])
        )
        is_input = position < len(ids) and not padding[position]
        if is_input:
            shown.append((position, int(ids[position])))
            odd += target is not None and target != ids[position]
        elif target is not None:  # predicted, but not an input
            shown.append((position, target))
        if target is not None:
            learned.add(position)
    return shown, learned, [f"{odd} labels are not the token that follows"] if odd else []


@dataclass
class Report:
    """Windows of a split or of one optimizer step.

    Attributes:
        title: Title of the report.
        facts: (name, value) lines about the run, the corpus and the tokenizer.
        windows: The windows.
        num_shown: Number of windows to show as text; None: all. Totals count all.
        step: Optimizer step, counted from 1, if one is traced.
    """

    title: str
    facts: list[tuple[str, str]]
    windows: list[Window]
    num_shown: int | None = None
    step: int | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def shown(self) -> list[Window]:
        """The windows to show as text."""
        return self.windows[: self.num_shown]

    @property
    def num_hidden(self) -> int:
        """Number of windows that are not shown as text."""
        return len(self.windows) - len(self.shown)

    def totals(self) -> list[tuple[str, str]]:
        """Return (name, value) pairs of totals over all windows, also those that are not shown."""
        positions = sum(window.length for window in self.windows)
        learned = sum(window.num_learned for window in self.windows)
        sizes = [window.num_bytes for window in self.windows if window.num_bytes is not None]
        documents = sum(len(window.blocks) for window in self.windows)
        rows = [
            ("windows", f"{len(self.windows):,}"),
            ("positions", f"{positions:,}"),
            ("of them learned", f"{100 * learned / max(positions, 1):.1f} %"),
            ("padding", f"{sum(window.num_padding for window in self.windows):,}"),
            ("documents a window", f"{documents / max(len(self.windows), 1):.2f}"),
            ("stops learned", f"{sum(window.num_stops for window in self.windows):,}"),
        ]
        if sizes and learned:
            rows.append(("bytes a target", f"{sum(sizes) / learned:.2f}"))
        return rows

    def corpora(self) -> str:
        """Return the number of windows per corpus in one line; "" if there is only one corpus."""
        names = [window.corpus for window in self.windows if window.corpus]
        return ", ".join(f"{name} {names.count(name)}" for name in dict.fromkeys(names))
