"""Makes text harmless to look at: a corpus may hold what moves a terminal's cursor or turns a line round."""

import unicodedata

_NAMED = {"\n": "⏎", "\t": "⇥", "\r": "␍"}


def visible(text: str, keep: str = "") -> str:
    """Returns the text with control, format and unassigned characters written out.

    Args:
        text: Any text.
        keep: Characters to leave as they are, such as the line end.
    """
    return "".join(
        character if character in keep or not _is_hidden(character) else _NAMED.get(character) or _escaped(character)
        for character in text
    )


def _is_hidden(character: str) -> bool:
    # Joiners make emoji and Indic scripts what they are; other format characters change how the rest is read.
    category = unicodedata.category(character)
    return category in ("Cc", "Co", "Cn", "Cs", "Zl", "Zp") or (category == "Cf" and character not in "\u200d\u200c")


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
