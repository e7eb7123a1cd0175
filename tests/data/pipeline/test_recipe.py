import pytest

from lit_gpt.data.cleaning import TRANSFORMS, Transform
from lit_gpt.data.pipeline.options import ExecutorOptions
from lit_gpt.data.pipeline.recipe import explanation, make_recipe
from lit_gpt.data.pipeline.sources import KINDS
from lit_gpt.errors import UserError
from lit_gpt.instantiate import construct, import_object

STDLIB = [{"stdlib": {}}]


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ({"out": None, "sources": STDLIB}, ["out is not set", "out: corpora/stdlib"]),
        ({"sources": []}, ["sources is empty", "files"]),
        ({"sources": [{"fils": "a"}]}, ["'fils'", "did you mean files?"]),
        ({"sources": ["a.txt"]}, ["source 1 is 'a.txt'", "files: a.txt"]),
        ({"sources": [{"files": "a", "html": "b"}]}, ["files and html", "separate sources"]),
        ({"sources": [{"files": "a", "text_feld": "b"}]}, ["'text_feld' of source 1 (files)", "mean text_field?"]),
        ({"sources": [{"files": "a", "license": 3}]}, ["license is 3", "text"]),
        ({"sources": [{"files": "a", "encoding": "lettin"}]}, ["encoding is 'lettin'", "detect"]),
        ({"sources": [{"hub": "roneneldan/TinyStories"}]}, ["hub: {path: roneneldan/TinyStories}"]),
        ({"sources": [{"hub": {"pat": "x"}}]}, ["'pat' of hub of source 1", "mean path?"]),
        ({"sources": [{"code": ".", "languages": ["Pyton"]}]}, ["'Pyton'", "mean Python?"]),
        ({"steps": [{"lenght": {}}]}, ["unknown transform 'lenght' at transform 1", "mean length?"]),
        ({"steps": [{"length": {"min_char": 3}}]}, ["'min_char' of transform 1 (length)", "mean min_chars?"]),
        ({"steps": [{"length": {"min_chars": "many"}}]}, ["transform 1 (length): min_chars is 'many'", "int"]),
        ({"steps": [{"length": [3]}]}, ["transform 1 (length)", "mapping"]),
        ({"steps": [{"length": {}, "lines": {}}]}, ["transform 1", "one name"]),
        ({"tokenizer": {"vocab_siz": 300}}, ["'vocab_siz' of tokenizer", "mean vocab_size?"]),
        ({"tokenizer": {"vocab_size": 100}}, ["vocab_size 100 is below 257"]),
        ({"tokenizer": {"vocab_size": "big"}}, ["tokenizer.vocab_size is 'big'"]),
        ({"val_fraction": 0.6, "test_fraction": 0.5}, ["val_fraction", "below 1"]),
        ({"on_bad_input": "ignore"}, ["on_bad_input is 'ignore'", "error or skip"]),
        ({"shard_megabytes": 0}, ["shard_megabytes is 0"]),
    ],
)
def test_a_mistake_is_named_with_the_remedy(recipe, words):
    with pytest.raises(UserError) as error:
        make_recipe(**{"out": "corpora/x", "sources": STDLIB} | recipe)
    for word in words:
        assert word in str(error.value)


def test_a_step_may_be_a_bare_name_and_sources_get_different_names():
    recipe = make_recipe("x", [{"files": "a/texts/*.txt"}, {"files": "b/texts/*.txt"}, *STDLIB], ["normalize"])
    assert [source.name for source in recipe.sources] == ["texts", "texts-2", "stdlib"]
    assert [(spec.index, spec.name, spec.options) for spec in recipe.transforms] == [(1, "normalize", {})]


def test_what_is_declared_goes_along_with_the_documents():
    recipe = make_recipe("x", [{"files": "a", "name": "letters", "license": "CC0-1.0", "language": "fr"}])
    assert recipe.sources[0].name == "letters"
    assert recipe.sources[0].metadata == {"license": "CC0-1.0", "language": "fr"}


def test_the_executor_does_not_change_the_key():
    from lit_gpt.data.pipeline.parts import Plan

    plan = Plan([], [], 0, 1)
    one = make_recipe("x", STDLIB)
    two = make_recipe("x", STDLIB, executor=ExecutorOptions("local", 2))
    other = make_recipe("x", STDLIB, [{"length": {"min_chars": 2}}])
    assert one.key(plan) == two.key(plan) != other.key(plan)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "local", "workers": 0}, "executor.workers is 0"),
        ({"kind": "local", "workers": -1}, "executor.workers is -1"),
        ({"workers": 4}, "set kind: local"),
    ],
)
def test_impossible_executors(options, words):
    with pytest.raises(UserError, match=words):
        ExecutorOptions(**options)


def test_a_missing_library_of_a_step_is_named_with_the_extra(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "trafilatura", None)
    from lit_gpt.extras import need

    with pytest.raises(UserError, match=r"reading web pages needs trafilatura.*pip install -e '.\[data\]'"):
        need("trafilatura", "data", "reading web pages")


def test_a_class_path_that_leads_nowhere():
    with pytest.raises(UserError, match=r"no module 'nowhere'.*PYTHONPATH"):
        import_object("nowhere.at.all", "source")
    with pytest.raises(UserError, match="did you mean OrderedDict"):
        import_object("collections.OrderdDict", "source")
    with pytest.raises(UserError, match="write it as package.module.MySource"):
        import_object("MySource", "source")


def test_required_options_are_asked_for():
    def keep(threshold: float, mode: str = "a") -> tuple[float, str]:
        return threshold, mode

    assert construct(keep, {"threshold": 1}, "step 1 (keep)") == (1.0, "a")
    with pytest.raises(UserError, match="needs threshold"):
        construct(keep, {}, "step 1 (keep)")


def test_every_kind_and_step_explains_itself():
    for kind in KINDS:
        assert kind in explanation("sources")
        assert f"- {kind}: ..." in explanation(kind)
    with pytest.raises(UserError, match="did you mean sources"):
        explanation("source")


def test_every_step_is_listed():
    text = explanation("steps")
    for name in TRANSFORMS:
        assert name in text
        assert f"- {name}: {{" in explanation(name)


class Shorten(Transform):
    """Keep the beginning of a document."""

    def __init__(self, max_chars: int = 7) -> None:
        super().__init__()


def test_a_step_of_another_package_explains_itself():
    text = explanation(f"{__name__}.Shorten")
    assert "Keep the beginning" in text
    assert "max_chars: 7" in text
    with pytest.raises(UserError, match="Shorter"):
        explanation(f"{__name__}.Shorter")
