"""How many UTF-8 bytes of text each token stands for: what turns a loss per token into bits per byte.

Loss per token cannot be compared between tokenizers: one with longer tokens has fewer and harder ones. Summing the
nats over a text and dividing by the text's bytes (and ln 2) can. So every token needs its length in bytes:
a byte-level token is exactly that many bytes, and special tokens are none, because no text holds them.
"""

import json
import re
from typing import Any

import numpy as np

_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")


def byte_alphabet() -> dict[str, int]:
    """Returns the character that byte-level BPE writes for each byte (GPT-2's `bytes_to_unicode`, inverted)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(256 + place): byte for place, byte in enumerate(others)}


def _component_types(component: Any) -> set[str]:
    """Returns the types in a tokenizer.json component, looking into sequences."""
    if isinstance(component, list):
        return set().union(*map(_component_types, component)) if component else set()
    if not isinstance(component, dict):
        return set()
    inner = [value for key, value in component.items() if key in ("decoders", "pretokenizers", "normalizers")]
    return {str(component.get("type"))} | _component_types(inner)


def token_byte_lengths(backend: Any, vocab_size: int) -> np.ndarray:
    """Returns the bytes of text that each token stands for.

    Byte-level vocabularies are exact. SentencePiece-like ones count `▁` as the space it is and `<0x0A>` as one byte,
    so that a `▁` that the tokenizer itself puts before a text counts one byte too many. Anything else counts the
    token's own characters.

    Args:
        backend: A `tokenizers.Tokenizer`.
        vocab_size: Length of the table; ids that no token has get 0.

    Returns:
        (vocab_size,) int64; 0 for special tokens.
    """
    state = json.loads(backend.to_str())
    byte_level = "ByteLevel" in _component_types(state["decoder"]) | _component_types(state["pre_tokenizer"])
    added = {token["id"]: token for token in state["added_tokens"]}
    alphabet = byte_alphabet()
    lengths = np.zeros(vocab_size, dtype=np.int64)
    for token, index in backend.get_vocab(with_added_tokens=True).items():
        if index in added:
            lengths[index] = 0 if added[index]["special"] else len(token.encode())
        elif byte_level and all(character in alphabet for character in token):
            lengths[index] = len(token)
        elif _BYTE_TOKEN.fullmatch(token):
            lengths[index] = 1
        else:
            lengths[index] = len(token.replace("▁", " ").encode())
    return lengths
