"""Cuts a long text where a tokenizer would cut it anyway, so that no text needs memory in proportion to its length.

Encoding keeps some hundred bytes for every byte of text until it is done. A piece ends before a space that stands
between two words: pre-tokenizers (GPT-2's and GPT-4's patterns, SentencePiece's `▁`) begin a new word exactly there,
hence the ids of the pieces, joined, are those of the whole.
"""

import re
from collections.abc import Iterator

PIECE_CHARACTERS = 1 << 17
_BETWEEN_WORDS = re.compile(r"(?<=[\w!-~])(?= [\w!-~])")


def pieces(text: str, limit: int = PIECE_CHARACTERS) -> Iterator[str]:
    """Yields `text` in pieces of at most `limit` characters.

    A stretch of `limit` characters without a space between words (base64, some scripts) is cut where it is full; only
    there can a token differ from that of the uncut text.

    Args:
        text: Any text.
        limit: Characters in a piece.
    """
    start = 0
    while len(text) - start > limit:
        end = _last_cut(text, start, start + limit)
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]


def _last_cut(text: str, start: int, end: int) -> int:
    """Returns the last place between words in text[start + 1 : end], or `end`."""
    width = 256
    while True:
        low = max(start + 1, end - width)
        cuts = [match.start() for match in _BETWEEN_WORDS.finditer(text, low, end)]
        if cuts:
            return cuts[-1]
        if low == start + 1:
            return end
        width *= 8
