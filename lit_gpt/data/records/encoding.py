"""Determine the encoding of a text file: by name, by byte order mark, or by detection.

`encoding: utf-8` (the default) is UTF-8, or UTF-16 or UTF-32 if a byte order mark declares it. Any other codec name of
Python is used as given. `detect` keeps valid UTF-8 and chooses an encoding for other files from their non-ASCII bytes,
which are sampled over the whole file.
"""

# ruff: noqa: RUF001 (letters and quotation marks that look alike are the point)

import codecs
import contextlib
import io
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

from lit_gpt.errors import UserError
from lit_gpt.suggest import close_matches

UTF8 = "utf-8"
DETECT = "detect"

# UTF-32 first: its little-endian mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

# Candidates of `detect` with the languages written in them, the more common first: it wins if the bytes do not
# distinguish two. ISO 8859-2 comes before cp1250 because only the latter has letters at 0x80-0x9f, so a file without
# such bytes is assigned to the former. Latin-1 is not included because cp1252 has all of its letters at the same bytes.
_WESTERN = "english french german spanish portuguese italian nordic icelandic dutch"
_CENTRAL = "polish czech hungarian romanian croatian german"
_CANDIDATES = {
    "cp1252": _WESTERN, "cp1251": "russian ukrainian serbian", "cp932": "japanese", "gb18030": "chinese",
    "big5": "chinese", "euc_jp": "japanese", "cp949": "korean", "koi8_r": "russian", "koi8_u": "ukrainian",
    "iso8859_2": _CENTRAL, "cp1250": _CENTRAL, "cp1254": "turkish", "cp1253": "greek", "iso8859_7": "greek",
    "cp1255": "hebrew", "cp1256": "arabic", "cp874": "thai", "cp1257": "lithuanian latvian estonian",
    "iso8859_5": "russian serbian", "cp866": "russian", "mac_roman": _WESTERN, "cp850": _WESTERN,
}  # fmt: skip

# Language → non-ASCII letters that occur in its texts, including those of common loan words.
_LETTERS = {
    "english": "éèêëàâçîïôöüñáíóæœ", "french": "àâæçéèêëîïôœùûüÿ", "german": "äöüßéèà", "spanish": "áéíóúüñ¿¡ºª",
    "portuguese": "áâãàçéêíóôõúüºª", "italian": "àèéìòùîó", "nordic": "åäöæøéèêóòôüàá", "icelandic": "áðéíóúýþæö",
    "dutch": "áéíóúàèëïöü", "polish": "ąćęłńóśźż", "czech": "áäčďéěíĺľňóôöŕřšťúůüýž", "hungarian": "áéíóöőúüű",
    "romanian": "ăâîşţșț", "croatian": "čćđšž", "turkish": "çğıöşüi̇âîû", "lithuanian": "ąčęėįšųūž",
    "latvian": "āčēģīķļņšūž", "estonian": "äõöüšž",
    "russian": "абвгдежзийклмнопрстуфхцчшщъыьэюяё", "ukrainian": "абвгґдеєжзиіїйклмнопрстуфхцчшщьюя",
    "serbian": "абвгдђежзијклљмнњопрстћуфхцчџш", "greek": "αβγδεζηθικλμνξοπρστυφχψωςάέήίόύώϊϋΐΰ",
    "hebrew": "".join(map(chr, range(0x5B0, 0x5EB))),
    "arabic": "".join(map(chr, [*range(0x621, 0x653), *range(0x660, 0x66A), 0x60C, 0x61B, 0x61F, 0x67E, 0x686, 0x6AF])),
    "thai": "".join(map(chr, range(0xE01, 0xE5C))),
}  # fmt: skip
# The most common letters of languages whose letters fill several encodings: their minimum share of a text.
_COMMON = {
    "russian": ("оеаинтслрв", 0.45), "ukrainian": ("оаниіретсв", 0.45), "serbian": ("аиоенрстју", 0.45),
    "greek": ("αοιετνσηρκ", 0.4), "hebrew": ("יוהלאמרתבנש", 0.6), "arabic": ("ايلمونرتبةدعه", 0.5),
    "thai": ("านรอกเงคมยลวดทสี่้", 0.5), "japanese": ("".join(map(chr, range(0x3041, 0x30FF))), 0.25),
    "korean": ("".join(map(chr, range(0xAC00, 0xD7A4))), 0.7),
    "chinese": ("的一是不了人我在有他这为之大来以个中上们到说国和地也子时道出而要于就下得可你年生"
                "這為來個們說國時於會後學對過沒還裡都那好自些麼着着家能心然作里后会学对过没还么", 0.12),
}  # fmt: skip
_NEUTRAL = frozenset("“”„‘’‚–—…«»‹›•·°§©®€£¥™†‡\xa0\xad，。、；：？！（）「」『』《》　")
_MIN_SCORE = 0.6  # with a lower score in every language, the data is not considered text
_MARGIN = 0.02  # encodings within this margin of the best are considered equally plausible
_NEIGHBOURS = re.compile(r"([^\W\d_])(?=([^\W\d_]))")
_QUOTE_IN_WORD = re.compile(r"[A-Za-z][“”„‚†‡…•«»‹›°§](?=[A-Za-z])")
_NEXT_TO_ASCII = re.compile(r"[A-Za-z](?=[^\W\d_A-Za-z])|[^\W\d_A-Za-z](?=[A-Za-z])")

_CHUNK_BYTES = 1 << 20
_SAMPLE_BYTES = 1 << 15
# A run of non-ASCII bytes with the ASCII around it. It never starts inside a multi-byte character, because the ASCII
# before it is longer than the second half of one.
_STRETCH = re.compile(rb"[\x20-\x7e]{0,24}(?:[\x80-\xff]+[\x20-\x7e]{0,8}){1,24}[\x20-\x7e]{0,16}")


@dataclass(frozen=True)
class Encoding:
    """The encoding in which a file is read.

    Attributes:
        name: Python's name of the codec.
        found: Whether it was detected rather than declared by the user or by a byte order mark.
        num_bytes: Number of non-ASCII bytes on which the detection is based.
        alternatives: Equally plausible encodings.
    """

    name: str = UTF8
    found: bool = False
    num_bytes: int = 0
    alternatives: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """`UTF-8` or `cp1252`, for messages."""
        return self.name.upper() if self.name.startswith("utf") else self.name

    def describe(self) -> str:
        """Return a description of the encoding and of how certain it is."""
        if not self.found:
            return self.title
        others = f"; {', '.join(self.alternatives)} would be as plausible" if self.alternatives else ""
        return f"{self.title} (decided on {self.num_bytes:,} bytes beyond ASCII{others})"


def check_encoding(encoding: str) -> None:
    """Raise a `UserError` unless `encoding` is `detect` or a text encoding that Python knows."""
    if encoding == DETECT:
        return
    try:
        io.TextIOWrapper(io.BytesIO(), encoding=encoding)  # unlike codecs.lookup, this rejects base64 and the like
    except LookupError as error:
        near = close_matches(encoding, [DETECT, UTF8, "utf-16", "utf-32", "latin-1", *_CANDIDATES])
        raise UserError(
            f"encoding is {encoding!r}; it can be utf-8, detect or any encoding of Python's such as latin-1 or cp1252"
            + (f"; did you mean {near[0]}?" if near else "")
        ) from error


def choose_encoding(head: bytes, encoding: str, open_file: Callable[[], BinaryIO]) -> Encoding | None:
    """Return the encoding of a file, or None if `detect` finds that it is not text.

    Args:
        head: The first four bytes of its content.
        encoding: Value of the user's `encoding` option.
        open_file: Opens the content at its beginning.

    Raises:
        OSError: if it cannot be read; also the exceptions of damaged compressed data.
    """
    if encoding not in (UTF8, DETECT):
        return Encoding(codecs.lookup(encoding).name)
    for mark, name in _MARKS:
        if head.startswith(mark):
            return Encoding(name)
    return Encoding() if encoding == UTF8 else _detect(open_file)


def _detect(open_file: Callable[[], BinaryIO]) -> Encoding | None:
    stretches: list[bytes] = []
    size = num_bytes = seen = 0
    every = 1  # sample every `every`-th run, evenly over the whole file
    decoder = codecs.getincrementaldecoder(UTF8)()
    is_utf8 = True
    with open_file() as file:
        while data := file.read(_CHUNK_BYTES):
            if b"\0" in data:
                return None  # 8-bit text contains no zero bytes
            if data.isascii():
                if is_utf8:
                    is_utf8 = _feed(decoder, data)
                continue
            if is_utf8:
                is_utf8 = _feed(decoder, data)
            num_bytes += len(data) - len(data.translate(None, bytes(range(0x80, 0x100))))
            for match in _STRETCH.finditer(data):
                if seen % every == 0:
                    stretches.append(match[0])
                    size += len(match[0])
                    if size > _SAMPLE_BYTES:
                        stretches = stretches[::2]
                        size = sum(map(len, stretches))
                        every *= 2
                seen += 1
        if is_utf8 and _feed(decoder, b"", final=True):
            return Encoding()
    for name, alternatives in _ranked(b"\n".join(stretches)):
        if _decodes(open_file, name):
            return Encoding(name, True, num_bytes, alternatives)
    return None


def _feed(decoder: codecs.IncrementalDecoder, data: bytes, final: bool = False) -> bool:
    try:
        decoder.decode(data, final)
    except UnicodeDecodeError:
        return False
    return True


def _decodes(open_file: Callable[[], BinaryIO], name: str) -> bool:
    """Return whether the whole file can be decoded."""
    decoder = codecs.getincrementaldecoder(name)()
    with open_file() as file:
        while data := file.read(_CHUNK_BYTES):
            if not _feed(decoder, data):
                return False
    return _feed(decoder, b"", final=True)


def _ranked(sample: bytes) -> list[tuple[str, tuple[str, ...]]]:
    """Return the plausible encodings of a sample, best first, each with its equally plausible alternatives."""
    texts: dict[str, str] = {}
    scores: dict[str, float] = {}
    for name, languages in _CANDIDATES.items():
        with contextlib.suppress(UnicodeDecodeError):
            texts[name] = sample.decode(name)
            scores[name] = _score(texts[name], languages.split())
    remaining = [name for name in scores if scores[name] >= _MIN_SCORE]
    ranked = []
    while remaining:
        best = max(scores[name] for name in remaining)
        near = [name for name in remaining if scores[name] >= best - _MARGIN]
        others = dict.fromkeys(texts[name] for name in near if texts[name] != texts[near[0]])
        ranked.append((near[0], tuple(next(name for name in near if texts[name] == text) for text in others)))
        remaining.remove(near[0])
    return ranked


def _score(text: str, languages: list[str]) -> float:
    """Return the share of a text's non-ASCII characters that are typical of one of the languages, for the best fit."""
    counts = Counter(character for character in text.lower() if character > "\x7f" and character not in _NEUTRAL)
    total = counts.total()
    if not total:
        return 1.0 if languages == _CANDIDATES["cp1252"].split() else 0.0
    # An uppercase letter after a lowercase one, or a quotation mark inside a word, indicates the wrong encoding.
    misplaced = len(_QUOTE_IN_WORD.findall(text))
    misplaced += sum(a.islower() and b > "\x7f" and b.isupper() for a, b in _NEIGHBOURS.findall(text))
    next_to_ascii = len(_NEXT_TO_ASCII.findall(text))
    capitals = sum(character > "\x7f" and character.isupper() for character in text)
    best = 0.0
    for language in languages:
        letters = _LETTERS.get(language)
        hits = float(total) if letters is None else sum(counts[letter] for letter in set(letters)) - misplaced
        if letters is not None and letters[0] > "\u0370":  # not Latin: its letters do not occur next to ASCII letters
            hits -= next_to_ascii
        if language in _COMMON:
            common, share = _COMMON[language]
            hits *= min(1.0, sum(counts[letter] for letter in set(common)) / total / share)
            hits *= 0.9 if capitals > total / 2 else 1.0  # KOI8 and cp1251 swap lowercase and uppercase
        best = max(best, hits / total)
    return best
