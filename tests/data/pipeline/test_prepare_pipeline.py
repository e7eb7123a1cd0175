"""The whole road, small: a recipe through the command line, resumed, refused, over workers and on a stand-in Slurm."""

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from pipeline_corpora import (
    articles,
    card,
    digests,
    dropped_documents,
    kept_documents,
    prepare,
    write_articles,
    write_recipe,
)

from lit_gpt.data.pipeline import executor, segments
from lit_gpt.data.shards import TokenCorpus
from lit_gpt.data.tokenizers import load_tokenizer

STEPS = [{"normalize": {}}, {"length": {"min_chars": 1000, "max_chars": 100_000}}, {"lines": {"max_chars": 100_000}}]
TOKENIZER = {"vocab_size": 300}


@pytest.fixture(scope="module")
def prose(tmp_path_factory) -> Path:
    return write_articles(tmp_path_factory.mktemp("corpus") / "prose", 60)


def recipe(tmp_path: Path, prose: Path, name: str = "out", **more) -> Path:
    base = {
        "out": str(tmp_path / name),
        "sources": [{"files": str(prose), "license": "PSF-2.0"}],
        "steps": STEPS,
        "tokenizer": TOKENIZER,
        "val_fraction": 0.1,
        "shard_megabytes": 0.01,
    }
    return write_recipe(tmp_path / f"{name}.yaml", **base | more)


def test_every_window_can_be_traced_to_its_file(tmp_path, prose):
    assert prepare(recipe(tmp_path, prose)) == 0
    out = tmp_path / "out"
    corpus, tokenizer = TokenCorpus(out / "tokens"), load_tokenizer(out / "tokenizer")
    corpus.verify()
    kept = {document["metadata"]["path"]: document["text"] for document in kept_documents(out)}
    expected = {f"prose/article-{n:04}.txt": text for n, text in enumerate(articles(60)) if len(text) >= 1000}
    assert kept == expected
    assert 10 < len(kept) < 60
    seen = 0
    for name in ("train", "val"):
        split = corpus.split(name)
        for index in range(split.num_documents):
            span = split.document(index)
            assert tokenizer.decode(split.read(span.start + 1, span.num_tokens)) == expected[span.source]
            seen += 1
    assert seen == len(expected)


def test_the_card_adds_up(tmp_path, prose):
    assert prepare(recipe(tmp_path, prose)) == 0
    out = tmp_path / "out"
    numbers = card(out)
    texts = articles(60)
    kept = [text for text in texts if len(text) >= 1000]
    assert numbers["read"] == {"documents": 60, "bytes": sum(len(t.encode()) for t in texts)}
    assert numbers["left"] == {"documents": len(kept), "bytes": sum(len(t.encode()) for t in kept)}
    assert [step["name"] for step in numbers["steps"]] == ["read", "normalize", "length", "lines"]
    for before, after in zip(numbers["steps"], numbers["steps"][1:], strict=False):
        assert (before["documents_out"], before["bytes_out"]) == (after["documents_in"], after["bytes_in"])
    for step in numbers["steps"]:
        assert step["documents_in"] - step["documents_out"] == sum(n for n, _ in step["rejected"].values())
    dropped = dropped_documents(out, "length")
    assert len(dropped) == 60 - len(kept)
    assert {line["id"] for line in dropped} == {
        f"prose/prose/article-{n:04}.txt" for n, text in enumerate(texts) if len(text) < 1000
    }
    (source,) = numbers["sources"]
    corpus = TokenCorpus(out / "tokens")
    text_tokens = sum(corpus.split(s).num_tokens - corpus.split(s).num_documents for s in ("train", "val", "test"))
    assert source["tokens"] == numbers["tokens"]["text_tokens"] == text_tokens
    assert source["license"] == "PSF-2.0"
    assert sum(numbers["lengths"]["after"].values()) == len(kept)
    assert (
        numbers["tokens"]["used"]
        == len(
            set(corpus.split("train").read(0, corpus.split("train").num_tokens))
            | set(corpus.split("val").read(0, corpus.split("val").num_tokens))
        )
        - 1
    )


def test_two_workers_make_the_same_bytes(tmp_path, prose):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert prepare(recipe(tmp_path / "a", prose)) == 0
    assert prepare(recipe(tmp_path / "b", prose, executor={"kind": "local", "workers": 2})) == 0
    one, two = digests(tmp_path / "a" / "out"), digests(tmp_path / "b" / "out")
    assert one == two
    assert sum(name.startswith("documents/") for name in one) > 3


def test_it_is_done_once_and_another_recipe_needs_leave(tmp_path, prose, capsys):
    path = recipe(tmp_path, prose)
    assert prepare(path) == 0
    before = digests(tmp_path / "out")
    stamp = (tmp_path / "out" / "card.json").stat().st_mtime_ns
    assert prepare(path) == 0
    assert "is prepared already" in capsys.readouterr().err
    assert (tmp_path / "out" / "card.json").stat().st_mtime_ns == stamp
    other = recipe(tmp_path, prose, steps=[{"length": {"min_chars": 1}}])
    assert prepare(other) == 2
    assert "another recipe (steps changed)" in capsys.readouterr().err
    assert digests(tmp_path / "out") == before
    assert prepare(other, "--overwrite", "true") == 0
    assert len(kept_documents(tmp_path / "out")) == 60


def test_changed_input_is_noticed(tmp_path, capsys):
    folder = write_articles(tmp_path / "prose", 6)
    path = recipe(tmp_path, folder, steps=[])
    assert prepare(path) == 0
    (folder / "article-0003.txt").write_text("Another text altogether.\n")
    assert prepare(path) == 2
    assert "other input (the files have changed)" in capsys.readouterr().err


def test_a_strangers_folder_is_left_alone(tmp_path, prose, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    assert prepare(recipe(tmp_path, prose)) == 2
    assert "contains thesis.txt but no prepared corpus" in capsys.readouterr().err
    assert os.listdir(tmp_path / "out") in (["thesis.txt"], ["thesis.txt", "work.lock"], ["work.lock", "thesis.txt"])


def test_nothing_left_is_an_error_that_says_which_step(tmp_path, prose, capsys):
    assert prepare(recipe(tmp_path, prose, steps=[{"length": {"min_chars": 10**6}}])) == 2
    error = capsys.readouterr().err
    assert "no document is left: length dropped 60" in error
    assert "loosen" in error


def test_skipped_rows_are_named_on_the_terminal(tmp_path, capsys):
    (tmp_path / "rows.jsonl").write_text('{"body": "one"}\n{"body": "two"}\n{"text": "three"}\n')
    options = {"steps": [], "on_bad_input": "skip", "val_fraction": 0.0, "tokenizer": None}
    assert prepare(recipe(tmp_path, tmp_path / "rows.jsonl", **options)) == 0
    assert "skipped 2 records" in capsys.readouterr().err
    path = recipe(tmp_path, tmp_path / "rows.jsonl", "none", **options | {"steps": [{"length": {"min_chars": 9}}]})
    assert prepare(path) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "skipped 2 records" in last
    assert "rows.jsonl:1" in last
    assert "length dropped 1" in last


def test_a_failed_first_pass_does_not_bind_the_next_recipe(tmp_path, capsys):
    folder = write_articles(tmp_path / "prose", 4)
    (folder / "bad.txt").write_bytes(b"\xff\xfe\xff")
    assert prepare(recipe(tmp_path, folder, steps=[])) == 2
    assert "bad.txt: it is not valid" in capsys.readouterr().err
    assert prepare(recipe(tmp_path, folder, steps=[], on_bad_input="skip")) == 0
    assert card(tmp_path / "out")["bad_input"]["num_skipped"] == 1
    assert "bad.txt" in (tmp_path / "out" / "card.html").read_text()


def test_no_room_is_said_before_any_work(tmp_path, prose, monkeypatch, capsys):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    assert prepare(recipe(tmp_path, prose)) == 2
    error = capsys.readouterr().err
    assert "needs about" in error
    assert "1.0 kB are free" in error
    assert "set out to a larger disk" in error
    assert not list((tmp_path / "out").glob("work/*"))


def test_a_full_disk_in_the_middle_is_one_sentence_and_can_go_on(tmp_path, prose, monkeypatch, capsys):
    import errno

    path = recipe(tmp_path, prose)
    real = segments.write_json

    def full(target, value):
        if target.name == "02-length.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        real(target, value)

    monkeypatch.setattr(segments, "write_json", full)
    assert prepare(path) == 2
    assert "no space to write" in capsys.readouterr().err
    assert not list((tmp_path / "out").rglob(".tmp-*"))
    monkeypatch.setattr(segments, "write_json", real)
    assert prepare(path) == 0


@pytest.mark.parametrize("module", ["datatrove", "orjson"])
def test_the_missing_extra_is_named(tmp_path, prose, monkeypatch, capsys, module):
    monkeypatch.setitem(sys.modules, module, None)
    assert prepare(recipe(tmp_path, prose)) == 2
    assert (
        f"prepare needs {module}, which is not installed; in the checkout: pip install -e '.[data]'"
        in capsys.readouterr().err
    )


def test_help_and_explanations_need_no_extra(tmp_path):
    script = "import sys; sys.modules['datatrove'] = None; from lit_gpt.cli import main; main(sys.argv[1:])"
    for words in (["prepare", "--help"], ["prepare", "--explain", "sources"], ["prepare", "--explain", "warc"]):
        result = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=False)
        assert "sources" in result.stdout + result.stderr
        assert "Traceback" not in result.stderr


def test_misspelled_keys_of_the_recipe_name_the_nearest(tmp_path, capsys):
    path = write_recipe(tmp_path / "r.yaml", outt="x")
    with pytest.raises(SystemExit):
        prepare(path)
    assert "nearest: out" in capsys.readouterr().err
    path = write_recipe(tmp_path / "r.yaml", executor={"knd": "local"})
    with pytest.raises(SystemExit):
        prepare(path)
    assert "nearest: executor.kind" in capsys.readouterr().err


def stand_in(folder: Path, name: str, body: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_slurm_makes_the_same_bytes(tmp_path, prose, monkeypatch):
    """sbatch stands in: it runs the array's tasks one after another, with the variables that Slurm sets."""
    tools = tmp_path / "bin"
    tools.mkdir()
    launch = f"{sys.executable} -m datatrove.tools.launch_pickled_pipeline"
    stand_in(
        tools,
        "sbatch",
        'script="${@: -1}"\n'
        "last=$(grep -oP '(?<=--array=0-)\\d+' $script)\n"
        "for task in $(seq 0 ${last:-0}); do\n"
        f"  SLURM_ARRAY_TASK_ID=$task SLURM_NODELIST=here PATH={tools}:$PATH bash $script >> {tmp_path}/slurm.log 2>&1\n"
        "done\necho Submitted batch job 7",
    )
    stand_in(tools, "srun", 'while [[ $1 == -* ]]; do [[ $1 == -n ]] && shift; shift; done; exec "$@"')
    stand_in(tools, "scontrol", "echo here")
    stand_in(tools, "squeue", "")
    stand_in(tools, "launch_pickled_pipeline", f'exec {launch} "$@"')
    stand_in(tools, "merge_stats", "true")
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setattr(executor, "POLL_SECONDS", 0.01)
    few = {"shard_megabytes": 1, "steps": STEPS[:2]}
    (tmp_path / "slurm").mkdir()
    (tmp_path / "inline").mkdir()
    slurm = {"kind": "slurm", "workers": 4, "partition": "cpu", "time": "01:00:00"}
    assert prepare(recipe(tmp_path / "slurm", prose, **few, executor=slurm)) == 0, (tmp_path / "slurm.log").read_text()
    assert prepare(recipe(tmp_path / "inline", prose, **few)) == 0
    assert digests(tmp_path / "slurm" / "out") == digests(tmp_path / "inline" / "out")


def test_slurm_is_refused_where_it_cannot_run(tmp_path, prose, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert prepare(recipe(tmp_path, prose, executor={"kind": "slurm", "partition": "cpu", "time": "1"})) == 2
    assert "there is no sbatch here" in capsys.readouterr().err


def test_stops_at_clean_text_without_a_tokenizer(tmp_path, prose):
    assert prepare(recipe(tmp_path, prose, tokenizer=None)) == 0
    assert not (tmp_path / "out" / "tokens").exists()
    assert card(tmp_path / "out")["tokens"] is None


def test_a_tokenizer_that_exists_is_taken_along(tmp_path, prose):
    assert prepare(recipe(tmp_path, prose, name="first")) == 0
    folder = tmp_path / "first" / "tokenizer"
    assert prepare(recipe(tmp_path, prose, name="second", tokenizer=str(folder))) == 0
    one, two = load_tokenizer(folder), load_tokenizer(tmp_path / "second" / "tokenizer")
    assert one.fingerprint == two.fingerprint


def test_documents_of_several_sources_keep_their_sources_name(tmp_path, prose):
    folder = write_articles(tmp_path / "more", 5, seed=3)
    sources = [{"files": str(prose), "license": "A"}, {"files": str(folder), "license": "B"}]
    assert prepare(recipe(tmp_path, prose, sources=sources, steps=[])) == 0
    numbers = card(tmp_path / "out")
    assert [source["read"]["documents"] for source in numbers["sources"]] == [60, 5]
    names = json.loads((tmp_path / "out" / "tokens" / "sources.json").read_bytes())
    assert names[0] == "prose/prose/article-0000.txt"
    assert names[-1] == "more/more/article-0004.txt"
    assert sum(source["tokens"] for source in numbers["sources"]) == numbers["tokens"]["text_tokens"]
    assert numbers["licenses"]["B"]["left"][0] == 5
