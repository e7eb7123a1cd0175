"""What single tokens stand for, byte by byte: log-probabilities are told of tokens that may be half a character."""

import re

from lit_gpt.data.byte_lengths import byte_alphabet
from lit_gpt.data.tokenizers import Tokenizer

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenText:
    """The bytes and the shown text of each id.

    Args:
        tokenizer: Whose ids they are.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._alphabet = byte_alphabet()
        self._lengths = tokenizer.byte_lengths

    def bytes(self, index: int) -> bytes:
        """The bytes of a token; a special token's are those of its name, an unknown id's are none."""
        token = self._tokenizer.backend.id_to_token(index)
        if token is None:
            return b""
        length = int(self._lengths[index])
        # In a byte-level vocabulary each character of a token is a byte, so their numbers agree.
        if length == len(token) and all(character in self._alphabet for character in token):
            return bytes(self._alphabet[character] for character in token)
        found = _BYTE_TOKEN.fullmatch(token)
        if found and length == 1:
            return bytes([int(found[1], 16)])
        return str(token).replace("▁", " ").encode() if length else str(token).encode()

    def text(self, index: int) -> str:
        """The bytes as text; a part of a character is shown as U+FFFD."""
        return self.bytes(index).decode("utf-8", "replace")
