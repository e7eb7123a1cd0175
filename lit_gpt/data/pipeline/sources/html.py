"""`html:`: web pages on this disk, and how a page becomes its main text (trafilatura, Barbaresi 2021, ACL demo)."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from lit_gpt.data.pipeline.parts import NO_TEXT
from lit_gpt.data.records import BadInput, FileRecords, Record
from lit_gpt.data.records.compression import DAMAGED, open_bytes
from lit_gpt.extras import need

Favor = Literal["precision", "recall", "balance"]


class MainText:
    """Takes the main text out of a page, without menus, footers and comments.

    Args:
        favor: `precision` (as FineWeb) leaves out what may be boilerplate, `recall` keeps more.
        tables: Whether tables are text.
        max_page_bytes: A larger page is not parsed: it costs memory and minutes, and is rarely prose.
    """

    def __init__(self, favor: Favor = "precision", tables: bool = True, max_page_bytes: int = 8 << 20) -> None:
        self.favor = favor
        self.tables = tables
        self.max_page_bytes = max_page_bytes

    def record(self, page: bytes, source: str, number: int, metadata: dict[str, str]) -> Record:
        """Return the page's record; one without text says why under `NO_TEXT`."""
        if len(page) > self.max_page_bytes:
            return Record({"text": ""} | metadata | {NO_TEXT: "page_too_large"}, source, number)
        if not page.strip():
            return Record({"text": ""} | metadata | {NO_TEXT: "empty"}, source, number)
        # Not `deduplicate`: trafilatura remembers earlier pages for it, so the result would depend on their order.
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
    """Web pages: one file a page, also as .gz, .zst, .bz2 or .xz.

    Args:
        html: Files, folders or glob patterns; of a folder the files that end in .html, .htm or .xhtml.
        favor: `precision` (as FineWeb) leaves out what may be boilerplate, `recall` keeps more.
        tables: Whether tables are text.
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
            or path.is_dir()  # a folder that may not be read
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
