"""`normalize`: one spelling for each character (Unicode Standard Annex #15).

NFC puts "e" and a combining acute together into "é" and changes no meaning; NFKC also replaces compatibility
characters ("ﬁ" → "fi", "①" → "1"), which is wrong for mathematics and code.

Canonical ordering sorts the marks that follow a letter, and CPython does it by insertion: a million marks in a row
take hours. Such runs are sorted here first, with the same result (the order is a stable sort by combining class).
"""

import unicodedata
from itertools import groupby
from typing import Literal

import regex

from lit_gpt.data.cleaning.base import PerDocumentStep, check_choice
from lit_gpt.data.cleaning.step import Doc

FORMS = ("NFC", "NFD", "NFKC", "NFKD")
Form = Literal["NFC", "NFD", "NFKC", "NFKD"]
_LONG_RUN = regex.compile(r"\p{M}{33,}+")


def normalize(text: str, form: Form = "NFC") -> str:
    """Returns the text in a Unicode normalisation form, in time linear in its length (n log n in runs of marks).

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


class Normalize(PerDocumentStep):
    """Brings text into a Unicode normalisation form. Drops nothing.

    Counts `normalized`: documents that changed.

    Args:
        form: NFC (default), NFD, NFKC or NFKD.
    """

    name = "normalize"

    def __init__(self, form: Form = "NFC") -> None:
        super().__init__()
        check_choice("normalize: form", form, FORMS)
        self.form: Form = form

    def apply(self, document: Doc) -> Doc:
        """Returns the document with its text normalised."""
        text = normalize(document.text, self.form)
        if text != document.text:
            self.counts["normalized"] += 1
            document.text = text
        return document
