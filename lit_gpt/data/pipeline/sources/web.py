"""`html:` and `warc:`: web pages, from which the main text is extracted (trafilatura, Barbaresi 2021, ACL demo).

A page is a local file, or a record of a web archive as published by Common Crawl: pages (WARC), or their text (WET).
The format of archives is ISO 28500; a document's record is the number of its record in the archive, from 1.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Literal

from lit_gpt.data.pipeline.parts import NO_TEXT
from lit_gpt.data.records import BadInput, FileRecords, Record
from lit_gpt.data.records.compression import DAMAGED, open_bytes
from lit_gpt.extras import need

Favor = Literal["precision", "recall", "balance"]


class MainText:
    """Extracts the main text of a page, without menus, footers and comments.

    Args:
        favor: `precision` (as FineWeb) excludes possible boilerplate, `recall` keeps more.
        tables: Whether to include tables.
        max_page_bytes: Larger pages are not parsed: they cost memory and minutes, and are rarely prose.
    """

    def __init__(self, favor: Favor = "precision", tables: bool = True, max_page_bytes: int = 8 << 20) -> None:
        self.favor = favor
        self.tables = tables
        self.max_page_bytes = max_page_bytes

    def record(self, page: bytes, source: str, number: int, metadata: dict[str, str]) -> Record:
        """Return the page's record; one without text has the reason under `NO_TEXT`."""
        if len(page) > self.max_page_bytes:
            return Record({"text": ""} | metadata | {NO_TEXT: "page_too_large"}, source, number)
        if not page.strip():
            return Record({"text": ""} | metadata | {NO_TEXT: "empty"}, source, number)
        # Not `deduplicate`: for it trafilatura remembers earlier pages, so the result would depend on their order.
        text = need("trafilatura", "data", "reading web pages").extract(
            page,
            favor_precision=self.favor == "precision",
            favor_recall=self.favor == "recall",
            include_comments=False,
            include_tables=self.tables,
            deduplicate=False,
        )
        if not text:
            return Record({"text": ""} | metadata | {NO_TEXT: "no_main_text"}, source, number)
        return Record({"text": text} | metadata, source, number)


class HtmlFiles(FileRecords):
    """Web pages, one file per page, optionally .gz, .zst, .bz2 or .xz.

    Args:
        html: Files, folders or glob patterns; in a folder, the files ending in .html, .htm or .xhtml.
        favor: `precision` (as FineWeb) excludes possible boilerplate, `recall` keeps more.
        tables: Whether to include tables.
        max_page_bytes: Larger pages are dropped, and counted as page_too_large.
    """

    kind = "html"

    def __init__(
        self, html: str | list[str], favor: Favor = "precision", tables: bool = True, max_page_bytes: int = 8 << 20
    ) -> None:
        super().__init__(html, keep=None)
        self.main_text = MainText(favor, tables, max_page_bytes)

    def files(self) -> list[tuple[str, Path]]:
        """List the pages."""
        patterns = [self._named] if isinstance(self._named, str) else self._named
        named = {Path(str(pattern)).expanduser().name for pattern in patterns}
        suffixes = {".html", ".htm", ".xhtml"}
        return [
            (name, path)
            for name, path in super().files()
            if name in named
            or suffixes.intersection(suffix.lower() for suffix in path.suffixes[-2:])
            or path.is_dir()  # an unreadable folder
        ]

    def read_file(
        self, name: str, path: Path, bad_input: BadInput, columns: Sequence[str] | None = None
    ) -> Iterator[Record]:
        """Yield the page's main text."""
        try:
            with open_bytes(path) as file:
                page = file.read(self.main_text.max_page_bytes + 1)
        except DAMAGED as error:
            bad_input.reject(name, f"the compressed data are damaged ({error})")
            return
        yield self.main_text.record(page, name, 0, {})


_PAGE_TYPES = ("text/html", "application/xhtml+xml")


class WarcFiles(FileRecords):
    """Web archives (.warc or .wet), optionally .gz, .zst, .bz2 or .xz.

    Args:
        warc: Files, folders or glob patterns.
        favor: `precision` (as FineWeb) excludes possible boilerplate, `recall` keeps more.
        tables: Whether to include tables.
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
        """Yield the HTML pages with status 200, and the texts of a WET file."""
        for number, kind, metadata, data in self._records(name, path, bad_input):
            if kind == "response":
                yield self.main_text.record(data, name, number, metadata)
            elif len(data) > self.main_text.max_page_bytes:
                yield Record({"text": ""} | metadata | {NO_TEXT: "page_too_large"}, name, number)
            else:
                yield Record({"text": data.decode("utf-8", "replace")} | metadata, name, number)

    def _records(self, name: str, path: Path, bad_input: BadInput) -> Iterator[tuple[int, str, dict[str, str], bytes]]:
        """Yield (number, type, metadata, content) of pages and texts.

        Content is read up to one byte beyond the limit, so that oversized pages can be detected.
        """
        warcio = need("warcio", "data", "reading web archives")
        from warcio.archiveiterator import ArchiveIterator

        # warcio reports damage by its own exception, or fails with an unrelated exception on malformed headers.
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
                if wanted and stream.damage is None:  # otherwise it is truncated
                    metadata = {"url": headers.get_header("WARC-Target-URI") or ""}
                    if date := headers.get_header("WARC-Date"):
                        metadata["date"] = date
                    yield number, record.rec_type, metadata, data
            damage = damage or stream.damage
        if damage is not None:
            bad_input.reject(f"{name}:{number + 1}", f"the archive is damaged ({damage})")
        elif number == 0 and path.stat().st_size:
            bad_input.reject(name, "it contains no WARC record")


class _Plain:
    """Wraps a decompressed stream and records truncation errors, which warcio would treat as end of file."""

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
