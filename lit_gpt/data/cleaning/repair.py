"""Text repair: `fix_encoding` (mojibake) and `normalize` (Unicode normalization forms). Neither drops a document.

**fix_encoding** restores text that was decoded with the wrong encoding ("schÃ
n" → "schön"). ftfy (Speer 2019, doi:10.5281/zenodo.2591652) undoes the error only if the result is plausible. The
defaults are those of datatrove's `FTFYFormatter`, used for FineWeb: repair, but do not change style (curly quotes,
ligatures and full-width letters are kept). One differs: HTML entities are kept, because `&lt;` in source code is
intended.

**normalize** gives each character a unique encoding (Unicode Standard Annex #15). NFC composes "e" and a combining
acute into "é" without changing the meaning; NFKC also replaces compatibility characters ("ﬁ" → "fi", "①" → "1"), which
is wrong for mathematics and code.
"""

import re
import unicodedata
from itertools import groupby
from typing import Literal

import regex

from lit_gpt.checks import check_one_of
from lit_gpt.data.cleaning.base import Doc, Transform
from lit_gpt.extras import need

MAX_PIECE_CHARS = 1_000_000
# Characters that ftfy always removes or replaces; everything else that it repairs looks like mojibake.
_INVISIBLE = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f\u206a-\u206f\ud800-\udfff\ufeff\ufff9-\ufffc]")


def repair(text: str, unescape_html: bool = False, remove_control_chars: bool = True) -> str:
    """Return the text with its encoding repaired.

    Args:
        text: Any text; long lines are repaired in pieces of a million characters, so that time and memory are linear.
        unescape_html: Whether to unescape HTML entities in texts without "<".
        remove_control_chars: Whether to remove invisible characters and terminal escapes, which no text needs.
    """
    entities = unescape_html and "&" in text and "<" not in text
    if text.isascii() and not entities and not _INVISIBLE.search(text):
        return text
    ftfy = need("ftfy", "data", "fix_encoding")
    if not entities and not _INVISIBLE.search(text) and not ftfy.badness.is_bad(text):
        return text
    config = ftfy.TextFixerConfig(
        unescape_html=entities,
        remove_terminal_escapes=remove_control_chars,
        fix_latin_ligatures=False,
        fix_character_width=False,
        uncurl_quotes=False,
        fix_line_breaks=False,
        remove_control_chars=remove_control_chars,
        normalization=None,
        max_decode_length=MAX_PIECE_CHARS,
    )
    return "\n".join(
        line if line.isascii() and not entities and not _INVISIBLE.search(line) else ftfy.fix_text(line, config)
        for line in text.split("\n")
    )


class FixEncoding(Transform):
    """Repairs mojibake and removes control characters (ftfy). It drops no document.

    Counts the changed documents as `repaired`.

    Args:
        unescape_html: Whether to unescape HTML entities in documents without "<".
        remove_control_chars: Whether to remove control characters and terminal escapes.
    """

    name = "fix_encoding"

    def __init__(self, unescape_html: bool = False, remove_control_chars: bool = True) -> None:
        super().__init__()
        self.unescape_html = unescape_html
        self.remove_control_chars = remove_control_chars

    def apply(self, document: Doc) -> Doc:
        """Return the document with its text repaired."""
        fixed = repair(document.text, self.unescape_html, self.remove_control_chars)
        if fixed != document.text:
            self.counts["repaired"] += 1
            document.text = fixed
        return document


FORMS = ("NFC", "NFD", "NFKC", "NFKD")
Form = Literal["NFC", "NFD", "NFKC", "NFKD"]
_LONG_RUN = regex.compile(r"\p{M}{33,}+")


def normalize(text: str, form: Form = "NFC") -> str:
    """Return the text in a Unicode normalization form, in linear time (n log n in runs of combining marks).

    Args:
        text: Any text.
        form: NFC, NFD, NFKC or NFKD.
    """
    if text.isascii() or unicodedata.is_normalized(form, text):
        return text
    decomposition: Form = "NFKD" if "K" in form else "NFD"
    return unicodedata.normalize(form, _LONG_RUN.sub(lambda run: _ordered(run[0], decomposition), text))


def _ordered(marks: str, decomposition: Form) -> str:
    decomposed = "".join(unicodedata.normalize(decomposition, mark) for mark in marks)
    parts: list[str] = []
    for moves, run in groupby(decomposed, key=lambda mark: unicodedata.combining(mark) != 0):
        letters = list(run)
        parts += sorted(letters, key=unicodedata.combining) if moves else letters
    return "".join(parts)


class Normalize(Transform):
    """Converts text to a Unicode normalization form. It drops no document.

    Counts the changed documents as `normalized`.

    Args:
        form: NFC (default), NFD, NFKC or NFKD.
    """

    name = "normalize"

    def __init__(self, form: Form = "NFC") -> None:
        super().__init__()
        check_one_of("normalize: form", form, FORMS)
        self.form: Form = form

    def apply(self, document: Doc) -> Doc:
        """Return the document with normalized text."""
        text = normalize(document.text, self.form)
        if text != document.text:
            self.counts["normalized"] += 1
            document.text = text
        return document
