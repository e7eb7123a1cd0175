"""A package of somebody else's brings a cleaning transform that edits and splits documents, for `prepare`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lit_gpt.data.records.compression import open_bytes

PACKAGE = Path(__file__).parent / "package"
NUM_FILES = 60


def write_books(folder: Path) -> None:
    """One book a file: most with one to five chapters, every sixth without one, every tenth too short."""
    folder.mkdir()
    for number in range(NUM_FILES):
        text = f"Book {number}, by nobody.\n"
        if number % 10 == 9:
            text = "short"
        elif number % 6:
            text += "".join(f"# Chapter {n}\nBook {number} goes on for a while.\n" for n in range(1, number % 5 + 2))
        (folder / f"book-{number:02}.txt").write_text(text)


def run_prepare(path: Path) -> None:
    search = os.pathsep.join([str(PACKAGE), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "lit_gpt", "prepare", "--config", str(path)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": search}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def read_lines(folder: Path) -> list[dict]:
    lines = []
    for path in sorted(folder.glob("*.jsonl.zst")):
        with open_bytes(path) as file:
            lines += [json.loads(line) for line in file]
    return lines


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """The same recipe with one and with two workers."""
    folder = tmp_path_factory.mktemp("corpora")
    write_books(folder / "books")
    outs = []
    for workers in (1, 2):
        recipe = {
            "out": str(folder / f"out-{workers}" / "corpus"),
            "sources": [{"files": str(folder / "books"), "license": "CC0-1.0"}],
            "steps": [
                {"class_path": "acme_lm.chapters.SplitChapters", "init_args": {"min_chars": 10}},
                "language",
                {"exact_duplicates": {}},
                {"acme_lm.chapters.SplitChapters": {"heading": "## ", "min_chars": 5}},
            ],
            "tokenizer": {"vocab_size": 300},
            "shard_megabytes": 0.0005,
            "executor": {"kind": "local" if workers > 1 else "inline", "workers": workers},
        }
        path = folder / f"recipe-{workers}.yaml"
        path.write_text(yaml.safe_dump(recipe, sort_keys=False))
        run_prepare(path)
        outs.append(Path(recipe["out"]))
    return outs


def test_the_bytes_are_the_same_with_one_and_two_workers(corpora):
    found = []
    for out in corpora:
        files = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
        found.append({name: data for name, data in files.items() if "seconds" not in name and name != "work.lock"})
    assert found[0] == found[1]
    assert sum(name.startswith("documents/") for name in found[0]) > 2


def test_parts_are_named_after_their_document_and_counted(corpora):
    documents = read_lines(corpora[0] / "documents")
    expected = {}
    for number in range(NUM_FILES):
        name, chapters = f"books/books/book-{number:02}.txt", number % 5 + 1 if number % 6 else 0
        if number % 10 != 9:
            numbered = [f"{name}#{n}" for n in range(1, chapters + 1)] if chapters > 1 else [name]
            expected |= dict.fromkeys(numbered, name)
    assert [document["id"] for document in documents] == list(expected)
    for document in documents:
        assert f"books/{document['metadata']['path']}" == expected[document["id"]]
        assert document["metadata"]["license"] == "CC0-1.0"
        assert document["metadata"]["language"] == "en"

    card = json.loads((corpora[0] / "card.json").read_bytes())
    for step in card["steps"]:
        dropped = sum(documents for documents, _ in step["rejected"].values())
        assert step["documents_in"] - step["split"][0] + step["split"][1] == step["documents_out"] + dropped
    first = card["steps"][1]
    assert first["name"] == "SplitChapters"
    assert first["counts"]["chapters"] > first["split"][1] > first["split"][0] > 20
    assert first["rejected"] == {"no_chapter": [6, 30]}
    assert "split into" in (corpora[0] / "card.html").read_text()
