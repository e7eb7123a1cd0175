"""Trace a window of tokens back to the documents that it was cut from."""

from dataclasses import dataclass

from lit_gpt.data.shards import TokenSplit


@dataclass(frozen=True, slots=True)
class Piece:
    """The part of a document that lies in a window.

    Attributes:
        begin: Index of its first token in the window.
        end: Index after its last token in the window.
        source: Name of the document's source.
        record: Line or row in the source, from 1; 0 if the source is a single document.
        sha256: First 32 hexadecimal digits of the SHA-256 of the document's text.
        offset: Position of the piece's first token in the document; 0 is the separator at its start.
        num_tokens: Number of tokens of the whole document, including its separator; 0 if unknown.
        corpus: Name of the corpus if the window comes from a mixture.
    """

    begin: int
    end: int
    source: str
    record: int
    sha256: str
    offset: int
    num_tokens: int
    corpus: str = ""

    @property
    def where(self) -> str:
        """`source:record`, for display."""
        return f"{self.source}:{self.record}" if self.record else self.source


def trace_window(split: TokenSplit, start: int, length: int, corpus: str = "") -> list[Piece]:
    """Return the documents of a window, in order.

    Args:
        split: Token stream.
        start: Position of the window in the stream, modulo the stream's length.
        length: Window length in tokens.
        corpus: Corpus name of the pieces.
    """
    pieces: list[Piece] = []
    begin = 0
    while begin < length:
        position = (start + begin) % split.num_tokens
        document = split.document(split.document_at(position))
        offset = position - document.start
        end = min(length, begin + document.num_tokens + 1 - offset)
        pieces.append(
            Piece(
                begin=begin,
                end=end,
                source=document.source,
                record=document.record,
                sha256=document.sha256,
                offset=offset,
                num_tokens=document.num_tokens + 1,
                corpus=corpus,
            )
        )
        begin = end
    return pieces
