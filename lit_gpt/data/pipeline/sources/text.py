"""`files:`: text, code and tables on this disk, as every other reader of records reads them."""

from lit_gpt.data.records import FileFormat, FileRecords
from lit_gpt.data.records.formats import Quoting


class TextFiles(FileRecords):
    """Local files: text, JSON, JSON lines, CSV, TSV, Parquet, Arrow; each also as .gz, .zst, .bz2 or .xz.

    Args:
        files: Files, folders or glob patterns (`**` crosses folders).
        text_field: Field or column that holds the text, or a template of fields: "{question} {answer}".
        document_separator: String at which plain text files are cut into documents; null does not cut.
        encoding: `utf-8` takes any other encoding for bad input, unless a byte order mark declares it; a name such as
            `latin-1`; or `detect`, which decides for each file that is not UTF-8. A document of another encoding than
            UTF-8 keeps its name.
        quoting: Of CSV and TSV: `strict`, or `none` where quotes are characters like any other.
        delimiter: Between cells of CSV and TSV; null: a comma for .csv, a tab for .tsv.
        column_names: Names of the columns, for CSV and TSV files whose first line is a row.
        keep_columns: Fields that go along as metadata (url, language, license, ...).
    """

    def __init__(
        self,
        files: str | list[str],
        text_field: str = "text",
        document_separator: str | None = None,
        encoding: str = "utf-8",
        quoting: Quoting = "strict",
        delimiter: str | None = None,
        column_names: list[str] | None = None,
        keep_columns: list[str] | None = None,
    ) -> None:
        format = FileFormat(encoding, quoting, delimiter, column_names)
        super().__init__(files, text_field, document_separator, format=format, keep=keep_columns or ())
