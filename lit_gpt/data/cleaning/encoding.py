"""`fix_encoding`: text that was decoded wrongly somewhere on its way gets its letters back ("schÃ¶n" → "schön").

ftfy (Speer 2019, doi:10.5281/zenodo.2591652) undoes the mistake only where the result is sensible. The defaults are
those of datatrove's `FTFYFormatter`, used for FineWeb: repair, and leave style alone (quotes stay curly, ligatures and
full-width letters stay). One differs: HTML entities stay as they are, because `&lt;` in source code is meant.
"""

import re

from lit_gpt.data.cleaning.base import PerDocumentStep
from lit_gpt.data.cleaning.step import Doc
from lit_gpt.extras import need

MAX_PIECE_CHARS = 1_000_000
# The characters that ftfy removes or replaces wherever they stand; all else that it repairs looks like mojibake.
_INVISIBLE = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f\u206a-\u206f\ud800-\udfff\ufeff\ufff9-\ufffc]")


def repair(text: str, unescape_html: bool = False, remove_control_chars: bool = True) -> str:
    """Returns the text with its encoding repaired.

    Args:
        text: Any text; long lines are repaired in pieces of a million characters, so time and memory stay linear.
        unescape_html: Turn entities into characters in texts that hold no "<".
        remove_control_chars: Remove invisible characters and terminal escapes that no text means.
    """
    entities = unescape_html and "&" in text and "<" not in text
    if text.isascii() and not entities and not _INVISIBLE.search(text):
        return text
    ftfy = need("ftfy", "data", "the step fix_encoding")
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


class FixEncoding(PerDocumentStep):
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
        """Returns the document with its text repaired."""
        fixed = repair(document.text, self.unescape_html, self.remove_control_chars)
        if fixed != document.text:
            self.counts["repaired"] += 1
            document.text = fixed
        return document
