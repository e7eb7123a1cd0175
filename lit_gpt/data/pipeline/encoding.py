"""Which encoding bytes are in, when it is not UTF-8: by byte order mark, else by the statistics of the decoded text."""

import codecs

from lit_gpt.extras import need

_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SAMPLE_BYTES = 1 << 18


def decode_any(data: bytes) -> tuple[str | None, str]:
    """Decodes text of unknown encoding.

    Args:
        data: A whole file.

    Returns:
        (text, encoding); UTF-8 if it is valid UTF-8 without zero bytes; (None, "unknown") for what is no text.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            try:
                return data.decode(encoding), encoding
            except UnicodeDecodeError:
                return None, "unknown"
    if b"\0" in data:
        return None, "unknown"
    try:
        return data.decode("utf-8-sig"), "utf-8"
    except UnicodeDecodeError:
        pass
    found = need("charset_normalizer", "data", "finding a file's encoding").from_bytes(data[:_SAMPLE_BYTES]).best()
    if found is None:
        return None, "unknown"
    # The statistics cannot tell the Windows code page from its ISO twin; the Windows one holds all of its letters.
    encoding = {"latin_1": "cp1252", "iso8859_1": "cp1252"}.get(found.encoding, found.encoding)
    try:
        return data.decode(encoding), encoding
    except UnicodeDecodeError:
        return None, "unknown"
