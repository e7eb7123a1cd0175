"""Incremental detokenization: only complete characters, and nothing that may still become a stop string."""

from lit_gpt.data.tokenizers import Tokenizer

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
CONTEXT_TOKENS = 8
"""Number of previous tokens decoded together with a token, because its text may depend on them."""
MAX_PENDING_TOKENS = 16
"""Tokens that still have no text after this many are shown as they are: a character has at most 4 bytes."""


class Detokenizer:
    """Returns the text that each new token adds.

    A token may contain part of a UTF-8 character, and some decoders treat the first token of a text differently. So
    the new text is the difference that a token makes to the text of the tokens just before it, held back while it ends
    inside a character.

    Args:
        tokenizer: Tokenizer of the ids.
        context: Token ids before the first new one.
    """

    def __init__(self, tokenizer: Tokenizer, context: list[int]) -> None:
        self._tokenizer = tokenizer
        self._pending: list[int] = []
        self._settle(context)

    def add(self, token: int) -> str:
        """Add a token; return the text that can be shown now, empty while a character is incomplete."""
        self._pending.append(token)
        piece = self._piece()
        if piece.endswith(REPLACEMENT) and len(self._pending) < MAX_PENDING_TOKENS:
            return ""
        if piece:
            self._settle(self._before + self._pending)
        return piece

    def flush(self) -> str:
        """Return the rest at the end of the text; an incomplete character becomes a replacement character."""
        piece = self._piece() if self._pending else ""
        self._settle(self._before + self._pending)
        return piece

    def _piece(self) -> str:
        return self._tokenizer.decode(self._before + self._pending)[self._num_before :]

    def _settle(self, ids: list[int]) -> None:
        self._before = ids[-CONTEXT_TOKENS:]
        self._num_before = len(self._tokenizer.decode(self._before)) if self._before else 0
        self._pending = []


class StopStrings:
    """Ends a text at the first stop string, and holds back text that may become one.

    Args:
        stops: The stop strings, none of them empty.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""

    def add(self, piece: str) -> tuple[str, bool]:
        """Add a piece of text; return the text that can be shown, and whether a stop string was completed."""
        if not self._stops:
            return piece, False
        text = self._held + piece
        found = [place for place in (text.find(stop) for stop in self._stops) if place >= 0]
        if found:
            self._held = ""
            return text[: min(found)], True
        kept = self._may_begin(text)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept], False

    def flush(self) -> str:
        """Return the text that was held back, at the end of the text."""
        text, self._held = self._held, ""
        return text

    def _may_begin(self, text: str) -> int:
        """Return how many of the last characters could be the start of a stop string."""
        for length in range(min(len(text), max(map(len, self._stops)) - 1), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0
