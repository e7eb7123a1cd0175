import datetime
import gzip
import io
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from lit_gpt.data.pipeline.parts import NO_TEXT, make_plan
from lit_gpt.data.pipeline.recipe import make_source
from lit_gpt.data.records import BadInput, Document
from lit_gpt.errors import UserError

PAGE = """<!doctype html><html><head><title>Rivers</title></head><body>
<nav><a href="/">Home</a> <a href="/about">About us</a> <a href="/login">Log in</a></nav>
<article><h1>Rivers</h1>{body}</article>
<footer>Copyright by nobody. All rights reserved. Subscribe to our newsletter.</footer></body></html>"""
BODY = "".join(
    f"<p>The river number {n} rises in the hills, crosses a wide plain with many villages, and reaches the sea after "
    f"{n * 100} kilometres, where its water has carried sand for thousands of years.</p>"
    for n in range(2, 9)
)


def read_all(entry: dict, bad: BadInput | None = None) -> list[Document]:
    named = make_source(entry, 1)
    bad = bad or BadInput("error")
    return [document for part in named.source.parts() for document in named.source.read_documents(part.spec, bad)]


def test_html_gives_the_main_text_and_says_why_a_page_has_none(tmp_path):
    (tmp_path / "rivers.html").write_text(PAGE.format(body=BODY))
    (tmp_path / "latin.htm").write_bytes(
        PAGE.format(body=BODY.replace("hills", "Höhen"))
        .replace("<head>", '<head><meta charset="latin-1">')
        .encode("latin-1")
    )
    with gzip.open(tmp_path / "packed.html.gz", "wb") as file:
        file.write(PAGE.format(body=BODY).encode())
    (tmp_path / "empty.html").write_text("")
    (tmp_path / "menu.html").write_text("<html><body><script>var a = 1;</script><img src='a.png'></body></html>")
    (tmp_path / "style.css").write_text("p { color: red }")
    documents = {document.source.rpartition("/")[2]: document for document in read_all({"html": str(tmp_path)})}
    assert sorted(documents) == ["empty.html", "latin.htm", "menu.html", "packed.html.gz", "rivers.html"]
    text = documents["rivers.html"].text
    assert "The river number 5 rises in the hills" in text
    for noise in ("newsletter", "About us", "Log in"):
        assert noise not in text
    assert documents["packed.html.gz"].text == text
    assert "Höhen" in documents["latin.htm"].text
    assert documents["empty.html"].metadata == {NO_TEXT: "empty"}
    assert documents["menu.html"].metadata == {NO_TEXT: "no_main_text"}


def test_a_page_that_is_too_large_is_not_parsed(tmp_path):
    (tmp_path / "large.html").write_text(PAGE.format(body=BODY * 20))
    (document,) = read_all({"html": str(tmp_path), "max_page_bytes": 2000})
    assert document.metadata == {NO_TEXT: "page_too_large"}


def write_warc(path: Path) -> None:
    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    with open(path, "wb") as file:
        writer = WARCWriter(file, gzip=path.suffix == ".gz")
        pages = [("200 OK", "text/html; charset=utf-8"), ("404 Not Found", "text/html"), ("200 OK", "image/png")]
        for number, (status, kind) in enumerate(pages, start=1):
            headers = StatusAndHeaders(status, [("Content-Type", kind)], protocol="HTTP/1.1")
            payload = io.BytesIO(PAGE.format(body=BODY).encode())
            writer.write_record(
                writer.create_warc_record(
                    f"http://example.org/{number}", "response", payload=payload, http_headers=headers
                )
            )
        wet = io.BytesIO(b"Plain text of a page.")
        writer.write_record(writer.create_warc_record("http://example.org/4", "conversion", payload=wet))


@pytest.mark.parametrize("name", ["crawl.warc", "crawl.warc.gz"])
def test_warc_gives_pages_that_were_answered_and_wet_texts(tmp_path, name):
    write_warc(tmp_path / name)
    page, wet = read_all({"warc": str(tmp_path / name)})
    assert (page.record, wet.record) == (1, 4)
    assert "The river number 5" in page.text
    assert page.metadata["url"] == "http://example.org/1"
    assert wet.text == "Plain text of a page."


def test_a_truncated_warc_is_named(tmp_path):
    write_warc(path := tmp_path / "crawl.warc.gz")
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"crawl.warc.gz:\d.*damaged.*on_bad_input: skip"):
        read_all({"warc": str(path)})
    bad = BadInput("skip")
    assert len(read_all({"warc": str(path)}, bad)) == 1
    assert bad.num_skipped == 1


def test_what_is_no_warc_is_named(tmp_path):
    (tmp_path / "a.warc").write_text("this is a letter\n" * 5)
    with pytest.raises(UserError, match="a.warc"):
        read_all({"warc": str(tmp_path / "a.warc")})


def test_code_keeps_path_and_language_and_leaves_copies_out(tmp_path):
    files = {
        "src/main.py": "print('hello')\n",
        "src/lib.rs": "fn main() {}\n",
        "Makefile": "all:\n\tcc a.c\n",
        "node_modules/x/index.js": "copied\n",
        "build/out.py": "x = 1\n",
        "data.bin": "\0\1",
        "notes.unknown": "text",
        "app.min.js": "var a=1;" * 500,
        "schema.py": "# Generated by protoc. DO NOT EDIT!\nx = 1\n",
        ".git/config.py": "hidden",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "old.py").write_bytes("# Größe, Häuser und Bäume für die Straße\nx = 'Übung'\n".encode("latin-1"))
    found = {document.source.partition("/")[2]: document for document in read_all({"code": str(tmp_path)})}
    assert {name: document.metadata["language"] for name, document in found.items()} == {
        "Makefile": "Makefile",
        "app.min.js": "JavaScript",
        "old.py": "Python",
        "schema.py": "Python",
        "src/lib.rs": "Rust",
        "src/main.py": "Python",
    }
    assert found["app.min.js"].metadata[NO_TEXT] == "minified"
    assert found["schema.py"].metadata[NO_TEXT] == "generated"
    assert "Größe" in found["old.py"].text
    assert [d.source for d in read_all({"code": str(tmp_path), "languages": ["Rust"]})] == [
        f"{tmp_path.name}/src/lib.rs"
    ]
    with pytest.raises(UserError, match="contains no file in Zig"):
        read_all({"code": str(tmp_path), "languages": ["Zig"]})


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "cp1252", "koi8-r"])
def test_detect_reads_other_encodings(tmp_path, encoding):
    russian = "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему. " * 5
    german = (
        "Über den Bäumen fährt der Wind, und die Straße glänzt im späten Licht; „schön“, sagte sie – und ging. " * 5
    )
    text = russian if encoding == "koi8-r" else german
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    (document,) = read_all({"files": str(tmp_path / "a.txt"), "encoding": "detect"})
    assert document.text == text
    if not encoding.startswith("utf"):
        with pytest.raises(UserError, match="a.txt"):
            read_all({"files": str(tmp_path / "a.txt")})


def test_detect_refuses_what_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(bytes(range(256)) * 4)
    with pytest.raises(UserError, match="a.txt: it is binary"):
        read_all({"files": str(tmp_path / "a.txt"), "encoding": "detect"})


@pytest.mark.parametrize("streaming", [False, True])
def test_hub_rows_keep_their_numbers_and_columns(tmp_path, streaming, monkeypatch):
    monkeypatch.setattr("lit_gpt.data.pipeline.sources.data._ROWS_OF_A_PART", 4)
    rows = [{"text": f"row {n}", "url": f"http://{n}", "score": n / 2} for n in range(10)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    entry = {
        "hub": {"path": "json", "data_files": str(tmp_path / "a.jsonl"), "streaming": streaming},
        "keep_columns": ["url", "score"],
    }
    documents = read_all(entry)
    assert [(d.text, d.record) for d in documents] == [(f"row {n}", n + 1) for n in range(10)]
    assert documents[3].metadata == {"url": "http://3", "score": 1.5}
    entry["hub"] |= {"max_documents": 7}
    assert len(read_all(entry)) == 7
    with pytest.raises(UserError, match="no column 'txt'; its columns are 'text', 'url', 'score'"):
        read_all({"hub": entry["hub"] | {"streaming": False}, "text_field": "txt"})


def test_kept_columns_of_tables_are_json_values(tmp_path):
    origin = {"site": "a.org", "tags": ["x", "y"], "size": {"bytes": 3}}
    day = datetime.date(2024, 5, 6)
    table = pa.table({"text": ["one", "two"], "origin": [origin, None], "seen": [day, None], "tags": [["a"], []]})
    pq.write_table(table, tmp_path / "a.parquet")
    entry = {"files": str(tmp_path / "a.parquet"), "keep_columns": ["origin", "seen", "tags"]}
    documents = read_all(entry)
    assert documents[0].metadata == {"origin": origin, "seen": "2024-05-06", "tags": ["a"]}
    assert documents[1].metadata == {"origin": None, "seen": None, "tags": []}
    assert json.loads(json.dumps(documents[0].metadata)) == documents[0].metadata


def test_a_stream_is_read_shard_by_shard(tmp_path):
    for shard in range(3):
        rows = [json.dumps({"text": f"{shard}-{n}"}) for n in range(5)]
        (tmp_path / f"{shard}.jsonl").write_text("\n".join(rows) + "\n")
    entry = {"hub": {"path": "json", "data_files": [str(tmp_path / f"{n}.jsonl") for n in range(3)], "streaming": True}}
    named = make_source(entry, 1)
    parts = list(named.source.parts())
    assert len(parts) == 3
    texts = [d.text for part in parts for d in named.source.read_documents(part.spec, BadInput("error"))]
    assert texts == [f"{shard}-{n}" for shard in range(3) for n in range(5)]
    (first, *_) = named.source.read_documents(parts[2].spec, BadInput("error"))
    assert (first.source, first.record) == ("json/train#2", 1)


def test_rows_that_are_lines_become_documents_again(tmp_path):
    lines = [
        "",
        " = Robert = \n",
        "",
        " Robert is an actor . \n",
        " = = Career = = \n",
        " He plays . \n",
        " = Du Fu = \n",
        " A poet . \n",
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    documents = read_all(
        {
            "hub": {"path": "json", "data_files": str(tmp_path / "a.jsonl")},
            "document_start": r"^ = [^=].*[^=] = \n?$",
        }
    )
    assert [(d.record, d.text) for d in documents] == [
        (1, "\n"),
        (2, " = Robert = \n\n Robert is an actor . \n = = Career = = \n He plays . \n"),
        (7, " = Du Fu = \n A poet . \n"),
    ]
    with pytest.raises(UserError, match="not a regular expression"):
        make_source({"hub": {"path": "json"}, "document_start": "("}, 1)


def test_a_users_generator_in_parts(tmp_path, monkeypatch):
    (tmp_path / "my_texts.py").write_text(
        "def poems(number=2):\n"
        "    for n in range(number):\n"
        "        yield {'text': f'poem {n}', 'author': 'me'}\n"
        "class Songs:\n"
        "    num_parts = 2\n"
        "    def documents(self, part):\n"
        "        yield f'song {part}'\n"
        "def wrong():\n"
        "    yield 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    documents = read_all({"class_path": "my_texts.poems", "init_args": {"number": 3}})
    assert [(d.text, d.record, d.metadata) for d in documents] == [
        (f"poem {n}", n + 1, {"author": "me"}) for n in range(3)
    ]
    assert [(d.text, d.source) for d in read_all({"class_path": "my_texts.Songs"})] == [
        ("song 0", "my_texts.Songs#0"),
        ("song 1", "my_texts.Songs#1"),
    ]
    with pytest.raises(UserError, match="'nuber' of source my_texts.poems; did you mean number"):
        read_all({"class_path": "my_texts.poems", "init_args": {"nuber": 3}})
    with pytest.raises(UserError, match="is a int; yield a text"):
        read_all({"class_path": "my_texts.wrong"})


def damaged(path: Path) -> None:
    text = "".join(json.dumps({"text": f"line {n} " * 40}) + "\n" for n in range(200)).encode()
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text)[:-20])
    elif path.suffix == ".zst":
        path.write_bytes(zstandard.ZstdCompressor().compress(text)[:-20])
    elif path.suffix == ".parquet":
        path.write_bytes(b"PAR1" + text[:100])
    else:
        path.write_text("a secret\n")
        path.chmod(0)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.txt.gz", "a.jsonl.zst", "a.parquet", "locked.txt"])
def test_bad_files_are_named_or_skipped(tmp_path, name):
    if name == "locked.txt" and os.geteuid() == 0:
        name = "gone.txt"  # root may read everything; a file that vanishes after the plan is as unreadable
    damaged(tmp_path / name)
    if name == "gone.txt":
        (tmp_path / name).unlink()
    named = make_source({"files": str(tmp_path)}, 1)
    spec = [f"texts/{name}", str(tmp_path / name)]
    from lit_gpt.data.pipeline.reading import _guarded

    def read(bad):
        return list(_guarded(named.source.read_documents(spec, bad), name, bad))

    with pytest.raises(UserError, match=rf"{name}.*on_bad_input: skip"):
        read(BadInput("error"))
    bad = BadInput("skip")
    read(bad)
    assert bad.num_skipped == 1
    assert name in bad.named[0]


def test_parts_become_tasks_by_size_alone(tmp_path):
    for number in range(20):
        (tmp_path / f"{number:02}.txt").write_text("x" * 1000)
    named = make_source({"files": str(tmp_path)}, 1)
    plan = make_plan([named], 3000)
    assert [len(task) for task in plan.tasks] == [3, 3, 3, 3, 3, 3, 2]
    assert [part[1] for task in plan.tasks for part in task] == [f"{tmp_path.name}/{n:02}.txt" for n in range(20)]
    assert plan.num_bytes == 20_000
    assert len(make_plan([named], None).tasks) == 1
