# ruff: noqa: RUF001 (quotation marks and full stops of all scripts)
"""Text → words and sentences, in linear time and without a model, for every filter that counts words.

A word is a run of letters, marks, digits and underscores (an apostrophe inside it included); any other visible
character is a word of its own, as in the tokenizers of spaCy and NLTK that datatrove uses. Scripts that write no spaces
(Han, Kana, Thai, Lao, Khmer, Burmese) give one word per letter with its marks, so that n-grams there mean something.
Measured on English prose: 15 to 23 MB/s on one core, where spaCy's blank pipeline does 0.9 MB/s, with the same
verdicts (`tests/data_cleaning/test_filters_against_datatrove.py`).
"""

import re
from collections.abc import Iterator
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Any

import regex

from lit_gpt.extras import need

if TYPE_CHECKING:
    from datatrove.utils.word_tokenizers import WordTokenizer

UNSPACED = (
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf"
    r"\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9d\U00020000-\U0003ffff"
)
"""The letters of Han, Kana, Thai, Lao, Khmer and Burmese, as a range for a pattern (`re` searches it ten times as fast
as `regex` does script properties)."""
HAS_UNSPACED = re.compile(f"[{UNSPACED}]")
_HAS_MARK = regex.compile(r"\p{M}")
# The bound on apostrophes keeps the regex engines' memory flat in a run of a'a'a'a...
_SIMPLE_WORD = re.compile(r"\w+(?:['’]\w+){0,4}|[^\w\s]")  # `re`'s \w knows no combining marks, `regex`'s does
_MARKED_WORD = regex.compile(r"\w++(?:['’]\w++){0,4}|[^\w\s]")
_SPACED = rf"[\w--[{UNSPACED}]]"
_UNSPACED_WORD = regex.compile(rf"(?V1)[{UNSPACED}--\p{{P}}]\p{{M}}*+|{_SPACED}++(?:['’]{_SPACED}++){{0,4}}|[^\w\s]")
_SENTENCE_END = regex.compile(r"(?V1)[.!?…][.!?…\"'”’»)\]]*+(?=\s|\Z)|[。！？｡।॥؟۔։።][\"'”’」』»）)]*+|\n+|\r\n?+")
_MAX_SENTENCES = 10_000  # a filter only asks whether a line has enough of them
_ABBREVIATION = re.compile(
    r"(?:^|[\s(\"'“‘])(?:[^\W\d_]|(?i:mr|mrs|ms|dr|prof|st|sr|jr|vs|etc|e\.g|i\.e|cf|no|fig|vol|pp|inc|ltd|co))\Z"
)


def split_words(text: str) -> list[str]:
    """Returns the words of a text, punctuation included.

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
    """Yields the start and end of each sentence: it ends at its closing punctuation, or with its line.

    A full stop after a single letter or a usual abbreviation ends none.
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
    """Returns the text, or four evenly spaced pieces of it that are `max_chars` long in all.

    What is a share (of repeated lines, of letters) is the same in an excerpt, and a document of any length is then
    judged in bounded time and memory.
    """
    if len(text) <= max_chars:
        return text
    size = max(max_chars // 4, 1)
    starts = [i * (len(text) - size) // 3 for i in range(4)]
    return "\n".join(text[start : start + size] for start in starts)


@cache
def word_tokenizer(words: str) -> Any:
    """Returns what datatrove's filters take as their `language`.

    Args:
        words: "unicode" for `split_words`; any other value is a language code of datatrove ("en", "de", "zh"), which
            then loads the tokenizer that it has for that language (spaCy's for most).

    Raises:
        UserError: if that tokenizer's library is missing, or datatrove knows no such language.
    """
    need("datatrove", "data", "cleaning")
    from datatrove.utils import word_tokenizers

    from lit_gpt.errors import UserError

    if words == "unicode":
        return _unicode_words()
    try:
        tokenizer = word_tokenizers.load_word_tokenizer(words)
        tokenizer.word_tokenize("one word")
    except ImportError as error:
        raise UserError(
            f"words: {words} needs a library that is not installed ({str(error).strip().splitlines()[-1].strip()}); "
            "install it, or leave words: unicode"
        ) from error
    except ValueError as error:
        raise UserError(f"words is {words!r}; it can be unicode, or a language code that datatrove knows") from error
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
    """Returns part / whole, and 0 of nothing."""
    return part / whole if whole else 0.0
