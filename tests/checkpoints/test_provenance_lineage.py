"""A lineage names what made a model by hash, and neither who nor where."""

import getpass
import json
import socket
import subprocess
from pathlib import Path

from lit_gpt.checkpoints.provenance import collect_lineage, git_commit, hash_tokenizer, without_paths
from lit_gpt.hashing import sha256_json


def test_hashes_follow_the_content_alone(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text("{}")
    assert hash_tokenizer(tmp_path / "one") == hash_tokenizer(tmp_path / "two")
    (tmp_path / "two" / "model.safetensors").write_text("not of the tokenizer")
    assert hash_tokenizer(tmp_path / "one") == hash_tokenizer(tmp_path / "two")
    (tmp_path / "two" / "tokenizer.json").write_text("{ }")
    assert hash_tokenizer(tmp_path / "one") != hash_tokenizer(tmp_path / "two")
    assert sha256_json({"a": 1, "b": [2]}) == sha256_json({"b": [2], "a": 1}) != sha256_json({"a": 1, "b": [3]})


def test_what_is_written_and_what_is_not(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    home = str(Path.home() / "corpora" / "stdlib")
    corpus = {"sha256": "abc", "sources": [home, "~/x/notes.txt", "train/*.txt"], home: Path("/data/a.bin")}
    lineage = collect_lineage({"n_layer": 2}, tmp_path, corpus, init_from={"path": "C:\\models\\gpt"})
    assert lineage["config_sha256"] == sha256_json({"n_layer": 2})
    assert lineage["tokenizer_sha256"] == hash_tokenizer(tmp_path)
    assert lineage["corpus"]["sources"] == ["stdlib", "notes.txt", "train/*.txt"]
    assert lineage["corpus"]["stdlib"] == "a.bin"
    assert lineage["code"]["torch"].startswith("2.")
    text = json.dumps(lineage)
    for secret in (str(tmp_path), str(Path.home()), socket.gethostname()):
        assert secret not in text
    assert f'"{getpass.getuser()}"' not in text


def test_plain_text_is_left_alone():
    assert without_paths("a / b") == "a / b"
    assert without_paths("HuggingFaceFW/fineweb") == "HuggingFaceFW/fineweb"
    assert without_paths("/\nx") == "/\nx"


def test_the_commit_is_that_of_a_checkout_that_tracks_the_folder(tmp_path):
    def git(*arguments):
        subprocess.run(["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", *arguments], check=True)

    package = tmp_path / "package"
    package.mkdir()
    (package / "code.py").write_text("1")
    assert git_commit(package) is None
    git("init", "-q")
    assert git_commit(package) is None  # inside a checkout that does not know it, like a virtual environment
    git("add", ".")
    git("commit", "-q", "-m", "x")
    commit = git_commit(package)
    assert commit is not None
    assert len(commit) == 40
    (package / "code.py").write_text("2")
    assert git_commit(package) == f"{commit}-dirty"
