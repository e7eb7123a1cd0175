"""Text → hashed words → hashed n-grams: what near-duplicates, shared passages and benchmark overlap are found by.

Stages: lower case, accents removed, punctuation dropped, numbers optionally alike (datatrove's `simplify_text`, which
FineWeb used) → words → one 64-bit hash a word (xxh3, cached, since few words make most of a text) → one 64-bit hash
an n-gram, a multilinear combination of its words' hashes (Carter & Wegman 1979) that numpy computes for all at once.
"""

import re
import unicodedata
from typing import Any

import numpy as np
import regex

from lit_gpt.data.cleaning.normalize import normalize
from lit_gpt.data.cleaning.words import HAS_UNSPACED, UNSPACED
from lit_gpt.extras import need

UInt64Array = np.ndarray[Any, np.dtype[np.uint64]]

_WORD = re.compile(r"\w+")
_UNSPACED_WORD = regex.compile(rf"(?V1)[\w&&[{UNSPACED}]]|[\w--[{UNSPACED}]]++")
_ACCENT = regex.compile(r"\p{Mn}+")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_MAX_CACHED_WORDS = 1 << 19
_MAX_CACHED_CHARS = 48


def match_words(text: str, numbers_alike: bool = False) -> list[str]:
    """Returns the words that matching looks at.

    Args:
        text: Any text.
        numbers_alike: Whether all numbers count as the same word (near-duplicates: yes; benchmarks: no).

    Example:
        >>> match_words("Café No. 12, it's 3.5 km!", numbers_alike=True)
        ['cafe', 'no', '0', 'it', 's', '0', 'km']
    """
    text = text.lower().replace("_", " ")
    if numbers_alike:
        text = _NUMBER.sub("0", text)
    if text.isascii():
        return _WORD.findall(text)
    if not unicodedata.is_normalized("NFD", text):
        text = normalize(text, "NFD")
    text = _ACCENT.sub("", text)
    return _UNSPACED_WORD.findall(text) if HAS_UNSPACED.search(text) else _WORD.findall(text)


class _WordHashes(dict[str, int]):
    """Word → 64-bit hash, computed once for each short word, in bounded memory."""

    def __init__(self) -> None:
        super().__init__()
        self._hash = need("xxhash", "data", "finding duplicates").xxh3_64_intdigest

    def __missing__(self, word: str) -> int:
        value: int = self._hash(word.encode("utf-8", "surrogatepass"))
        if len(word) <= _MAX_CACHED_CHARS:
            if len(self) >= _MAX_CACHED_WORDS:
                self.clear()
            self[word] = value
        return value


_hashes: _WordHashes | None = None


def word_hashes(words: list[str]) -> UInt64Array:
    """Returns one 64-bit hash for each word."""
    global _hashes
    if _hashes is None:
        _hashes = _WordHashes()
    return np.fromiter(map(_hashes.__getitem__, words), np.uint64, len(words))


def n_gram_hashes(hashes: UInt64Array, n: int) -> UInt64Array:
    """Returns one 64-bit hash for each run of n words.

    Args:
        hashes: The words' hashes, (W,).
        n: Words in a run.

    Returns:
        (W - n + 1,), empty if there are fewer than n words.
    """
    num = len(hashes) - n + 1
    if num < 1:
        return np.empty(0, np.uint64)
    total = np.full(num, np.uint64(n))
    for place, factor in enumerate(_factors(n)):
        total += hashes[place : place + num] * factor
    return mixed(total)


def mixed(values: UInt64Array) -> UInt64Array:
    """Returns the values with their bits mixed (splitmix64's finaliser, Steele et al. 2014), in place."""
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


def _factors(n: int) -> UInt64Array:
    golden = np.uint64(0x9E3779B97F4A7C15)
    return mixed(np.arange(1, n + 1, dtype=np.uint64) * golden) | np.uint64(1)
