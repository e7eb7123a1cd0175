import json
import os
from pathlib import Path

import pytest

from lit_gpt.data.records import (
    BadInput,
    Document,
    FileRecords,
    HubDataset,
    HubRecords,
    IterableRecords,
    RecordSource,
    corpus_fingerprint,
    expand_files,
)
from lit_gpt.data.stdlib import stdlib_files
from lit_gpt.errors import UserError
from lit_gpt.hashing import FileHashes


def texts(source: RecordSource) -> list[str]:
    return [document.text for document in source.documents(BadInput())]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "docs"
    for name in ("b.txt", "a.md", "deep/z.py", "deep/a/y.txt", ".hidden/x.txt", "__pycache__/m.txt", ".dot"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"text of {name}")
    return root


def test_folders_and_patterns_are_sorted_and_named_from_the_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["docs/a.md", "docs/b.txt", "docs/deep/z.py", "docs/deep/a/y.txt"]
    assert [name for name, _ in expand_files(str(folder))] == names
    found = expand_files([f"{folder}/**/*.txt", f"{folder}/b.txt"])
    assert [name for name, _ in found] == ["b.txt", "deep/a/y.txt"]  # each file once
    monkeypatch.chdir(folder)
    assert [name for name, _ in expand_files(".")] == names
    assert [name for name, _ in expand_files("*.md")] == ["a.md"]


@pytest.mark.parametrize("pattern", ["nothing.txt", "no/*.txt", "empty"])
def test_what_names_nothing_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=pattern.replace("*", r"\*")):
        expand_files(pattern)


def test_a_missing_file_is_an_error_in_either_mode(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        list(FileRecords(str(tmp_path / "no.txt")).documents(BadInput("skip")))


def test_folders_of_the_same_name_are_told_apart_by_their_parents(tmp_path: Path) -> None:
    for place in ("en/wiki", "de/wiki", "fr/news"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "a.txt").write_text(place)
    (tmp_path / "de/wiki/b.txt").write_text("b")
    patterns = [str(tmp_path / place) for place in ("en/wiki", "de/wiki", "fr/news")]
    names = ["en/wiki/a.txt", "de/wiki/a.txt", "de/wiki/b.txt", "news/a.txt"]
    assert [name for name, _ in expand_files(patterns)] == names
    assert [name for name, _ in expand_files([f"{p}/*.txt" for p in patterns[:2]])] == names[:3]
    assert [name for name, _ in expand_files([f"{p}/a.txt" for p in patterns[1:]])] == ["wiki/a.txt", "news/a.txt"]


def test_what_is_no_readable_file_is_named_and_nothing_waits_for_a_pipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "docs"
    (root / "closed").mkdir(parents=True)
    (root / "closed" / "secret.txt").write_text("closed")
    (root / "a.txt").write_text("text")
    (root / "gone.txt").symlink_to(root / "nowhere")
    (root / "loop.txt").symlink_to(root / "loop.txt")
    os.mkfifo(root / "pipe.txt")
    Path(os.fsdecode(os.fsencode(root) + b"/caf\xe9.txt")).write_text("odd name")
    scan = os.scandir

    def refuse(path: str) -> object:  # the superuser may read everything, so permissions cannot be taken away here
        if os.path.basename(path) == "closed":
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    for pattern in (str(root), f"{root}/**/*.txt"):
        source = FileRecords(pattern)
        source.fingerprint(FileHashes())
        source.describe()
        bad = BadInput("skip")
        found = {document.source.rpartition("/")[2]: document.text for document in source.documents(bad)}
        assert found == {"a.txt": "text", "caf\\xe9.txt": "odd name"}
        assert bad.num_skipped == 3
        for name in ("gone.txt", "loop.txt", "closed"):
            assert any(name in words for words in bad.named), (name, bad.named)
        with pytest.raises(UserError, match="on_bad_input: skip"):
            texts(source)
    with pytest.raises(UserError, match="neither a file nor a folder"):
        expand_files(str(root / "pipe.txt"))


def test_a_files_name_cannot_move_the_cursor(tmp_path: Path) -> None:
    (tmp_path / "a\x1b[2J\u202e.jsonl").write_text("{}\n")
    with pytest.raises(UserError) as error:
        texts(FileRecords(str(tmp_path)))
    assert r"a\x1b[2J\u202e.jsonl:1" in str(error.value)


def test_the_fingerprint_follows_content_and_not_place(folder: Path, tmp_path: Path) -> None:
    hashes = FileHashes()
    before = FileRecords(str(folder)).fingerprint(hashes)
    moved = tmp_path / "elsewhere" / "docs"
    moved.parent.mkdir()
    folder.rename(moved)
    assert FileRecords(str(moved)).fingerprint(hashes) == before
    assert FileRecords(str(moved), document_separator="\n").fingerprint(hashes) != before
    (moved / "b.txt").write_text("another text")
    assert FileRecords(str(moved)).fingerprint(hashes) != before


def test_file_hashes_are_remembered_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, memory = tmp_path / "a", tmp_path / "cache" / "hashes.jsonl"
    file.write_bytes(b"one")
    first = FileHashes(memory).sha256(file)
    with open(memory, "ab") as cut_off:
        cut_off.write(b'["half a li')
    with monkeypatch.context() as patch:
        patch.setattr("lit_gpt.hashing.sha256_file", lambda path: pytest.fail("read again"))
        assert FileHashes(memory).sha256(file) == first
    file.write_bytes(b"other")
    assert FileHashes(memory).sha256(file) != first


def test_a_python_iterable() -> None:
    def make() -> list[str | Document]:
        return ["one", Document("two", "book", 7)]

    source = IterableRecords(make, "mine")
    assert list(source.documents(BadInput())) == [Document("one", "mine", 1), Document("two", "book", 7)]
    assert source.fingerprint(FileHashes()) == IterableRecords(make, "mine").fingerprint(FileHashes())
    assert source.fingerprint(FileHashes()) != IterableRecords(lambda: ["one"], "mine").fingerprint(FileHashes())
    versioned = IterableRecords(lambda: pytest.fail("a version needs no pass"), "mine", version="2")
    assert versioned.fingerprint(FileHashes()) != source.fingerprint(FileHashes())
    with pytest.raises(UserError, match="mine:1 is a int"):
        texts(IterableRecords(lambda: [3], "mine"))  # type: ignore[list-item]
    used_up = iter(["one", "two"])
    once = IterableRecords(lambda: used_up, "mine")
    assert texts(once) == ["one", "two"]
    with pytest.raises(UserError, match=r"mine: documents\(\)"):
        texts(once)


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A local stand-in for a hub dataset."""
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    path = tmp_path / "hub" / "train.jsonl"
    path.parent.mkdir()
    path.write_text("".join(json.dumps({"content": f"row {i}", "stars": i}) + "\n" for i in range(30)))
    return path


@pytest.mark.parametrize("streaming", [False, True])
def test_hugging_face_data_sets(rows: Path, streaming: bool) -> None:
    spec = HubDataset("json", data_files=str(rows), text_field="content", streaming=streaming)
    source = HubRecords(spec)
    documents = list(source.documents(BadInput()))
    assert [d.text for d in documents] == [f"row {i}" for i in range(30)]
    assert documents[4].record == 5
    assert source.fingerprint(FileHashes()) == HubRecords(spec).fingerprint(FileHashes())
    few = HubRecords(
        HubDataset("json", data_files=str(rows), text_field="content", streaming=streaming, max_documents=3)
    )
    assert texts(few) == ["row 0", "row 1", "row 2"]
    with pytest.raises(UserError, match="no column 'text'; its columns are 'content', 'stars'"):
        texts(HubRecords(HubDataset("json", data_files=str(rows), streaming=streaming)))


def test_a_local_folder_as_data_set_and_its_faults(rows: Path) -> None:
    folder = HubDataset(str(rows.parent), text_field="content")
    assert len(texts(HubRecords(folder))) == 30
    bad = BadInput("skip")
    assert list(HubRecords(HubDataset(str(rows.parent), text_field="stars")).documents(bad)) == []
    assert bad.num_skipped == 30
    assert "is int" in bad.named[0]
    for missing in (HubDataset(str(rows.parent), split="dev"), HubDataset("no-such/data-set")):
        with pytest.raises(UserError, match="cannot be loaded"):
            texts(HubRecords(missing))


def test_the_standard_library_without_its_tests(tmp_path: Path) -> None:
    for name in ("os.py", "json/decoder.py", "test/test_os.py", "idlelib/idle_test/a.py", "x/tests/b.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("pass\n")
    (tmp_path / "latin.py").write_bytes(b"# -*- coding: latin-1 -*-\n# caf\xe9\n")
    assert [name for name, _ in stdlib_files(tmp_path)] == ["json/decoder.py", "os.py"]
    names = [name for name, _ in stdlib_files()]
    assert {"argparse.py", "asyncio/tasks.py"} < set(names)
    assert names == sorted(names)
    assert len(names) > 400
    with pytest.raises(UserError, match="no source files"):
        stdlib_files(tmp_path / "test" / "nothing")


def test_order_of_sources_counts(folder: Path) -> None:
    a, b = FileRecords(str(folder / "a.md")), FileRecords(str(folder / "b.txt"))
    assert corpus_fingerprint([a, b], FileHashes()) != corpus_fingerprint([b, a], FileHashes())
