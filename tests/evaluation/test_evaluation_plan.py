"""The YAML of an evaluation: what it makes, and what it refuses before anything runs."""

from pathlib import Path

import pytest
import yaml

from lit_gpt import evaluation
from lit_gpt.errors import UserError
from lit_gpt.evaluation import MEASURES
from lit_gpt.evaluation.language_modeling import LanguageModeling
from lit_gpt.evaluation.plan import SUITES, load_plan, make_plan, suite_file
from lit_gpt.evaluation.texts import Texts

OURS = {"class_path": "LanguageModeling", "init_args": {"texts": {"stdlib": True}}}


def test_a_measure_of_ours_and_one_of_the_users():
    plan = make_plan(
        {
            "seed": 3,
            "title": "Mine",
            "measures": [OURS, {"class_path": "small_models.CountsLetters", "init_args": {"value": 1}}],
            "gate": {"letters.share": {"min": 0.5}},
        },
        "mine",
    )
    assert (plan.name, plan.seed, plan.title, len(plan.gate)) == ("mine", 3, "Mine", 1)
    first, second = (planned.measure for planned in plan.measures)
    assert isinstance(first, LanguageModeling)
    assert first.texts == [Texts(stdlib=True)]
    assert second.value == 1
    assert plan.measures[1].label == "measure 2 (CountsLetters)"


def test_a_limit_goes_where_it_is_taken():
    plan = make_plan({"measures": [OURS]}, "p", limit=3)
    assert plan.measures[0].measure.limit == 3
    assert plan.notes == ()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no measures"),
        ({"measures": []}, "no measures"),
        ({"measures": {"a": 1}}, "measures is a dict"),
        ({"measures": [OURS], "gates": {}}, "unknown field 'gates'; did you mean gate"),
        ({"measures": [OURS], "seed": "x"}, "seed is 'x'"),
        ({"measures": ["LanguageModelling"]}, "unknown measure 'LanguageModelling'.*did you mean LanguageModeling"),
        ({"measures": ["LanguageModeling"]}, r"measure 1 \(LanguageModeling\) needs texts"),
        ({"measures": [3]}, "measure 1 is 3"),
        ({"measures": [{**OURS, "args": 1}]}, "unknown field 'args'"),
        ({"measures": [{"class_path": "LanguageModeling", "init_args": {"text": 1}}]}, "did you mean texts"),
        (
            {"measures": [{"class_path": "LanguageModeling", "init_args": {"texts": {"stdlib": True}, "stride": "a"}}]},
            r"stride is 'a'; it must be int \| null",
        ),
        ({"measures": [{"class_path": "LanguageModeling", "init_args": {"texts": {"fils": "a"}}}]}, "it has no 'fils'"),
        ({"measures": [{"class_path": "LanguageModeling", "init_args": {"texts": {}}}]}, "nothing is given"),
        ({"measures": ["pathlib.Path"]}, "pathlib.Path is not a subclass of .*Measure"),
        ({"measures": ["no_such_package.Measure"]}, "no_such_package"),
        ({"measures": ["small_models.CountLetters"]}, "did you mean CountsLetters"),
        ({"measures": [OURS], "gate": {"a.b": {"mx": 1}}}, "did you mean max"),
    ],
)
def test_what_is_refused(content, said):
    with pytest.raises(UserError, match=said):
        make_plan(content, "p")


def test_untrusted_code_is_no_setting_of_a_file(monkeypatch):
    import small_models

    class Runs(small_models.CountsLetters):
        def __init__(self, run_untrusted_code: bool = False) -> None:
            self.allowed = run_untrusted_code

    monkeypatch.setattr(small_models, "Runs", Runs, raising=False)
    with pytest.raises(UserError, match="command line: --run_untrusted_code"):
        make_plan({"measures": [{"class_path": "small_models.Runs", "init_args": {"run_untrusted_code": True}}]}, "p")
    for allowed in (False, True):
        plan = make_plan({"measures": ["small_models.Runs"]}, "p", run_untrusted_code=allowed)
        assert plan.measures[0].measure.allowed is allowed


def test_files_that_are_none(tmp_path):
    with pytest.raises(UserError, match=r"nowhere.yaml cannot be read"):
        load_plan(tmp_path / "nowhere.yaml")
    (tmp_path / "bad.yaml").write_text("measures: [")
    with pytest.raises(UserError, match=r"bad.yaml is not YAML"):
        load_plan(tmp_path / "bad.yaml")
    with pytest.raises(UserError, match="unknown suite 'nothing'"):
        suite_file("nothing")


@pytest.mark.parametrize("name", MEASURES)
def test_every_short_name_is_a_measure_that_says_what_it_is(name):
    target = getattr(evaluation, name)
    assert target.__doc__
    assert "Args:" in target.__doc__


FILES = sorted([*(Path(__file__).parents[2] / "configs" / "eval").glob("*.yaml"), *SUITES.glob("*.yaml")])


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_every_plan_that_comes_along_is_read(file):
    plan = load_plan(file)
    assert plan.measures
    assert plan.title
    assert yaml.safe_load(file.read_text()) == plan.config
    assert file.read_text().startswith("# ")
