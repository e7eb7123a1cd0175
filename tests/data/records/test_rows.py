"""Every kind of file gives the same rows, and what cannot be read is named by file and row."""

import csv
import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lit_gpt.data.records import BadInput, FileRecords, IterableRecords
from lit_gpt.errors import UserError
from lit_gpt.hashing import FileHashes

ROWS = [{"prompt": "a", "completion": "b\nc"}, {"prompt": "ü🙂", "completion": ""}]


def write(path):
    text = json.dumps(ROWS, ensure_ascii=False)
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    match path.name.split(".", 1)[1]:
        case "json":
            path.write_text(text, encoding="utf-8")
        case "wrapped.json":
            path.write_text(json.dumps({"version": 1, "data": ROWS}))
        case "jsonl":
            path.write_text("\ufeff" + lines, encoding="utf-8")
        case "jsonl.gz":
            path.write_bytes(gzip.compress(lines.encode()))
        case "csv":
            with open(path, "w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, ["prompt", "completion"])
                writer.writeheader()
                writer.writerows(ROWS)
        case "parquet":
            pq.write_table(pa.Table.from_pylist(ROWS), path)


@pytest.mark.parametrize("suffix", ["json", "wrapped.json", "jsonl", "jsonl.gz", "csv", "parquet"])
def test_rows_of_every_kind_of_file(tmp_path, suffix):
    path = tmp_path / f"rows.{suffix}"
    write(path)
    rows = list(FileRecords(str(path)).records(BadInput()))
    assert [row.values for row in rows] == ROWS
    assert {row.source for row in rows} == {path.name}


def test_nested_values_of_parquet(tmp_path):
    messages = [
        {"role": "user", "content": "x", "tool_calls": None},
        {"role": "assistant", "content": "y", "tool_calls": None},
    ]
    pq.write_table(pa.Table.from_pylist([{"messages": messages}]), tmp_path / "a.parquet")
    (row,) = FileRecords(str(tmp_path)).records(BadInput())
    assert row.values["messages"] == messages


@pytest.mark.parametrize(
    ("name", "content", "where"),
    [
        ("a.json", b"{", "a.json: it is not JSON"),
        ("a.json", b"3", "a.json: it is a JSON int"),
        ("a.json", b"[1]", "a.json:1: it is a JSON int"),
        ("a.json", b'["\xff"]', "not valid UTF-8"),
        ("a.jsonl", b'{"a": 1}\n{', "a.jsonl:2: the line is not JSON"),
        ("a.jsonl", b"[]\n", "a.jsonl:1: it is a JSON list"),
        ("a.jsonl", b'{"a": "\xff"}\n', "a.jsonl:1: the line is not valid UTF-8"),
        ("a.csv", b"a,b\n1,2,3\n", "a.csv:2: it has more cells"),
        ("a.parquet", b"no", "not a readable Parquet"),
        ("a.json", b"[" + b"9" * 5000 + b"]", "a.json: it is not JSON"),
        ("a.jsonl", b"[" + b"9" * 5000 + b"]", "a.jsonl:1: the line is not JSON"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 99, mtime=0)[:-9], "damaged"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, content, where):
    (tmp_path / name).write_bytes(content)
    source = FileRecords(str(tmp_path / name))
    with pytest.raises(UserError, match=where.replace(".", r"\.")):
        list(source.records(BadInput()))
    bad_input = BadInput("skip")
    list(source.records(bad_input))
    assert bad_input.num_skipped == 1


def test_a_link_that_leads_nowhere_is_named(tmp_path):
    (tmp_path / "a.jsonl").symlink_to(tmp_path / "nowhere")
    (tmp_path / "b.jsonl").write_text('{"a": 1}\n')
    source = FileRecords(str(tmp_path))
    source.fingerprint(FileHashes())
    bad_input = BadInput("skip")
    assert [row.values for row in source.records(bad_input)] == [{"a": 1}]
    assert "a.jsonl: it cannot be read" in bad_input.named[0]


def test_a_changed_row_changes_the_fingerprint(tmp_path):
    hashes = FileHashes()
    one, other = IterableRecords(lambda: ROWS, "rows"), IterableRecords(lambda: ROWS[:1], "rows")
    assert one.fingerprint(hashes) == IterableRecords(lambda: ROWS, "rows").fingerprint(hashes)
    assert one.fingerprint(hashes) != other.fingerprint(hashes)
