"""Text repair: `fix_encoding` (mojibake) and `normalize` (Unicode normalization forms). Neither drops a document.

**fix_encoding**: text that was decoded with the wrong encoding gets its letters back ("schÃ¶n" → "schön"). ftfy (Speer
2019, doi:10.5281/zenodo.2591652) undoes the mistake only where the result is sensible. The defaults are those of
datatrove's `FTFYFormatter`, used for FineWeb: repair, and leave style alone (quotes stay curly, ligatures and
full-width letters stay). One differs: HTML entities stay as they are, because `&lt;` in source code is intended.

**normalize**: one spelling for each character (Unicode Standard Annex #15). NFC composes "e" and a combining acute into
"é" and changes no meaning; NFKC also replaces compatibility characters ("ﬁ" → "fi", "①" → "1"), which is wrong for
mathematics and code.
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
# The characters that ftfy removes or replaces wherever they stand; all else that it repairs looks like mojibake.
_INVISIBLE = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f\u206a-\u206f\ud800-\udfff\ufeff\ufff9-\ufffc]")


def repair(text: str, unescape_html: bool = False, remove_control_chars: bool = True) -> str:
    """Return the text with its encoding repaired.

    Args:
        text: Any text; long lines are repaired in pieces of a million characters, so time and memory stay linear.
        unescape_html: Turn entities into characters in texts that hold no "<".
        remove_control_chars: Remove invisible characters and terminal escapes that no text means.
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
    """Repairs mojibake and removes control characters (ftfy). Drops nothing.

    Counts `repaired`: documents that changed.

    Args:
        unescape_html: Turn HTML entities into characters in documents that hold no "<".
        remove_control_chars: Remove control characters and terminal escapes.
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
    """Return the text in a Unicode normalisation form, in time linear in its length (n log n in runs of marks).

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
    """Brings text into a Unicode normalisation form. Drops nothing.

    Counts `normalized`: documents that changed.

    Args:
        form: NFC (default), NFD, NFKC or NFKD.
    """

    name = "normalize"

    def __init__(self, form: Form = "NFC") -> None:
        super().__init__()
        check_one_of("normalize: form", form, FORMS)
        self.form: Form = form

    def apply(self, document: Doc) -> Doc:
        """Return the document with its text normalised."""
        text = normalize(document.text, self.form)
        if text != document.text:
            self.counts["normalized"] += 1
            document.text = text
        return document
