"""One file of each format and compression: the same records, or the same complaint, wherever it is read."""

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest
import zstandard

from lit_gpt.commands.generate import _read_prompts
from lit_gpt.data.corpus_spec import CorpusSpec, Reading
from lit_gpt.data.pipeline.recipe import make_source
from lit_gpt.data.records import BadInput, FileRecords, Record
from lit_gpt.data.records.benchmarks import read_benchmark
from lit_gpt.data.records.remote import RemoteRecords
from lit_gpt.data.rows import EncodedRow, EncodedSequence, RowStore, prepare_rows
from lit_gpt.data.streaming.documents import DocumentStream
from lit_gpt.errors import UserError
from lit_gpt.evaluation.safety.rows import RowSet
from lit_gpt.evaluation.texts import Texts

# What a line end, a quotation mark, a byte order mark or a delimiter inside a text must not change.
ROWS = [
    {"prompt": "one", "label": "a"},
    {"prompt": 'zwei "Zeilen", ß\n\U0001f642\tmit Tab', "label": "b"},
    {"prompt": "drei\u2028mit Zeilentrenner", "label": "c"},
]


def as_csv(delimiter: str) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, ["prompt", "label"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    return text.getvalue().encode()


def as_table(write: Callable[[Any, Any], None]) -> bytes:
    data = io.BytesIO()
    write(pyarrow.Table.from_pylist(ROWS), data)
    return data.getvalue()


def as_stream(table: Any, data: Any) -> None:
    with pyarrow.ipc.new_stream(data, table.schema) as writer:
        writer.write_table(table)


LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
FORMATS = {
    "array.json": json.dumps(ROWS, ensure_ascii=False).encode(),
    "indented.json": json.dumps(ROWS, indent=1).encode(),
    "wrapped.json": json.dumps({"version": "1.0", "data": ROWS}).encode(),
    "lines.json": LINES,
    "lines.jsonl": LINES,
    "marked.jsonl": b"\xef\xbb\xbf" + LINES,
    "windows.jsonl": LINES.replace(b"\n", b"\r\n"),
    "lines.ndjson": LINES,
    "LINES.JSONL": LINES,
    "utf16.jsonl": LINES.decode().encode("utf-16"),
    "table.csv": as_csv(","),
    "utf16.csv": as_csv(",").decode().encode("utf-16"),
    "table.tsv": as_csv("\t"),
    "table.parquet": as_table(pyarrow.parquet.write_table),
    "stream.arrow": as_table(as_stream),
    "file.arrow": as_table(pyarrow.feather.write_feather),
    "file.feather": as_table(pyarrow.feather.write_feather),
}
COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".GZ": gzip.compress,
    ".zst": zstandard.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}
CLEAN = [
    (f"{name}{suffix}", compress(data))
    for name, data in FORMATS.items()
    for suffix, compress in COMPRESSIONS.items()
    if not suffix or name in ("lines.jsonl", "lines.json", "table.csv", "table.parquet", "stream.arrow")
]

Readers = dict[str, Callable[[str, str], list[str]]]


def pretraining(path: str, mode: str) -> list[str]:
    reading = Reading(CorpusSpec([FileRecords(path, "prompt")], on_bad_input=mode))  # type: ignore[arg-type]
    return counted([admitted.document.text for admitted in reading], reading.bad_input)


def prepare(path: str, mode: str) -> list[str]:
    source, bad = make_source({"files": path, "text_field": "prompt"}, 1).source, BadInput(mode)  # type: ignore[arg-type]
    return counted([d.text for part in source.parts() for d in source.read_documents(part.spec, bad)], bad)


class PromptsAlone:
    """Encodes nothing, and attaches the prompt."""

    vocab_size = 10

    def fingerprint(self) -> str:
        return "prompts"

    def __call__(self, row: Record) -> EncodedRow:
        prompt = row.values.get("prompt")
        if not isinstance(prompt, str):
            raise UserError("no prompt")
        return EncodedRow((EncodedSequence([1], [True]),), prompt, attached=prompt)


def fine_tuning(path: str, mode: str) -> list[str]:
    try:
        folder = prepare_rows([FileRecords(path)], PromptsAlone(), Path(path).parent / "cache", on_bad_input=mode)  # type: ignore[arg-type]
    except UserError as error:
        if mode == "skip" and "no row can be used" in str(error):
            return []
        raise
    rows = RowStore(folder).split("train")
    return [rows.attached(number) for number in range(len(rows))]


def streaming(path: str, mode: str) -> list[str]:
    bad = BadInput(mode)  # type: ignore[arg-type]
    stream = DocumentStream(RemoteRecords(path, Path(path).parent / "copies", "prompt"))
    return counted([document.text for document, _ in stream.documents(0, None, bad)], bad)


def items(path: str, mode: str) -> list[str]:
    found = RowSet(path, on_bad_input=mode).read(["prompt"])  # type: ignore[arg-type]
    return [row.values["prompt"] for row in found.rows]


def texts(path: str, mode: str) -> list[str]:
    return [document.text for document in Texts(path, text_field="prompt", on_bad_input=mode).read()]  # type: ignore[arg-type]


def benchmark(path: str, mode: str) -> list[str]:
    return [text for _, text in read_benchmark(Path(path), ["prompt"])]


def prompts(path: str, mode: str) -> list[str]:
    return [row["prompt"] for row in _read_prompts(path)]


def counted(texts: list[str], bad: BadInput) -> list[str]:
    assert bad.num_skipped == len(bad.named)
    return texts


SKIPPING: Readers = {"pretraining": pretraining, "prepare": prepare, "fine-tuning": fine_tuning, "streaming": streaming}
READERS: Readers = {**SKIPPING, "items": items, "texts": texts, "benchmark": benchmark, "prompts": prompts}


@pytest.mark.parametrize(("name", "data"), CLEAN, ids=[name for name, _ in CLEAN])
def test_the_same_records_everywhere(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    for reader, read in READERS.items():
        for mode in ("error", "skip"):
            assert read(str(tmp_path / name), mode) == [row["prompt"] for row in ROWS], (reader, mode)


MANY = "".join(json.dumps({"prompt": f"text {n} " * 20, "label": "a"}) + "\n" for n in range(300)).encode()
DAMAGED = {  # name → (content, what is said of it, texts that are left under `skip`)
    "cut.jsonl.gz": (gzip.compress(MANY, mtime=0)[:-20], ": the compressed data are damaged", []),
    "cut.jsonl.zst": (zstandard.compress(MANY)[:-20], ": the compressed data are damaged", []),
    "cut.jsonl.bz2": (bz2.compress(MANY)[:-20], ": the compressed data are damaged", []),
    "cut.jsonl.xz": (lzma.compress(MANY)[:-20], ": the compressed data are damaged", []),
    "not.jsonl.gz": (MANY, ": the compressed data are damaged", []),
    "not.jsonl.bz2": (MANY, ": the compressed data are damaged", []),
    "line.jsonl": (b'{"prompt": "good"}\n{"prompt": "cut\n', ":2: the line is not JSON", ["good"]),
    "line.json": (b'{"prompt": "good"}\n{"prompt": "cut\n', ":2: the line is not JSON", ["good"]),
    "first.json": (b'{"prompt": "cut\n{"prompt": "good"}\n', ":1: the line is not JSON", ["good"]),
    "list.jsonl": (b'{"prompt": "good"}\n["no object"]\n', ":2: it is a JSON list", ["good"]),
    "list.json": (b'[{"prompt": "good"}, ["no object"]]', ":2: it is a JSON list", ["good"]),
    "cut.json": (b'[{"prompt": "good"}, {"prompt"', ": it is not JSON", []),
    "latin.jsonl": (
        '{"prompt": "good"}\n{"prompt": "é"}\n'.encode("latin-1"),
        ":2: the line is not valid UTF-8",
        ["good"],
    ),
    "latin.csv": ("prompt,label\ngood,a\né,b\n".encode("latin-1"), ": it is not valid UTF-8", []),
    "quote.csv": (b'prompt,label\ngood,a\n"open,b\nlost,c\n', ":3: lines 3 to 4", []),
    "more.csv": (b"prompt,label\ngood,a\nbad,b,c\nlast,d\n", ":3: it has more cells (3)", ["good", "last"]),
    "fewer.tsv": (b"prompt\tlabel\ngood\ta\nbad\nlast\td\n", ":3: it has fewer cells (1)", ["good", "last"]),
    "twice.csv": (b"prompt,prompt\na,b\n", ":1: two columns are named 'prompt'", []),
    "twice.parquet": (
        as_table(
            lambda table, data: pyarrow.parquet.write_table(
                pyarrow.Table.from_arrays([table["prompt"], table["prompt"]], names=["prompt", "prompt"]), data
            )
        ),
        ": two columns are named 'prompt'",
        [],
    ),
    "cut.parquet": (FORMATS["table.parquet"][:-30], ": it is not a readable Parquet file", []),
    "cut.arrow": (FORMATS["file.arrow"][:-30], ": it is not a readable Arrow file", []),
    "binary.txt": (b"good\n\0\1", ": it is binary", []),
    "parquet.txt": (FORMATS["table.parquet"], ": it is binary, not text: a Parquet file; name it .parquet", []),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_the_same_complaint_everywhere(tmp_path: Path, name: str) -> None:
    data, expected, left = DAMAGED[name]
    path = tmp_path / name
    path.write_bytes(data)
    for reader, read in READERS.items():
        with pytest.raises(UserError) as error:
            read(str(path), "error")
        message = str(error.value)
        assert f"{name}{expected}" in message, (reader, message)
        assert "\n" not in message, reader
    for reader, read in SKIPPING.items():
        assert read(str(path), "skip") == left, reader


def test_a_large_file_that_fails_half_way_leaves_nothing_behind(tmp_path: Path) -> None:
    """Beyond the size up to which records are held back; each of these fails after its first records were read."""
    good = "".join(f'"text {n} {"x" * 200}",a\n' for n in range(30_000))
    (tmp_path / "late.csv").write_text("prompt,label\n" + good + '"open,b\n')
    (tmp_path / "late.txt").write_bytes(b"prompt\n" * 1_000_000 + b"\xff")
    (tmp_path / "fine.csv").write_text("prompt,label\nlast,a\n")
    bad = BadInput("skip")
    found = [record.values["prompt"] for record in FileRecords(str(tmp_path), "prompt").records(bad)]
    assert found == ["last"]
    assert [line.split(":")[0].rpartition("/")[2] for line in bad.named] == ["late.csv", "late.txt"]
