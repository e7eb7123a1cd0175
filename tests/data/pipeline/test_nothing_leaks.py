"""Where a recipe takes personal data out, no report of it may show them: whole, halved by a cut, or in a name."""

import base64
import json
import random

import zstandard
from pipeline_corpora import articles, dropped_documents, prepare, write_recipe

from lit_gpt.data.cleaning.base import Doc, Rejected
from lit_gpt.data.pipeline.report import EXCERPT_CHARACTERS, TransformReport, personal_data_mask

EMAIL = "ada.lovelace.the.countess@analytical-engines.example.org"


def private_key() -> str:
    lines = base64.b64encode(random.Random(0).randbytes(900)).decode()
    body = "\n".join(lines[i : i + 64] for i in range(0, len(lines), 64))
    return f"-----BEGIN RSA PRIVATE KEY-----\n{body}\n-----END RSA PRIVATE KEY-----"


def test_a_secret_that_the_cut_would_halve_is_masked_whole():
    report = TransformReport("length", 1, personal_data_mask())
    for shift in range(0, len(EMAIL), 7):
        text = "x" * (EXCERPT_CHARACTERS * 3 // 4 - shift) + " " + EMAIL + " " + "y" * 1000
        report.reject(Doc(text, f"{shift}"), Rejected("too_long", f"{'z' * (1000 - shift)} {EMAIL}"))
        report.reject(Doc(text, f"mail/{EMAIL}:{shift}"), Rejected("duplicate", "", "c", f"mail/{EMAIL}:{shift}", 9))
    told = json.dumps(report.to_json())
    assert "<EMAIL>" in told
    for part in ("ada.love", "lovelace", "countess", "engines", "example.org"):
        assert part not in told


def test_no_file_of_a_corpus_but_what_was_asked_for_holds_a_secret(tmp_path, monkeypatch):
    texts = articles(6)
    key, folder = private_key(), tmp_path / "texts"
    folder.mkdir()
    (folder / "0.txt").write_text("short " + key + " " + EMAIL)
    for number, text in enumerate([*texts, texts[1], texts[2]], start=1):
        (folder / f"{number}.txt").write_text(f"{text}\n{key}\n{text[:200]} {EMAIL}\n")
    (folder / f"{EMAIL}.txt").write_text("tiny")
    (tmp_path / "telling_rule.py").write_text("def keep(doc):\n    return 'it says ' + doc.text[-300:]\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = write_recipe(
        tmp_path / "r.yaml",
        out=str(tmp_path / "out"),
        sources=[{"files": str(folder)}],
        steps=[{"length": {"min_chars": 1600}}, "exact_duplicates", "near_duplicates", "pii"],
        tokenizer=None,
    )
    assert prepare(path) == 0
    hidden = [EMAIL, "analytical", *key.splitlines()[1:-1]]
    seen = 0
    for file in (tmp_path / "out").rglob("*"):
        if file.is_file() and "rejected" not in file.parts:
            data = file.read_bytes()
            words = (
                zstandard.ZstdDecompressor().decompressobj().decompress(data) if file.suffix == ".zst" else data
            ).decode()
            for secret in hidden:
                assert secret not in words, (file, secret)
                assert json.dumps(secret)[1:-1] not in words, (file, secret)
            seen += "<SECRET>" in words
    assert seen > 1
    assert len(dropped_documents(tmp_path / "out", "exact_duplicates")) == 2
    path = write_recipe(
        tmp_path / "s.yaml",
        out=str(tmp_path / "told"),
        sources=[{"files": str(folder / "[0-9].txt")}],
        steps=[{"predicate": {"class_path": "telling_rule.keep"}}, "pii"],
        tokenizer=None,
    )
    assert prepare(path) == 2  # nothing is left
    for line in dropped_documents(tmp_path / "told", "predicate"):
        assert EMAIL not in line["detail"]
