"""Every format yields its documents; everything that cannot be read is named, and skipped or fatal by the flag."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from lit_gpt.data.records import BadInput, Document, FileRecords, formats
from lit_gpt.errors import UserError


def documents(path: Path, bad: BadInput, field: str = "text", separator: str | None = None) -> Iterator[Document]:
    return FileRecords([(path.name, path)], field, separator).documents(bad)


def read(path: Path, mode: str = "error", field: str = "text", separator: str | None = None) -> list[Document]:
    return list(documents(path, BadInput(mode), field, separator))  # type: ignore[arg-type]


def skipped(path: Path, field: str = "text", separator: str | None = None) -> tuple[list[str], list[str]]:
    """(texts, what was named) in mode skip."""
    bad = BadInput("skip")
    texts = [document.text for document in documents(path, bad, field, separator)]
    assert bad.num_skipped == len(bad.named)
    return texts, bad.named


ROWS = [{"text": "one"}, {"text": "zwei\nZeilen ß", "id": 3}, {"text": "三 🙂"}]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.py", "a.weird", "a.txt.gz", "a.txt.zst"])
def test_a_text_file_is_one_document(tmp_path: Path, name: str) -> None:
    data = "\ufeffline one\r\nline ß 🙂\n".encode()
    compress = {".gz": gzip.compress, ".zst": zstandard.compress}.get(Path(name).suffix, bytes)
    (tmp_path / name).write_bytes(compress(data))
    assert read(tmp_path / name) == [Document("line one\r\nline ß 🙂\n", name)]


@pytest.mark.parametrize("suffix", ["jsonl", "ndjson", "jsonl.gz", "jsonl.zst"])
def test_jsonl(tmp_path: Path, suffix: str) -> None:
    compress = {"gz": gzip.compress, "zst": zstandard.compress}.get(suffix.split(".")[-1], bytes)
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(compress(JSONL.replace(b"\n", b"\n\n", 1)))  # an empty line is no row
    assert read(path) == [Document(row["text"], path.name, n) for row, n in zip(ROWS, (1, 3, 4), strict=True)]


def test_zstandard_files_of_several_frames(tmp_path: Path) -> None:
    lines = JSONL.splitlines(keepends=True)
    (tmp_path / "a.jsonl.zst").write_bytes(b"".join(map(zstandard.compress, lines)))
    assert [d.text for d in read(tmp_path / "a.jsonl.zst")] == [row["text"] for row in ROWS]


def test_csv_and_tsv(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('id,body\n1,"a, ""quoted""\ntext"\n2,ß\n', encoding="utf-8")
    assert read(tmp_path / "a.csv", field="body") == [
        Document('a, "quoted"\ntext', "a.csv", 3),
        Document("ß", "a.csv", 4),
    ]
    (tmp_path / "a.tsv").write_text("body\tid\na, b\t1\n")
    assert [d.text for d in read(tmp_path / "a.tsv", field="body")] == ["a, b"]


def test_parquet(tmp_path: Path) -> None:
    table = pyarrow.table({"id": list(range(600)), "text": [f"row {i} ß" for i in range(600)]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=100)
    documents = read(tmp_path / "a.parquet")
    assert documents[0] == Document("row 0 ß", "a.parquet", 1)
    assert documents[-1] == Document("row 599 ß", "a.parquet", 600)
    assert len(documents) == 600


def test_a_separator_cuts_text_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one<|endoftext|>\n<|endoftext|>two\n<|endoftext|>three")
    documents = read(tmp_path / "a.txt", separator="<|endoftext|>")
    assert [(d.text, d.record) for d in documents] == [("one", 1), ("two\n", 2), ("three", 3)]


def test_long_text_files_are_cut_at_line_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "MAX_DOCUMENT_BYTES", 64)
    text = "".join(f"line {i} ß\n" for i in range(40)) + "x" * 100
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    documents = read(tmp_path / "a.txt")
    assert "".join(d.text for d in documents) == text
    assert [d.record for d in documents] == list(range(1, len(documents) + 1))
    assert all(len(d.text) <= 64 for d in documents)
    assert all(d.text.endswith("\n") for d in documents if "x" not in d.text)
    # With a separator that lies across two reads, documents are what a plain split gives.
    text = text.rstrip("x")
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    assert [d.text for d in read(tmp_path / "a.txt", separator="ß\nline")] == text.split("ß\nline")


def test_the_separator_wins_over_long_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "MAX_DOCUMENT_BYTES", 64)
    (tmp_path / "a.txt").write_bytes(b"good\n\n" * 30 + b"\xff bad")
    texts, named = skipped(tmp_path / "a.txt", separator="\n\n")
    assert texts == []  # a file that turns out bad late leaves nothing of its beginning
    assert "a.txt" in named[0]
    assert "UTF-8" in named[0]


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("a.txt", b"caf\xe9", "a.txt: it is not valid UTF-8"),
        ("a.bin", b"\x7fELF\0\0", "a.bin: it is binary"),
        ("a.txt.gz", gzip.compress(b"x" * 9999, mtime=0)[:30], "a.txt.gz: the compressed data are damaged"),
        ("a.txt.gz", b"no gzip at all", "a.txt.gz: the compressed data are damaged"),
        (
            "a.txt.zst",
            zstandard.compress(bytes(range(1, 200)) * 99)[:-20],
            "a.txt.zst: the compressed data are damaged",
        ),
        ("a.txt.zst", b"no zstandard", "a.txt.zst: the compressed data are damaged"),
        ("a.parquet", b"PAR1 no parquet", "a.parquet: it is not a readable Parquet file"),
        ("a.csv", b"text\nok\n\xff\n", "a.csv: it is not valid UTF-8"),
        ("a.csv", b"id,body\n1,x\n", "a.csv:1: no column 'text'; its columns are 'id', 'body'"),
        ("a.csv", b"id,text\n1\n", "a.csv:2: it has fewer cells (1) than the header has columns (2)"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, data: bytes, expected: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match="on_bad_input: skip") as error:
        read(tmp_path / name)
    assert str(error.value).startswith(expected)
    _, named = skipped(tmp_path / name)
    assert [line[: len(expected)] for line in named] == [expected]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"text": "cut', "the line is not JSON"),
        (b"not json", "the line is not JSON"),
        (b'{"text": "\xff"}', "the line is not valid UTF-8"),
        (b'{"title": "a", "body": "b"}', "no field 'text'; its fields are 'title', 'body'"),
        (b"{}", "no field 'text'; its fields are none"),
        (b'{"text": null}', "the field 'text' is NoneType"),
        (b'["text"]', "it is a JSON list"),
        (b'{"text": "a", "n": ' + b"9" * 5000 + b"}", "the line is not JSON"),
        (b'{"text": "' + b"x" * 300 + b'"}', "the line is longer than 200 bytes"),
    ],
)
def test_bad_lines_are_named_by_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: bytes, expected: str
) -> None:
    monkeypatch.setattr(formats, "MAX_LINE_BYTES", 200 if b"xxx" in line else 6000)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "good"}\n' + line + b'\n{"text": "also good"}\n')
    with pytest.raises(UserError, match="on_bad_input: skip") as error:
        read(path)
    assert str(error.value).startswith(f"rows.jsonl:2: {expected}")
    texts, named = skipped(path)
    assert texts == ["good", "also good"]
    assert named[0].startswith(f"rows.jsonl:2: {expected}")


@pytest.mark.parametrize(
    "content",
    [
        '[{"text": "one"}, {"text": "two"}]',
        '{"version": 1, "data": [\n  {"text": "one"},\n  {"text": "two"}\n]}',
        '{"text": "one"}\n{"text": "two"}\n',
    ],
)
def test_a_json_file_holds_records(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text("\ufeff" + content)
    assert read(tmp_path / "a.json") == [Document("one", "a.json", 1), Document("two", "a.json", 2)]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"name": "package", "private": true}', "a.json:1: no field 'text'; its fields are 'name', 'private'"),
        ("3", "a.json: it is a JSON int"),
        ("[1, " + "9" * 5000 + "]", "a.json: it is not JSON"),
        ("{oops", "a.json: it is not JSON"),
        ('["a text"]', "a.json:1: it is a JSON str"),
        ('[{"body": "a"}]', "a.json:1: no field 'text'; its fields are 'body'"),
    ],
)
def test_json_without_records_is_refused(tmp_path: Path, content: str, expected: str) -> None:
    (tmp_path / "a.json").write_text(content)
    texts, named = skipped(tmp_path / "a.json")
    assert texts == []
    assert named[0].startswith(expected)
    assert len(named) == 1


@pytest.mark.parametrize("use_dictionary", [True, False])
def test_parquet_with_large_rows_is_read_a_few_at_a_time(tmp_path: Path, use_dictionary: bool) -> None:
    path, size = tmp_path / "a.parquet", 1 << 20
    table = pyarrow.table({"text": [str(n % 3) * size for n in range(150)]})
    pyarrow.parquet.write_table(table, path, use_dictionary=use_dictionary, compression="zstd", write_batch_size=4)
    del table
    assert path.stat().st_size < 1 << 20
    before = pyarrow.total_allocated_bytes()
    peak = 0
    for number, document in enumerate(documents(path, BadInput())):
        assert document.text[0] == str(number % 3)
        assert len(document.text) == size
        peak = max(peak, pyarrow.total_allocated_bytes() - before)
    assert number == 149
    assert peak < 40 * size


def test_parquet_rows_without_text_and_missing_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", None, "b"], "n": [1, 2, 3]}), path)
    assert skipped(path) == (["a", "b"], ["a.parquet:2: the field 'text' is NoneType, not text"])
    with pytest.raises(UserError, match=r"a\.parquet: no column 'body'; its columns are 'text', 'n'"):
        read(path, field="body")


def test_an_empty_file_has_no_document(tmp_path: Path) -> None:
    for name in ("a.txt", "a.jsonl", "a.csv"):
        (tmp_path / name).write_bytes(b"")
        assert read(tmp_path / name) == []
