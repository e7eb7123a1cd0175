"""Which documents are held out: a pure function of each document's own text.

The SHA-256 of a text is a number drawn evenly from [0, 1). The lowest `val_fraction` of that range is validation, the
highest `test_fraction` is test, the rest trains. Hence adding documents moves none of the old ones, changing one
fraction leaves the other split alone, and exact copies of a text never stand on both sides.
"""

import hashlib
import math

from lit_gpt.data.documents import SplitName
from lit_gpt.errors import UserError


def document_hash(text: str) -> bytes:
    """Returns the SHA-256 (32 bytes) of the text's UTF-8 bytes.

    Raises:
        UnicodeEncodeError: if the text holds a lone surrogate, which is no Unicode text.
    """
    return hashlib.sha256(text.encode()).digest()


def uniform(digest: bytes) -> float:
    """Returns the digest's place in [0, 1), from its first 53 bits."""
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def choose_split(digest: bytes, val_fraction: float, test_fraction: float) -> SplitName:
    """Returns the split of the document with this hash."""
    place = uniform(digest)
    if place < val_fraction:
        return "val"
    return "test" if place >= 1.0 - test_fraction else "train"


def check_fractions(val_fraction: float, test_fraction: float) -> None:
    """Raises a `UserError` unless both fractions are at least 0 and leave something to train on."""
    for name, fraction in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
        if not (math.isfinite(fraction) and 0.0 <= fraction < 1.0):
            raise UserError(f"{name} is {fraction}; it must be at least 0 and below 1")
    if val_fraction + test_fraction >= 1.0:
        raise UserError(
            f"val_fraction {val_fraction} and test_fraction {test_fraction} leave nothing to train on; "
            "their sum must be below 1"
        )
