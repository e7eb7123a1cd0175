"""Encode a stream of documents as an endless token stream that can be re-entered at any earlier position."""

import contextlib
import os
from collections import deque
from collections.abc import Container, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from lit_gpt.data.corpus_spec import document_hash
from lit_gpt.data.records import BadInput, Document, skipped_line
from lit_gpt.data.streaming.documents import DocumentStream
from lit_gpt.data.tokenizers import Tokenizer
from lit_gpt.errors import UserError

_BATCH_CHARACTERS = 1 << 18


@dataclass(frozen=True)
class Cursor:
    """A position in the token stream.

    Attributes:
        epoch: Index of the pass.
        place: Document in the pass, as identified by its stream; None: the first.
        skip: Number of that document's tokens before the position.
    """

    epoch: int = 0
    place: Any = None
    skip: int = 0


@dataclass(frozen=True)
class EncodedDocument:
    """A document's ids (separator first), its origin, and the stream position of its start."""

    tokens: np.ndarray
    document: Document
    sha256: str
    epoch: int
    place: Any


@dataclass(frozen=True)
class Span:
    """The part of a document in a range of tokens.

    Attributes:
        start: Start of the part in the range.
        offset: Start of the part in the document; 0 is the document's separator.
        num_tokens: Number of tokens of the whole document, including its separator.
        source: Source of the document.
        record: Line or row in the source, from 1; 0 if the source is a single document.
        sha256: First 32 hexadecimal digits of its text's SHA-256.
    """

    start: int
    offset: int
    num_tokens: int
    source: str
    record: int
    sha256: str


class TokenReader:
    """Reads the endless token stream from a cursor, pass after pass over the documents.

    Args:
        stream: Documents of the stream.
        tokenizer: Tokenizer to use.
        cursor: Start position.
        bad_input: Collects input that cannot be read.
        excluded: Held-out documents, by `Span.sha256`.
        num_threads: Number of threads that encode in advance.

    Raises:
        UserError: while reading, if a whole pass contains no text, or for bad input.
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
        """Return the next `count` tokens, (count,), and the documents that they are from."""
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
        """Return the next token without consuming it, and its document as a span that starts there."""
        current = self._document()
        return int(current.tokens[self._used]), self._span(current, 0)

    @property
    def cursor(self) -> Cursor:
        """Position of the next token."""
        current = self._document()
        return Cursor(current.epoch, current.place, self._used)

    def close(self) -> None:
        """Stop the threads."""
        self._encoded.close()

    def _document(self) -> EncodedDocument:
        """Return the document that contains the next token."""
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
    """Yield the training documents from the cursor on, pass after pass."""
    epoch, place = cursor.epoch, cursor.place
    while True:
        found = False
        for document, here in stream.documents(epoch, place, bad_input):
            if not document.text:
                continue
            try:
                sha256 = document_hash(document.text).hex()[:32]
            except UnicodeEncodeError:
                bad_input.reject(document.where, "the text contains a lone surrogate (not valid Unicode)")
                continue
            if sha256 not in excluded:
                found = True
                yield _StreamedDocument(document, sha256, epoch, here)
        if not found and place is None:
            skipped = f" ({skipped_line(bad_input.num_skipped, bad_input.named)})" if bad_input.num_skipped else ""
            raise UserError(
                f"the stream {stream.name} has no text to train on{skipped}; choose another stream, or hold out less"
            )
        epoch, place = epoch + 1, None


def _encoded(
    documents: Iterator[_StreamedDocument], tokenizer: Tokenizer, num_threads: int
) -> Generator[EncodedDocument, None, None]:
    """Yield each document with its ids, in order, while threads encode the next batches."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # these threads replace those of the library
    separator = np.array([tokenizer.separator_id], dtype=tokenizer.dtype)

    def encode(batch: list[_StreamedDocument]) -> list[EncodedDocument]:
        ids = tokenizer.encode_batch([streamed.document.text for streamed in batch])
        return [
            # Drop the text, which is no longer needed: several batches are queued here.
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
