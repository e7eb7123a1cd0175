"""A second start: what the recipe only names may have changed, and the corpus must not swallow itself."""

import json
import shutil

import pytest
from pipeline_corpora import articles, card, kept_documents, prepare, write_articles, write_recipe

from lit_gpt.data.pipeline.recipe import make_recipe
from lit_gpt.errors import UserError


@pytest.fixture
def base(tmp_path):
    folder = write_articles(tmp_path / "prose", 5)
    return {"out": str(tmp_path / "out"), "sources": [{"files": str(folder)}], "tokenizer": {"vocab_size": 257}}


def test_a_benchmark_with_another_content_is_noticed(tmp_path, base, capsys):
    bench = tmp_path / "bench.jsonl"
    bench.write_text(json.dumps({"question": "one two three four five six seven eight nine ten eleven twelve"}) + "\n")
    path = write_recipe(tmp_path / "r.yaml", **base, steps=[{"decontaminate": {"benchmarks": [str(bench)]}}])
    assert prepare(path) == 0
    assert len(kept_documents(tmp_path / "out")) == 5
    assert prepare(path) == 0
    assert "prepared already" in capsys.readouterr().err
    bench.write_text(json.dumps({"question": " ".join(articles(5)[2].split()[:30])}) + "\n")
    assert prepare(path) == 2
    assert "what transform 1 (decontaminate) names has changed" in capsys.readouterr().err
    assert prepare(path, "--overwrite", "true") == 0
    assert len(kept_documents(tmp_path / "out")) == 4


@pytest.mark.parametrize("where", ["step", "source"])
def test_the_users_own_code_that_changed_is_noticed(tmp_path, base, monkeypatch, capsys, where):
    module = f"code_that_changes_{where}"
    (file := tmp_path / f"{module}.py").write_text("def rule(doc=None):\n    return True if doc else ['a text']\n")
    monkeypatch.syspath_prepend(tmp_path)
    steps = [{"predicate": {"class_path": f"{module}.rule"}}]
    sources = base["sources"]
    if where == "source":
        steps, sources = [], [{"class_path": f"{module}.rule"}]
    path = write_recipe(tmp_path / "r.yaml", **base | {"sources": sources}, steps=steps)
    assert prepare(path) == 0
    file.write_text(file.read_text() + "# another rule\n")
    assert prepare(path) == 2
    expected = "transform 1 (predicate) names has changed" if where == "step" else "the files have changed"
    assert expected in capsys.readouterr().err
    (steps or sources)[0] |= (
        {"predicate": {"class_path": f"{module}.rule", "version": "1"}} if steps else {"version": "1"}
    )
    path = write_recipe(tmp_path / "r.yaml", **base | {"sources": sources}, steps=steps)
    assert prepare(path, "--overwrite", "true") == 0
    file.write_text(file.read_text() + "# a comment\n")
    assert prepare(path) == 0


def test_another_tokenizer_in_the_same_folder_is_noticed(tmp_path, base, capsys):
    for size in (257, 300):
        path = write_recipe(
            tmp_path / "t.yaml", **base | {"out": str(tmp_path / f"out{size}"), "tokenizer": {"vocab_size": size}}
        )
        assert prepare(path) == 0
    shutil.copytree(tmp_path / "out257" / "tokenizer", tmp_path / "mine")
    path = write_recipe(tmp_path / "r.yaml", **base | {"tokenizer": str(tmp_path / "mine")})
    assert prepare(path) == 0
    shutil.rmtree(tmp_path / "mine")
    shutil.copytree(tmp_path / "out300" / "tokenizer", tmp_path / "mine")
    assert prepare(path) == 2
    assert "what tokenizer names has changed" in capsys.readouterr().err


def test_a_tokenizer_that_is_not_there_is_an_error_before_the_work(tmp_path, base, capsys):
    path = write_recipe(tmp_path / "r.yaml", **base | {"tokenizer": str(tmp_path / "nowhere")})
    assert prepare(path) == 2
    assert "nowhere does not exist" in capsys.readouterr().err
    assert not (tmp_path / "out" / "work").exists()


def test_a_corpus_inside_its_own_source_does_not_eat_itself(tmp_path, base, capsys):
    inside = base | {"out": str(tmp_path / "prose" / "clean"), "on_bad_input": "skip"}
    path = write_recipe(tmp_path / "r.yaml", **inside)
    assert prepare(path) == 0
    assert card(tmp_path / "prose" / "clean")["read"]["documents"] == 5
    assert prepare(path) == 0
    assert "prepared already" in capsys.readouterr().err
    assert prepare(write_recipe(tmp_path / "r.yaml", **inside, steps=["normalize"]), "--overwrite", "true") == 0
    assert len(kept_documents(tmp_path / "prose" / "clean")) == 5
    with pytest.raises(UserError, match=r"out is .*clean, which lies in the dataset's folder .*prose"):
        make_recipe(inside["out"], [{"hub": {"path": str(tmp_path / "prose")}}])


def test_steps_may_be_loosened_after_they_left_nothing(tmp_path, base, capsys):
    hard = [{"near_duplicates": {}}, {"length": {"min_chars": 10**6}}]
    assert prepare(write_recipe(tmp_path / "r.yaml", **base, steps=hard)) == 2
    assert "loosen these filters" in capsys.readouterr().err
    assert prepare(write_recipe(tmp_path / "r.yaml", **base, steps=[{"length": {"min_chars": 1}}])) == 0
    assert len(kept_documents(tmp_path / "out")) == 5


def test_explain_without_a_word_lists_the_topics(capsys):
    from lit_gpt.cli import main

    assert main(["prepare", "--explain"]) == 0
    shown = capsys.readouterr().out
    for topic in ("sources", "steps", "warc", "near_duplicates"):
        assert topic in shown
