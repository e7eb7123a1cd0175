import json
from pathlib import Path

import jsonargparse
import pytest
from recording import text_data

from lit_gpt.data.corpus_spec import choose_split, document_hash
from lit_gpt.data.records import HubDataset
from lit_gpt.data.tokenizers import load_tokenizer
from lit_gpt.datamodules import StdlibDataModule, TextDataModule, TokenDataModule
from lit_gpt.errors import UserError


def documents(data: TextDataModule) -> dict[str, list[str]]:
    """Sources of the documents by split, after preparing."""
    data.prepare_data()
    data.setup("predict")
    splits = {name: data.corpus.split(name) for name in ("train", "val", "test")}
    return {name: [split.document(i).source for i in range(split.num_documents)] for name, split in splits.items()}


def test_files_and_data_sets_together(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({"body": f"row {i} of a data set"}) + "\n" for i in range(20)))
    hub = HubDataset("json", data_files=str(rows), text_field="body", streaming=True)
    found = documents(
        text_data(folder, files=[f"{folder}/texts/0*.txt", str(folder / "texts" / "11.txt")], datasets=hub)
    )
    names = sorted(name for split in found.values() for name in split)
    assert names == sorted([f"0{i}.txt" for i in range(10)] + ["11.txt"] + ["json/train"] * 20)


def test_more_files_move_no_document(folder: Path) -> None:
    few = documents(text_data(folder, files=f"{folder}/texts/[01]*.txt"))
    many = documents(text_data(folder, files=f"{folder}/texts/*.txt"))
    assert all(set(few[name]) <= set(many[name]) for name in few)


def test_files_held_out_by_name(folder: Path) -> None:
    data = text_data(
        folder,
        files=f"{folder}/texts/[0-2]*.txt",
        val_files=f"{folder}/texts/30.txt",
        test_files=[f"{folder}/texts/31.txt", f"{folder}/texts/32.txt"],
        val_fraction=0.0,
        test_fraction=0.0,
    )
    found = documents(data)
    assert (found["val"], found["test"]) == (["30.txt"], ["31.txt", "32.txt"])
    assert len(found["train"]) == 30
    assert sum(int(batch["num_bytes"].sum()) for batch in data.val_dataloader()) == data.corpus.split("val").num_bytes


def test_a_file_held_out_by_name_is_not_trained_on(folder: Path) -> None:
    found = documents(text_data(folder, val_files=f"{folder}/texts/3*.txt", test_files=f"{folder}/texts/39.txt"))
    assert set(found["val"]) > {f"{i}.txt" for i in range(30, 39)}
    assert "39.txt" in found["test"]
    names = [name.removeprefix("texts/") for split in found.values() for name in split]
    assert sorted(names) == [f"{i:02}.txt" for i in range(40)]


def test_copies_of_one_document_all_fall_into_one_split(folder: Path) -> None:
    for name in ("one", "two"):
        (folder / f"{name}.txt").write_text("\n\n".join(f"paragraph {i} of a file" for i in range(60)))
    data = text_data(folder, files=str(folder / "*.txt"), val_fraction=0.001)
    data.prepare_data()
    with pytest.raises(
        UserError, match=r"no document fell into the val split; .* document_separator.* val_fraction .*prepare"
    ):
        data.setup("fit")
    cut = text_data(folder, files=str(folder / "one.txt"), document_separator="\n\n")
    assert all(len(found) > 2 for found in documents(cut).values())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("bad.bin", b"\x00\x01", r"texts/bad\.bin: it is binary"),
        ("bad.txt", b"caf\xe9", r"texts/bad\.txt: it is not valid UTF-8"),
        ("bad.jsonl", b'{"text": "ok"}\nno\n', r"texts/bad\.jsonl:2: the line is not JSON"),
        ("bad.jsonl", b'{"title": "ok"}\n', r"texts/bad\.jsonl:1: no field 'text'; its fields are 'title'"),
    ],
)
def test_bad_input_is_fatal_or_skipped_by_a_flag(folder: Path, name: str, content: bytes, message: str) -> None:
    (folder / "texts" / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        text_data(folder).prepare_data()
    assert not [path for path in (folder / "cache").rglob("*") if path.suffix in (".bin", ".json")]
    data = text_data(folder, on_bad_input="skip")
    data.prepare_data()
    data.setup("fit")
    assert data.corpus.manifest["num_skipped"] == 1


def test_nothing_to_read_and_what_is_missing(folder: Path) -> None:
    with pytest.raises(UserError, match="set files"):
        TextDataModule()
    with pytest.raises(UserError, match=r"gone\.txt does not exist"):
        text_data(folder, files=str(folder / "gone.txt")).prepare_data()
    (folder / "void").mkdir()
    (folder / "void" / "a.txt").touch()
    with pytest.raises(UserError, match="the corpus is empty"):
        text_data(folder, files=str(folder / "void")).prepare_data()


def test_a_cache_that_cannot_be_made(folder: Path) -> None:
    (folder / "file").touch()
    with pytest.raises(UserError, match=r"cache_dir .*file/below cannot be created \(Not a directory\)"):
        text_data(folder, cache_dir=str(folder / "file" / "below")).prepare_data()


def test_the_standard_library_is_split_by_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "lib"
    (library / "test").mkdir(parents=True)
    (library / "test" / "test_a.py").write_text("left out\n")
    for i in range(60):
        (library / f"module_{i}.py").write_text(f"def function_{i}():\n    return {i}\n")
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(library))
    data = StdlibDataModule(vocab_size=280, block_size=8, cache_dir=str(tmp_path / "cache"))
    found = documents(data)  # type: ignore[arg-type]
    assert sum(map(len, found.values())) == 60
    assert data.lineage()["corpus"]["sources"][0]["name"] == "Python standard library"
    assert StdlibDataModule(cache_dir=str(tmp_path)).vocab_size == 4096


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LIT_GPT_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert TextDataModule("a").cache_dir == tmp_path / ".cache" / "lit_gpt"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert TextDataModule("a").cache_dir == tmp_path / "xdg" / "lit_gpt"
    monkeypatch.setenv("LIT_GPT_CACHE", str(tmp_path / "own"))
    assert TextDataModule("a").cache_dir == tmp_path / "own"
    assert TextDataModule("a", cache_dir="~/here").cache_dir == tmp_path / "here"


def test_the_command_line_knows_and_explains_every_argument(folder: Path) -> None:
    parser = jsonargparse.ArgumentParser()
    parser.add_subclass_arguments(TokenDataModule, "data")
    config = parser.parse_object(
        {
            "data": {
                "class_path": "lit_gpt.datamodules.TextDataModule",
                "init_args": {
                    "files": ["a", "b"],
                    "datasets": ["owner/name", {"path": "json", "data_files": "x.jsonl"}],
                    "micro_batch_size": 4,
                    "block_size": 32,
                    "on_bad_input": "skip",
                },
            }
        }
    )
    data = parser.instantiate(config).data
    assert isinstance(data, TextDataModule)
    assert isinstance(data.datasets[1], HubDataset)
    assert (data.block_size, data.micro_batch_size, data.on_bad_input) == (32, 4, "skip")
    for kind in (TextDataModule, StdlibDataModule):
        described = jsonargparse.ArgumentParser()
        described.add_class_arguments(kind, "data")
        undescribed = [
            action.dest
            for action in described._actions
            if action.dest.startswith("data.") and not (action.help or "").replace("%", "").strip()
        ]
        assert undescribed == []
        assert "Window length in tokens" in " ".join(described.format_help().split())


def test_a_single_file_is_split_by_position(tmp_path: Path) -> None:
    text = "".join(f"line {i} of the story\n" for i in range(300))
    (tmp_path / "story.txt").write_text(text)
    settings = {"block_size": 16, "vocab_size": 300, "cache_dir": str(tmp_path / "cache")}
    data = TextDataModule(files=str(tmp_path / "story.txt"), **settings)
    data.prepare_data()
    data.setup("fit")
    parts = []
    tokenizer = load_tokenizer(data.tokenizer_path)
    for name in ("train", "val", "test"):
        split = data.corpus.split(name)
        assert split.num_documents == 1
        parts.append(tokenizer.decode(split.read(1, split.num_tokens - 1).tolist()))
    assert "".join(parts) == text
    assert [part.endswith("\n") for part in parts] == [True] * 3
    assert len(parts[1]) == pytest.approx(0.01 * len(text), rel=0.5)
    assert len(list(data.val_dataloader())) > 0
    whole = TextDataModule(files=str(tmp_path / "story.txt"), val_fraction=0.0, test_fraction=0.0, **settings)
    whole.prepare_data()
    whole.setup("fit")
    assert whole.corpus.split("train").num_bytes == len(text)


def test_the_longest_of_a_few_documents_is_cut_for_an_empty_split(tmp_path: Path) -> None:
    twice = "this text is the longest, but it is here twice, and a copy of what is held out must not be learned " * 3
    longest = "".join(f"line {i} of the longest text\n" for i in range(9))
    texts = [twice, "one", longest.strip(), "another", twice]
    (tmp_path / "texts.txt").write_text("\n\n".join(texts))
    data = TextDataModule(
        files=str(tmp_path / "texts.txt"), document_separator="\n\n", block_size=8, vocab_size=300,
        val_fraction=1e-1, test_fraction=1e-9, cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    assert not {choose_split(document_hash(text), 1e-1, 1e-9) for text in texts} - {"train"}
    data.prepare_data()
    data.setup("fit")
    tokenizer = load_tokenizer(data.tokenizer_path)
    split = data.corpus.split("val")
    held_out = tokenizer.decode(split.read(1, split.num_tokens - 1).tolist())
    assert longest.strip().endswith(held_out)
    assert held_out.startswith("line")
    assert len(held_out) == pytest.approx(0.1 * sum(map(len, texts)), abs=30)
    assert data.corpus.split("train").num_documents == 5
    assert data.corpus.split("test").num_documents == 0  # less than a byte


def test_a_separator_typed_on_a_command_line(tmp_path: Path) -> None:
    (tmp_path / "poems.txt").write_text("\n\n".join(f"poem {i} " + "la " * 20 for i in range(50)))
    data = TextDataModule(
        files=str(tmp_path / "poems.txt"),
        document_separator=r"\n\n",
        block_size=8,
        vocab_size=300,
        val_fraction=0.2,
        cache_dir=str(tmp_path / "cache"),
    )
    data.prepare_data()
    data.setup("fit")
    assert sum(data.corpus.split(name).num_documents for name in ("train", "val", "test")) == 50
