# ruff: noqa: RUF001 (quotation marks and full stops of all scripts)
"""Split text into words, sentences and hashed n-grams, for filters and duplicate searches.

There are two ways to split, both linear in time and without a model:

- `split_words` keeps the text as written. A word is a run of letters, marks, digits and underscores (including
  apostrophes inside it); any other visible character is a separate word, as in the tokenizers of spaCy and NLTK that
  datatrove uses. Scripts without spaces (Han, Kana, Thai, Lao, Khmer, Burmese) give one word per letter with its marks,
  so that n-grams are meaningful. On English prose it reaches 15 to 23 MB/s on one core, spaCy's blank pipeline 0.9
  MB/s, with the same verdicts (`tests/data/cleaning/test_filters_against_datatrove.py`).
- `match_words` normalizes first, so that copies match: lower case, accents removed, punctuation dropped (datatrove's
 `simplify_text`, which FineWeb used).

`n_gram_hashes` computes one 64-bit hash per n-gram from its words: each word is hashed once (xxh3, cached, because few
words make up most of a text), and an n-gram's hash is a multilinear combination of its words' hashes (Carter & Wegman
1979), which numpy computes for all n-grams at once.
"""

import re
import unicodedata
from collections.abc import Iterator
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import regex

from lit_gpt.data.cleaning.repair import normalize
from lit_gpt.errors import UserError
from lit_gpt.extras import need

if TYPE_CHECKING:
    from datatrove.utils.word_tokenizers import WordTokenizer

UInt64Array = np.ndarray[Any, np.dtype[np.uint64]]

UNSPACED = (
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf"
    r"\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9d\U00020000-\U0003ffff"
)
"""Letters of Han, Kana, Thai, Lao, Khmer and Burmese, as a range for a pattern (`re` searches it ten times as fast as
`regex` searches script properties)."""
HAS_UNSPACED = re.compile(f"[{UNSPACED}]")
_HAS_MARK = regex.compile(r"\p{M}")
# The bound on apostrophes limits the regex engines' memory for a run of a'a'a'a...
_SIMPLE_WORD = re.compile(r"\w+(?:['’]\w+){0,4}|[^\w\s]")  # `re`'s \w excludes combining marks, `regex`'s includes them
_MARKED_WORD = regex.compile(r"\w++(?:['’]\w++){0,4}|[^\w\s]")
_SPACED = rf"[\w--[{UNSPACED}]]"
_UNSPACED_WORD = regex.compile(rf"(?V1)[{UNSPACED}--\p{{P}}]\p{{M}}*+|{_SPACED}++(?:['’]{_SPACED}++){{0,4}}|[^\w\s]")
_SENTENCE_END = regex.compile(r"(?V1)[.!?…][.!?…\"'”’»)\]]*+(?=\s|\Z)|[。！？｡।॥؟۔։።][\"'”’」』»）)]*+|\n+|\r\n?+")
_MAX_SENTENCES = 10_000  # filters only check whether a line has enough of them
_ABBREVIATION = re.compile(
    r"(?:^|[\s(\"'“‘])(?:[^\W\d_]|(?i:mr|mrs|ms|dr|prof|st|sr|jr|vs|etc|e\.g|i\.e|cf|no|fig|vol|pp|inc|ltd|co))\Z"
)


def split_words(text: str) -> list[str]:
    """Return the words of a text, including punctuation.

    Example:
        >>> split_words("It's 3.5 km, naïve Tolstoï!")
        ["It's", '3', '.', '5', 'km', ',', 'naïve', 'Tolstoï', '!']
    """
    if text.isascii():
        return _SIMPLE_WORD.findall(text)
    if HAS_UNSPACED.search(text):
        return _UNSPACED_WORD.findall(text)
    return (_MARKED_WORD if _HAS_MARK.search(text) else _SIMPLE_WORD).findall(text)


def sentence_spans(text: str) -> Iterator[tuple[int, int]]:
    """Yield the start and end of each sentence, which ends at closing punctuation or at the end of its line.

    A period after a single letter or a common abbreviation does not end a sentence.
    """
    start = 0
    for match in _SENTENCE_END.finditer(text):
        before = text[max(start, match.start() - 8) : match.start()]
        if text[match.start()] == "." and _ABBREVIATION.search(before):
            continue
        if text[start : match.end()].strip():
            yield start, match.end()
            start = match.end()
    if text[start:].strip():
        yield start, len(text)


def excerpt(text: str, max_chars: int) -> str:
    """Return the text, or four evenly spaced pieces of it with a total length of `max_chars`.

    Proportions (of repeated lines, of letters) are the same in an excerpt, and documents of any length are judged in
    bounded time and memory.
    """
    if len(text) <= max_chars:
        return text
    size = max(max_chars // 4, 1)
    starts = [i * (len(text) - size) // 3 for i in range(4)]
    return "\n".join(text[start : start + size] for start in starts)


@cache
def word_tokenizer(words: str) -> Any:
    """Return the value of the `language` argument of datatrove's filters.

    Args:
        words: "unicode" for `split_words`; any other value is a language code of datatrove ("en", "de", "zh"), for
            which datatrove loads its own tokenizer (spaCy for most languages).

    Raises:
        UserError: if that tokenizer's library is missing, or datatrove knows no such language.
    """
    need("datatrove", "data", "cleaning")
    from datatrove.utils import word_tokenizers

    if words == "unicode":
        return _unicode_words()
    try:
        tokenizer = word_tokenizers.load_word_tokenizer(words)
        tokenizer.word_tokenize("one word")
    except ImportError as error:
        raise UserError(
            f"words: {words} needs a library that is not installed ({str(error).strip().splitlines()[-1].strip()}); "
            "install it, or use words: unicode"
        ) from error
    except ValueError as error:
        raise UserError(f"words is {words!r}; it can be unicode, or a language code that datatrove supports") from error
    return tokenizer


def _unicode_words() -> "WordTokenizer":
    from datatrove.utils.word_tokenizers import WordTokenizer

    class UnicodeWords(WordTokenizer):
        """`split_words` and `sentence_spans` as a word tokenizer of datatrove."""

        def word_tokenize(self, text: str) -> list[str]:
            return split_words(text)

        def sent_tokenize(self, text: str) -> list[str]:
            return [text[start:end].strip() for start, end in sentence_spans(text)]

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            return list(islice(sentence_spans(text), _MAX_SENTENCES))

    return UnicodeWords()


def share(part: int, whole: int) -> float:
    """Return part / whole, or 0 if whole is 0."""
    return part / whole if whole else 0.0


# Normalized words and hashes of n-grams

_WORD = re.compile(r"\w+")
_MATCHED_WORD = regex.compile(rf"(?V1)[\w&&[{UNSPACED}]]|[\w--[{UNSPACED}]]++")
_ACCENT = regex.compile(r"\p{Mn}+")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_MAX_CACHED_WORDS = 1 << 19
_MAX_CACHED_CHARS = 48


def match_words(text: str, ignore_numbers: bool = False) -> list[str]:
    """Return the normalized words that are compared.

    Args:
        text: Any text.
        ignore_numbers: Whether all numbers count as the same word, as in datatrove and FineWeb.

    Example:
        >>> match_words("Café No. 12, it's 3.5 km!", ignore_numbers=True)
        ['cafe', 'no', '0', 'it', 's', '0', 'km']
    """
    text = text.lower().replace("_", " ")
    if ignore_numbers:
        text = _NUMBER.sub("0", text)
    if text.isascii():
        return _WORD.findall(text)
    if not unicodedata.is_normalized("NFD", text):
        text = normalize(text, "NFD")
    text = _ACCENT.sub("", text)
    return _MATCHED_WORD.findall(text) if HAS_UNSPACED.search(text) else _WORD.findall(text)


class _WordHashes(dict[str, int]):
    """Maps words to 64-bit hashes, which are computed once for each short word, in bounded memory."""

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
    """Return one 64-bit hash per word."""
    global _hashes
    if _hashes is None:
        _hashes = _WordHashes()
    return np.fromiter(map(_hashes.__getitem__, words), np.uint64, len(words))


def n_gram_hashes(hashes: UInt64Array, n: int) -> UInt64Array:
    """Return one 64-bit hash for each n-gram of n words.

    Args:
        hashes: Word hashes, (W,).
        n: Words per n-gram.

    Returns:
        (W - n + 1,), empty if there are fewer than n words.
    """
    num = len(hashes) - n + 1
    if num < 1:
        return np.empty(0, np.uint64)
    total = np.full(num, np.uint64(n))
    for position, factor in enumerate(_factors(n)):
        total += hashes[position : position + num] * factor
    return mixed(total)


def mixed(values: UInt64Array) -> UInt64Array:
    """Mix the bits of the values in place (SplitMix64's finalizer, Steele et al. 2014) and return them."""
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


def _factors(n: int) -> UInt64Array:
    golden = np.uint64(0x9E3779B97F4A7C15)
    return mixed(np.arange(1, n + 1, dtype=np.uint64) * golden) | np.uint64(1)
