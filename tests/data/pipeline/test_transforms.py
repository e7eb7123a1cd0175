"""The user's own transforms: what `apply` may return, how parts are named and counted, and mistakes in them."""

import sys

import pytest
from pipeline_corpora import articles, card, digests, dropped_documents, kept_documents, prepare, write_recipe

from lit_gpt.data.cleaning import TRANSFORMS, Doc, Rejected, Transform
from lit_gpt.data.pipeline.recipe import make_spec
from lit_gpt.data.pipeline.segments import apply_transform
from lit_gpt.errors import UserError

TRACE = {"source": "s", "path": "p", "record": 3}


class Lambda(Transform):
    def __init__(self, apply) -> None:
        super().__init__()
        self.apply = apply


SPEC = make_spec({"class_path": "test_transforms.Lambda"}, 4)


def applied(function, text="one two three", **metadata):
    return apply_transform(Lambda(function), Doc(text, "parent", TRACE | metadata), SPEC)


def same_object(document):
    """Yields one object again and again, each time with another text."""
    for word in document.text.split():
        document.text = word
        document.metadata["word"] = word
        yield document


def test_parts_get_ids_and_metadata_of_their_own():
    parts = applied(same_object, license="MIT")
    assert [(part.id, part.text, part.metadata["word"]) for part in parts] == [
        ("parent#1", "one", "one"),
        ("parent#2", "two", "two"),
        ("parent#3", "three", "three"),
    ]
    assert all(part.metadata["license"] == "MIT" for part in parts)
    assert len({id(part.metadata) for part in parts}) == 3


def test_identity_is_not_the_transforms_to_change():
    def split(document):
        return [Doc("a", "other", {"path": "elsewhere", "mine": 1}), Doc("b", "")]

    assert [(part.id, part.metadata) for part in applied(split)] == [
        ("parent#1", TRACE | {"mine": 1}),
        ("parent#2", TRACE),
    ]
    assert applied(lambda document: Doc("edited", "other")).metadata == TRACE


def test_one_part_is_an_edit_and_none_a_rejection():
    single = applied(lambda document: [document.part("edited")])
    assert (single.id, single.text) == ("parent", "edited")
    assert applied(lambda document: []).reason == "no_parts"
    assert applied(lambda document: Rejected("because")) == Rejected("because")


@pytest.mark.parametrize("result", [None, "a text", ["a"], 3, [Rejected("no")], Doc(b"bytes", ""), Doc("a", "", None)])
def test_anything_else_is_an_error_that_names_transform_and_document(result):
    with pytest.raises(UserError, match=r"transform 4 \(Lambda\).*parent"):
        applied(lambda document: result)


def test_a_failure_is_an_error_that_names_transform_and_document():
    def late(document):
        yield document
        raise KeyError("deep")

    for function in (lambda document: 1 / 0, late):
        with pytest.raises(UserError, match=r"transform 4 \(Lambda\) failed on document parent: (Zero|Key)"):
            applied(function)


def test_a_class_path_must_be_a_transform():
    for name in ("collections.Counter", "math.pi", "nowhere.at_all"):
        with pytest.raises(UserError, match=name.partition(".")[0]):
            make_spec({"class_path": name}, 1)
    with pytest.raises(UserError, match="'init_arg'.*did you mean init_args"):
        make_spec({"class_path": "test_transforms.Lambda", "init_arg": {}}, 1)
    with pytest.raises(UserError, match="'aply'.*did you mean apply"):
        make_spec({"class_path": "test_transforms.Lambda", "init_args": {"aply": 1}}, 1).build()


def test_the_registry_is_open(monkeypatch):
    monkeypatch.setitem(TRANSFORMS, "mine", Lambda)
    spec = make_spec("mine", 1)
    assert (spec.name, spec.target) == ("mine", Lambda)
    monkeypatch.setitem(TRANSFORMS, "mine", "test_transforms.Lambda")
    assert make_spec("mine", 1) == spec
    assert (spec.is_custom, spec.written) == (True, {"mine": {}})
    assert not make_spec("length", 1).is_custom


@pytest.fixture
def module(monkeypatch, tmp_path):
    """A module of transforms that a recipe can name."""
    (tmp_path / "my_transforms.py").write_text(
        "from pathlib import Path\n"
        "from lit_gpt.data.cleaning import Transform\n"
        "class Paragraphs(Transform):\n"
        "    def __init__(self, fail_while=''):\n"
        "        super().__init__()\n"
        "        self.fail_while = fail_while\n"
        "    def apply(self, document):\n"
        "        if self.fail_while and Path(self.fail_while).exists() and document.id.endswith('7.txt'):\n"
        "            raise RuntimeError('not now')\n"
        "        return (document.part(text) for text in document.text.split('\\n\\n'))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "my_transforms.py"
    sys.modules.pop("my_transforms", None)


def write_prose(folder, number=20):
    folder.mkdir()
    for index, text in enumerate(articles(number)):
        (folder / f"{index:02}.txt").write_text(text + ("\n\n \n\nthe last one" if index % 4 == 0 else ""))
    return folder


def test_a_split_resumes_after_a_failure_and_its_blank_parts_are_dropped_by_name(tmp_path, module, capsys):
    settings = {
        "sources": [{"files": str(write_prose(tmp_path / "prose"))}],
        "steps": ["normalize", {"class_path": "my_transforms.Paragraphs", "init_args": {"fail_while": "flag"}}, "pii"],
        "tokenizer": {"vocab_size": 300},
        "shard_megabytes": 0.001,
        "keep_rejected": True,
    }
    flag = tmp_path / "flag"
    flag.touch()
    settings["steps"][1]["init_args"]["fail_while"] = str(flag)
    path = write_recipe(tmp_path / "r.yaml", out=str(tmp_path / "a" / "out"), **settings)
    assert prepare(path) == 2
    assert "transform 2 (Paragraphs) failed on document prose/prose/07.txt" in capsys.readouterr().err
    flag.unlink()
    assert prepare(path) == 0
    assert prepare(write_recipe(tmp_path / "s.yaml", out=str(tmp_path / "b" / "out"), **settings)) == 0
    assert digests(tmp_path / "a" / "out") == digests(tmp_path / "b" / "out")

    out = tmp_path / "a" / "out"
    step = card(out)["steps"][2]
    assert step["documents_in"] == 20
    assert step["split"] == [20, 20 * 3 + 5 * 2]
    assert step["rejected"]["empty"][0] == 5
    assert [line["id"] for line in dropped_documents(out, "Paragraphs")] == [
        f"prose/prose/{n:02}.txt#4" for n in range(0, 20, 4)
    ]
    assert step["documents_out"] == len(kept_documents(out)) == 65


def test_another_version_of_the_code_is_noticed(tmp_path, module, capsys):
    base = {
        "out": str(tmp_path / "out"),
        "sources": [{"files": str(write_prose(tmp_path / "prose", 4))}],
        "tokenizer": None,
    }
    path = write_recipe(tmp_path / "r.yaml", **base, steps=["my_transforms.Paragraphs"])
    assert prepare(path) == 0
    module.write_text(module.read_text() + "# a comment\n")
    assert prepare(path) == 2
    assert "transform 1 (Paragraphs)" in capsys.readouterr().err
    steps = [{"class_path": "my_transforms.Paragraphs", "version": 1}]
    path = write_recipe(tmp_path / "r.yaml", **base, steps=steps)
    assert prepare(path, "--overwrite", "true") == 0
    module.write_text(module.read_text() + "# another comment\n")
    assert prepare(path) == 0
