"""Which files a folder or pattern names: links, loops of links, saved datasets."""

import datetime
import io
import os
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from lit_gpt.data.records import (
    BadInput,
    FileFormat,
    FileRecords,
    HubDataset,
    HubRecords,
    TextField,
    expand_files,
    sources_of,
)
from lit_gpt.errors import UserError
from lit_gpt.hashing import FileHashes


def names(pattern: str | list[str]) -> list[str]:
    return [name for name, _ in expand_files(pattern)]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A folder of which a part is on another disk, with a link to itself and one to its own parent."""
    (tmp_path / "disk2" / "part1" / "deep").mkdir(parents=True)
    (tmp_path / "disk2" / "part1" / "b.txt").write_text("b")
    (tmp_path / "disk2" / "part1" / "deep" / "c.txt").write_text("c")
    (tmp_path / "corpus" / "own").mkdir(parents=True)
    (tmp_path / "corpus" / "a.txt").write_text("a")
    (tmp_path / "corpus" / "own" / "d.txt").write_text("d")
    (tmp_path / "corpus" / "part1").symlink_to("../disk2/part1")
    (tmp_path / "corpus" / "again").symlink_to("../disk2/part1")
    (tmp_path / "corpus" / "here").symlink_to(".")
    (tmp_path / "corpus" / "own" / "above").symlink_to("../..")
    (tmp_path / "corpus" / "alias").symlink_to("own")
    return tmp_path / "corpus"


def test_linked_folders_are_followed_once(corpus: Path) -> None:
    inside = ["a.txt", "again/b.txt", "again/deep/c.txt", "own/d.txt"]
    assert names(str(corpus)) == [f"corpus/{name}" for name in inside]
    assert names(f"{corpus}/**/*.txt") == inside
    assert names(f"{corpus}/**") == inside
    assert names([f"{corpus}/part1", str(corpus)])[:2] == ["part1/b.txt", "part1/deep/c.txt"]


def test_patterns_are_matched_part_by_part(corpus: Path) -> None:
    assert names(f"{corpus}/**/deep/*.txt") == ["again/deep/c.txt"]
    assert names(f"{corpus}/*/?.txt") == names(f"{corpus}/*/[a-z].txt")
    assert names(f"{corpus}/own/**/*.txt") == ["d.txt"]
    (corpus / ".hidden").mkdir()
    (corpus / ".hidden" / "h.txt").write_text("h")
    assert "h.txt" not in str(names(f"{corpus}/**/*.txt"))
    assert names(f"{corpus}/.hidden/**/*.txt") == [".hidden/h.txt"] or names(f"{corpus}/.hidden/*.txt") == ["h.txt"]


def test_two_loops_of_links_end(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / "top" / name).mkdir(parents=True)
        (tmp_path / "top" / name / "x.txt").write_text(name)
        for number in range(3):
            (tmp_path / "top" / name / f"loop{number}").symlink_to(tmp_path / "top")
    assert names(f"{tmp_path}/top/**/*.txt") == ["one/x.txt", "two/x.txt"]


ROWS = {"text": ["one", "two", "drei ß"], "n": [1, 2, 3]}


def test_a_saved_data_set_is_read_from_its_folder(tmp_path: Path) -> None:
    saved = datasets.Dataset.from_dict(ROWS)
    saved.save_to_disk(str(tmp_path / "saved"), num_shards=2)
    for given in (tmp_path / "saved", tmp_path):  # also inside a folder of other files
        documents = list(FileRecords(str(given)).documents(BadInput()))
        assert [document.text for document in documents] == ROWS["text"]
        assert all(document.source.endswith(".arrow") for document in documents)
    for streaming in (False, True):
        source = HubRecords(HubDataset(str(tmp_path / "saved"), streaming=streaming))
        assert [document.text for document in source.documents(BadInput())] == ROWS["text"]
        assert source.fingerprint(FileHashes()) == source.fingerprint(FileHashes())


def test_a_saved_data_set_of_several_splits(tmp_path: Path) -> None:
    splits = {
        "train": datasets.Dataset.from_dict(ROWS),
        "test": datasets.Dataset.from_dict({"text": ["held out"], "n": [0]}),
    }
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(UserError, match=r"splits test, train.*name one"):
        expand_files(str(tmp_path / "saved"))
    assert len(list(FileRecords(str(tmp_path / "saved" / "train")).records(BadInput()))) == 3
    source = HubRecords(HubDataset(str(tmp_path / "saved"), split="test"))
    assert [document.text for document in source.documents(BadInput())] == ["held out"]
    with pytest.raises(UserError, match=r"has the splits train, test and none named 'dev'"):
        list(HubRecords(HubDataset(str(tmp_path / "saved"), split="dev")).documents(BadInput()))
    datasets.DatasetDict(train=splits["train"]).save_to_disk(str(tmp_path / "single"))
    assert len(list(FileRecords(str(tmp_path / "single")).records(BadInput()))) == 3


def test_quoting_none_takes_a_line_for_a_row(tmp_path: Path) -> None:
    lines = ['ham\tHe said "hi', 'spam\t"Free" entry', "ham\tit's 5\" wide", "ham\tplain\u2028text"]
    (tmp_path / "a.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    source = FileRecords(str(tmp_path / "a.tsv"), format=FileFormat(quoting="none", column_names=["label", "text"]))
    assert [document.text for document in source.documents(BadInput())] == [line.split("\t")[1] for line in lines]
    assert [record.record for record in source.records(BadInput())] == [1, 2, 3, 4]
    with pytest.raises(UserError, match=r"a\.tsv:2.*quote"):
        list(
            FileRecords(str(tmp_path / "a.tsv"), format=FileFormat(column_names=["label", "text"])).records(BadInput())
        )


def test_a_delimiter_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('id;text\n1;"a; b"\n', encoding="utf-8")
    (document,) = FileRecords(str(tmp_path / "a.csv"), format=FileFormat(delimiter=";")).documents(BadInput())
    assert document.text == "a; b"
    for wrong in ("", ";;", '"', "\n"):
        with pytest.raises(UserError, match="delimiter"):
            FileFormat(delimiter=wrong)
    with pytest.raises(UserError, match="quoting"):
        FileFormat(quoting="loose")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="'a' twice"):
        FileFormat(column_names=["a", "a"])


@pytest.mark.parametrize("separator", ["\n\n", "\\n\\n"])  # as a quoted YAML or a command line has it
def test_a_separator_cuts_files_with_the_line_ends_of_windows(tmp_path: Path, separator: str) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\r\nline\r\n\r\ntwo\r\n\r\nthree\n\nfour")
    texts = [d.text for d in FileRecords(str(tmp_path / "a.txt"), document_separator=separator).documents(BadInput())]
    assert texts == ["one\r\nline", "two", "three", "four"]


def test_a_template_of_fields(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"q": "2 + 2?", "a": 4, "id": "x"}\n{"q": "why?"}\n')
    bad = BadInput("skip")
    source = FileRecords(str(tmp_path / "a.jsonl"), "Q: {q}\nA: {a}", keep=["id"])
    (document,) = source.documents(bad)
    assert document.text == "Q: 2 + 2?\nA: 4"
    assert document.metadata == {"id": "x"}
    assert bad.named == ["a.jsonl:2: no field 'a'; its fields are 'q' (set text_field)"]
    for wrong in ("{open", "{a!r}", "{a:>3} {b}", "{}"):
        with pytest.raises(UserError, match="template"):
            TextField(wrong)


def test_files_that_vanish_or_may_not_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").symlink_to(tmp_path / "nowhere")
    (tmp_path / "b.txt").write_text("b")
    bad = BadInput("skip")
    assert [document.text for document in FileRecords(str(tmp_path)).documents(bad)] == ["b"]
    assert "a.txt: it cannot be read" in bad.named[0]
    assert os.path.basename(tmp_path) in bad.named[0]


def test_zstandard_files_with_a_large_window(tmp_path: Path) -> None:
    """`zstd --long=28` declares a window of 256 MiB, which the library refuses unless it is asked to allow it."""
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=28)
    data = io.BytesIO()
    with zstandard.ZstdCompressor(compression_params=parameters).stream_writer(data, closefd=False) as writer:
        writer.write(b'{"text": "a large window"}\n')
    (tmp_path / "a.jsonl.zst").write_bytes(data.getvalue())
    assert zstandard.get_frame_parameters(data.getvalue()).window_size >= 1 << 28
    (document,) = FileRecords(str(tmp_path / "a.jsonl.zst")).documents(BadInput())
    assert document.text == "a large window"


def test_kept_columns_are_json_values(tmp_path: Path) -> None:
    rows = [{"text": "a", "source": {"name": "x", "pages": [1, 2]}, "day": datetime.date(2026, 1, 2), "other": 1}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    (document,) = FileRecords(str(tmp_path / "a.parquet"), keep=["source", "day"]).documents(BadInput())
    assert document.metadata == {"source": {"name": "x", "pages": [1, 2]}, "day": "2026-01-02"}


def test_a_file_that_two_arguments_name_is_in_one_split(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt", "c.txt"):
        (tmp_path / name).write_text(name)
    sources = sources_of(str(tmp_path), None, str(tmp_path / "[bc].txt"), [str(tmp_path / "c.txt")])
    found = {source.split: [document.text for document in source.documents(BadInput())] for source in sources}
    assert found == {"test": ["c.txt"], "val": ["b.txt"], None: ["a.txt"]}
    assert sources_of() == []
