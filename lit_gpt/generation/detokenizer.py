"""Text from a stream of tokens: whole characters only, and nothing that may still become a stop string."""

from lit_gpt.data.tokenizers import Tokenizer

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
CONTEXT_TOKENS = 8
"""A token's text may depend on those before it (spaces, joined characters): so many are decoded with it."""
MAX_PENDING_TOKENS = 16
"""A character has at most 4 bytes: tokens that make no text for so long never will, and are shown as they are."""


class Detokenizer:
    """The text that each new token adds.

    A token may hold a part of a UTF-8 character, and some decoders treat the first token of a text differently: a
    piece is what a token adds to the text of the tokens just before it, held back while it ends inside a character.

    Args:
        tokenizer: Whose ids they are.
        context: Ids before the first of them.
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
        """Return what is left at the end: an incomplete character becomes a replacement character."""
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
    """Ends a text at the first of some stop strings, and holds back what may become one.

    Args:
        stops: The strings, none of them empty.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""

    def add(self, piece: str) -> tuple[str, bool]:
        """Add a piece of text; return what can be shown, and whether a stop string was completed."""
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
        """Return what was held back, at the end of the text."""
        text, self._held = self._held, ""
        return text

    def _may_begin(self, text: str) -> int:
        """Return how many of the last characters could be the beginning of a stop string."""
        for length in range(min(len(text), max(map(len, self._stops)) - 1), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0
