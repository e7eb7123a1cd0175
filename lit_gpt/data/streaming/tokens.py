"""A stream of documents → one endless stream of tokens, which can be entered again at any earlier position."""

import contextlib
import os
from collections import deque
from collections.abc import Container, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from lit_gpt.data.corpus_spec import document_hash
from lit_gpt.data.records import BadInput, Document
from lit_gpt.data.streaming.documents import DocumentStream
from lit_gpt.data.tokenizers import Tokenizer
from lit_gpt.errors import UserError

_BATCH_CHARACTERS = 1 << 18


@dataclass(frozen=True)
class Cursor:
    """A position in the stream of tokens.

    Attributes:
        epoch: Number of the pass.
        place: Document of the pass, as its stream names it; None: the first.
        skip: Tokens of that document that come before the position.
    """

    epoch: int = 0
    place: Any = None
    skip: int = 0


@dataclass(frozen=True)
class EncodedDocument:
    """A document's ids (its separator first), where it came from, and where the stream can be entered with it."""

    tokens: np.ndarray
    document: Document
    sha256: str
    epoch: int
    place: Any


@dataclass(frozen=True)
class Span:
    """A document's part in a stretch of tokens.

    Attributes:
        start: Where the part begins in the stretch.
        offset: Where it begins in the document; 0 is its separator.
        num_tokens: Tokens of the whole document, its separator included.
        source: Where the document came from.
        record: Line or row there, from 1; 0 when the source is one document.
        sha256: First 32 hexadecimal digits of its text's SHA-256.
    """

    start: int
    offset: int
    num_tokens: int
    source: str
    record: int
    sha256: str


class TokenReader:
    """Reads the endless stream of tokens from a cursor on, pass after pass over the documents.

    Args:
        stream: The documents.
        tokenizer: Makes the ids.
        cursor: Where to begin.
        bad_input: Takes what cannot be read.
        excluded: Documents that are held out, by `Span.sha256`.
        num_threads: Threads that encode ahead.

    Raises:
        UserError: while reading, if a whole pass has no text, or for bad input.
    """

    def __init__(
        self,
        stream: DocumentStream,
        tokenizer: Tokenizer,
        cursor: Cursor,
        bad_input: BadInput,
        excluded: Container[str] = frozenset(),
        num_threads: int = 1,
    ) -> None:
        self._encoded = _encoded(_endless(stream, cursor, bad_input, excluded), tokenizer, num_threads)
        self._current: EncodedDocument | None = None
        self._used = cursor.skip

    def read(self, count: int) -> tuple[np.ndarray, list[Span]]:
        """Return the next tokens, (count,), and the documents that they are from."""
        parts: list[np.ndarray] = []
        spans: list[Span] = []
        filled = 0
        while filled < count:
            current = self._document()
            part = current.tokens[self._used : self._used + count - filled]
            spans.append(self._span(current, filled))
            parts.append(part)
            filled += len(part)
            self._used += len(part)
        return np.concatenate(parts), spans

    def peek(self) -> tuple[int, Span]:
        """Return the next token, without taking it, and its document (as at the start of a stretch)."""
        current = self._document()
        return int(current.tokens[self._used]), self._span(current, 0)

    @property
    def cursor(self) -> Cursor:
        """Where the next token stands."""
        current = self._document()
        return Cursor(current.epoch, current.place, self._used)

    def close(self) -> None:
        """Stop the threads."""
        self._encoded.close()

    def _document(self) -> EncodedDocument:
        """Return the document that the next token is from."""
        if self._current is None:
            self._current = next(self._encoded)  # `_used` is the cursor's `skip`
        if self._used >= len(self._current.tokens):
            self._current, self._used = next(self._encoded), 0
        return self._current

    def _span(self, current: EncodedDocument, start: int) -> Span:
        document = current.document
        length = len(current.tokens)
        return Span(start, self._used, length, document.source, document.record, current.sha256)


@dataclass(frozen=True)
class _StreamedDocument:
    document: Document
    sha256: str
    epoch: int
    place: Any


def _endless(
    stream: DocumentStream, cursor: Cursor, bad_input: BadInput, excluded: Container[str]
) -> Iterator[_StreamedDocument]:
    """Yield the documents that train, from the cursor's on, pass after pass."""
    epoch, place = cursor.epoch, cursor.place
    while True:
        found = False
        for document, here in stream.documents(epoch, place, bad_input):
            if not document.text:
                continue
            try:
                sha256 = document_hash(document.text).hex()[:32]
            except UnicodeEncodeError:
                bad_input.reject(document.where, "the text holds a lone surrogate, which is no Unicode text")
                continue
            if sha256 not in excluded:
                found = True
                yield _StreamedDocument(document, sha256, epoch, here)
        if not found and place is None:
            raise UserError(f"the stream {stream.name} has no text to train on; name one that has, or hold out less")
        epoch, place = epoch + 1, None


def _encoded(
    documents: Iterator[_StreamedDocument], tokenizer: Tokenizer, num_threads: int
) -> Generator[EncodedDocument, None, None]:
    """Yield each document with its ids, in order, while threads encode the next batches."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # our threads take the place of the library's
    separator = np.array([tokenizer.separator_id], dtype=tokenizer.dtype)

    def encode(batch: list[_StreamedDocument]) -> list[EncodedDocument]:
        ids = tokenizer.encode_batch([streamed.document.text for streamed in batch])
        return [
            # Without the text, which is not needed any more: several batches wait here.
            EncodedDocument(
                np.concatenate([separator, tokens]),
                Document("", streamed.document.source, streamed.document.record),
                streamed.sha256,
                streamed.epoch,
                streamed.place,
            )
            for streamed, tokens in zip(batch, ids, strict=True)
        ]

    pool = ThreadPoolExecutor(num_threads)
    pending: deque[Future[list[EncodedDocument]]] = deque()
    with contextlib.closing(_batches(documents)) as batches:
        try:
            while True:
                while len(pending) <= num_threads:
                    pending.append(pool.submit(encode, next(batches)))
                yield from pending.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _batches(documents: Iterator[_StreamedDocument]) -> Generator[list[_StreamedDocument], None, None]:
    batch: list[_StreamedDocument] = []
    size = 0
    for streamed in documents:
        batch.append(streamed)
        size += len(streamed.document.text)
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
