"""`warc:`: web archives as Common Crawl keeps them: pages (WARC, main text by trafilatura) or their text (WET).

The format is ISO 28500. A document's record is the number of its record in the archive, from 1.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from lit_gpt.data.pipeline.parts import NO_TEXT
from lit_gpt.data.pipeline.sources.html import Favor, MainText
from lit_gpt.data.records import BadInput, FileRecords, Record
from lit_gpt.data.records.compression import DAMAGED, open_bytes
from lit_gpt.extras import need

_PAGE_TYPES = ("text/html", "application/xhtml+xml")


class WarcFiles(FileRecords):
    """Web archives: .warc or .wet, also as .gz, .zst, .bz2 or .xz.

    Args:
        warc: Files, folders or glob patterns.
        favor: `precision` (as FineWeb) leaves out what may be boilerplate, `recall` keeps more.
        tables: Whether tables are text.
        max_page_bytes: Larger pages and texts are dropped, and counted as page_too_large.
    """

    kind = "warc"

    def __init__(
        self, warc: str | list[str], favor: Favor = "precision", tables: bool = True, max_page_bytes: int = 8 << 20
    ) -> None:
        super().__init__(warc, keep=None)
        self.main_text = MainText(favor, tables, max_page_bytes)

    def read_file(
        self, name: str, path: Path, bad_input: BadInput, columns: Sequence[str] | None = None
    ) -> Iterator[Record]:
        """Yield the pages that were answered with 200 and are HTML, and the texts of a WET file."""
        for number, kind, metadata, data in self._records(name, path, bad_input):
            if kind == "response":
                yield self.main_text.record(data, name, number, metadata)
            elif len(data) > self.main_text.max_page_bytes:
                yield Record({"text": ""} | metadata | {NO_TEXT: "page_too_large"}, name, number)
            else:
                yield Record({"text": data.decode("utf-8", "replace")} | metadata, name, number)

    def _records(self, name: str, path: Path, bad_input: BadInput) -> Iterator[tuple[int, str, dict[str, str], bytes]]:
        """Yield (number, type, metadata, content) of pages and texts; of a content, a byte more than is allowed."""
        warcio = need("warcio", "data", "reading web archives")
        from warcio.archiveiterator import ArchiveIterator

        # warcio reports damage by its own error, or falls over what a header should have held.
        damaged = (warcio.exceptions.ArchiveLoadFailed, AttributeError, TypeError, ValueError, LookupError)
        number = 0
        damage: BaseException | None = None
        with open_bytes(path) as file:
            stream = _Plain(file)
            records = iter(ArchiveIterator(stream))
            while damage is None:
                try:
                    record = next(records, None)
                    if record is None:
                        break
                    number += 1
                    headers = record.rec_headers
                    wanted = record.rec_type == "conversion" or (record.rec_type == "response" and _is_page(record))
                    data = record.content_stream().read(self.main_text.max_page_bytes + 1) if wanted else b""
                except damaged as error:
                    damage = error
                    break
                if record.rec_type is None:
                    bad_input.reject(f"{name}:{number}", "the record has no WARC-Type")
                if wanted and stream.damage is None:  # else it is cut off
                    metadata = {"url": headers.get_header("WARC-Target-URI") or ""}
                    if date := headers.get_header("WARC-Date"):
                        metadata["date"] = date
                    yield number, record.rec_type, metadata, data
            damage = damage or stream.damage
        if damage is not None:
            bad_input.reject(f"{name}:{number + 1}", f"the archive is damaged ({damage})")
        elif number == 0 and path.stat().st_size:
            bad_input.reject(name, "it holds no WARC record")


class _Plain:
    """An archive decompressed by us, which remembers that it was cut off: warcio takes that for its end."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.damage: BaseException | None = None

    def read(self, size: int = -1) -> bytes:
        try:
            data: bytes = self._file.read1(size) if hasattr(self._file, "read1") else self._file.read(size)
        except DAMAGED as error:
            self.damage = error
            return b""
        return data


def _is_page(record: object) -> bool:
    headers = getattr(record, "http_headers", None)
    if headers is None or headers.get_statuscode() != "200":
        return False
    return (headers.get_header("Content-Type") or "text/html").split(";")[0].strip().lower() in _PAGE_TYPES
