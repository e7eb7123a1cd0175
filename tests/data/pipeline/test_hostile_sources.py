"""Sources that nobody checked: rows with names of ours, records of no use, metadata that JSON cannot hold, archives."""

import gzip
import json
import os
import tracemalloc
from pathlib import Path

import pytest
from pipeline_corpora import card, kept_documents, prepare, write_recipe

from lit_gpt.data.pipeline.parts import NO_TEXT
from lit_gpt.data.pipeline.reading import to_doc
from lit_gpt.data.pipeline.recipe import make_source
from lit_gpt.data.records import BadInput, Document
from lit_gpt.data.shards import TokenCorpus
from lit_gpt.errors import UserError


def recipe(tmp_path: Path, *sources: dict, **more) -> Path:
    base = {"out": str(tmp_path / "out"), "sources": list(sources), "steps": [], "tokenizer": {"vocab_size": 257}}
    return write_recipe(tmp_path / "r.yaml", **base | more)


def user_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, body: str) -> dict:
    (tmp_path / f"{name}.py").write_text(
        f"from lit_gpt.data.records import Document\ndef texts():\n    yield from [{body}]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return {"class_path": f"{name}.texts"}


def test_a_rows_own_source_path_and_record_do_not_change_where_it_came_from(tmp_path, monkeypatch):
    body = "{'text': 'alpha', 'source': 'reddit', 'path': '/etc', 'record': 'x7', 'url': 'u', 'license': None}"
    source = user_source(tmp_path, monkeypatch, "rows_with_our_names", body) | {"license": "MIT"}
    assert prepare(recipe(tmp_path, source)) == 0
    (document,) = kept_documents(tmp_path / "out")
    assert document["metadata"] == {
        "source": "rows_with_our_names.texts",
        "path": "rows_with_our_names.texts",
        "record": 1,
        "license": "MIT",
        "url": "u",
        "meta": {"source": "reddit", "path": "/etc", "record": "x7"},
    }
    span = TokenCorpus(tmp_path / "out" / "tokens").split("train").document(0)
    assert (span.source, span.record) == ("rows_with_our_names.texts", 1)
    named = make_source({"stdlib": {}}, 1)
    own = {"source": "a", "meta": "theirs"}
    assert to_doc(Document("t", "p", 0, own), named).metadata["meta"] == {"source": "a", "meta": "theirs"}


@pytest.mark.parametrize(
    ("name", "body", "words"),
    [
        ("bad_record", "Document('a', 'book', 'chapter 1')", "book:chapter 1: its record is 'chapter 1'"),
        ("minus_record", "Document('a', 'book', -3)", "book:-3: its record is -3"),
        ("no_text", "Document(None, 'book', 3)", "book:3: the field 'text' is NoneType"),
        ("a_number", "7", "a_number.texts:1: it is a int; yield a text"),
        (
            "surrogate",
            "{'text': 'a', 'url': 'http://\\ud800'}",
            "surrogate.texts:1: its metadata cannot be represented in JSON",
        ),
        ("huge", "{'text': 'a', 'n': 2**80}", "huge.texts:1: its metadata cannot be represented in JSON"),
        ("some_bytes", "{'text': 'a', 'n': b'a'}", "some_bytes.texts:1: its metadata cannot be represented in JSON"),
    ],
)
def test_a_document_of_no_use_is_named_at_reading(tmp_path, monkeypatch, capsys, name, body, words):
    source = user_source(tmp_path, monkeypatch, name, body + ", 'a good text'")
    assert prepare(recipe(tmp_path, source, tokenizer=None)) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "on_bad_input: skip" in error
    assert prepare(recipe(tmp_path, source, tokenizer=None, on_bad_input="skip")) == 0
    assert [document["text"] for document in kept_documents(tmp_path / "out")] == ["a good text"]
    assert card(tmp_path / "out")["bad_input"]["num_skipped"] == 1


def test_a_rule_that_leaves_what_json_cannot_hold_is_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "spoiling_rule.py").write_text("def keep(doc):\n    doc.metadata['a'] = b'a'\n    return True\n")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "a.txt").write_text("text")
    steps = [{"predicate": {"class_path": "spoiling_rule.keep"}}]
    assert prepare(recipe(tmp_path, {"files": str(tmp_path / "a.txt")}, steps=steps)) == 2
    assert "document a.txt/a.txt: a transform produced a value that is not JSON" in capsys.readouterr().err


def test_file_names_that_are_no_text_go_all_the_way(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.txt")).write_text("the odd name\n")
    (folder / "gone.txt").symlink_to(folder / "nowhere")
    os.mkfifo(folder / "pipe.txt")
    assert prepare(recipe(tmp_path, {"files": str(folder)}, on_bad_input="skip")) == 0
    (document,) = kept_documents(tmp_path / "out")
    assert document["metadata"]["path"] == "texts/caf\\xe9.txt"
    assert json.loads((tmp_path / "out" / "tokens" / "sources.json").read_bytes()) == ["texts/caf\\xe9.txt"]
    (named,) = card(tmp_path / "out")["bad_input"]["named"]
    assert named.startswith("texts/gone.txt: it cannot be read")


def record(head: str, data: bytes) -> bytes:
    return f"WARC/1.0\r\n{head}Content-Length: {len(data)}\r\n\r\n".encode() + data + b"\r\n\r\n"


def test_a_damaged_record_of_an_archive_is_named(tmp_path):
    good = record("WARC-Type: conversion\r\nWARC-Target-URI: http://a\r\n", b"a text")
    bare = record("WARC-Target-URI: http://b\r\n", b"hi")
    no_address = record("WARC-Type: response\r\n", b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\nhello")
    for data, texts, words in (
        (good + bare + good, ["a text", "a text"], "a.warc:2: the record has no WARC-Type"),
        (good + no_address, ["a text"], "a.warc:2: the archive is damaged"),  # warcio falls over the missing header
    ):
        (path := tmp_path / "a.warc").write_bytes(data)
        source = make_source({"warc": str(path)}, 1).source
        bad = BadInput("skip")
        assert [document.text for document in source.read_documents(["a.warc", str(path)], bad)] == texts
        assert len(bad.named) == 1
        assert bad.named[0].startswith(words)
        with pytest.raises(UserError, match=words):
            list(source.read_documents(["a.warc", str(path)], BadInput()))


def test_a_text_of_an_archive_that_is_too_large_is_not_loaded(tmp_path):
    large = record("WARC-Type: conversion\r\nWARC-Target-URI: http://a\r\n", b"a" * (64 << 20))
    small = record("WARC-Type: conversion\r\nWARC-Target-URI: http://b\r\n", b"small")
    (path := tmp_path / "a.wet.gz").write_bytes(gzip.compress(large + small, 1))
    del large
    source = make_source({"warc": str(path), "max_page_bytes": 1 << 20}, 1).source
    tracemalloc.start()
    documents = list(source.read_documents(["a.wet.gz", str(path)], BadInput()))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [(d.text, (d.metadata or {}).get(NO_TEXT)) for d in documents] == [("", "page_too_large"), ("small", None)]
    assert peak < 8 << 20
