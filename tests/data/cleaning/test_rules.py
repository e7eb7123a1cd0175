import sys
import types

import pytest
from cleaning_run import judge

from lit_gpt.data.cleaning.base import Doc, Rejected
from lit_gpt.data.cleaning.rules import Length, Lines, Predicate
from lit_gpt.errors import UserError

TEXT = """A first line of prose, long enough to stay.
SUBSCRIBE NOW AND SAVE

12 34 56 78 90 12
x
Sign in to read more about this.
A last line of prose that also stays."""


@pytest.mark.parametrize(
    ("options", "gone"),
    [
        ({"min_chars": 2}, ["x"]),
        ({"max_chars": 40}, ["A first line of prose, long enough to stay."]),
        ({"min_words": 4}, ["x"]),
        ({"max_uppercase": 0.9}, ["SUBSCRIBE NOW AND SAVE"]),
        ({"max_digits": 0.5}, ["12 34 56 78 90 12"]),
        ({"containing": ["sign IN to"]}, ["Sign in to read more about this."]),
    ],
)
def test_line_rules_remove_their_lines_only(options, gone):
    step = Lines(**options)
    result = judge(step, TEXT)
    assert result.text == "\n".join(line for line in TEXT.split("\n") if line not in gone)
    assert step.counts == {"lines_removed": len(gone)}


def test_document_rules():
    assert judge(Lines(min_chars=30, max_removed=0.1), TEXT).reason == "lines_many_removed"
    assert isinstance(judge(Lines(min_chars=30, max_removed=0.5), TEXT), Doc)
    assert judge(Lines(min_chars=99), TEXT) == Rejected("lines_none_left", "all 7 lines were removed")
    assert judge(Lines(max_mean_chars=10), TEXT).reason == "lines_long_on_average"
    assert judge(Lines(max_longest_chars=40), TEXT) == Rejected("lines_too_long", "one of 43 characters > 40")
    assert judge(Lines(min_alphanumeric=0.25), "{}" * 50 + "ab").reason == "few_alphanumeric"
    assert judge(Lines(max_mean_chars=100, max_longest_chars=1000, min_alphanumeric=0.25), TEXT).text == TEXT


def test_length():
    assert judge(Length(min_chars=5), " abcd \n") == Rejected("too_short", "4 characters < 5")
    assert judge(Length(max_chars=5), "abcdef") == Rejected("too_long", "6 characters > 5")
    assert judge(Length(min_words=4), "one two, three!") == Rejected("too_short", "3 words < 4")
    assert judge(Length(max_words=2), "one two, three!") == Rejected("too_long", "3 words > 2")
    assert judge(Length(min_chars=3, max_chars=3, min_words=1, max_words=1), "abc").text == "abc"
    assert judge(Length(min_chars=0), "").text == ""


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Lines(), "lines has no rule"),
        (lambda: Lines(max_digits=2), "max_digits is 2; .*at most 1"),
        (lambda: Lines(containing="cookies"), r"containing is .cookies.*\[cookies\]"),
        (lambda: Lines(containing=[" "]), "an empty phrase"),
        (lambda: Lines(min_chars=9, max_chars=3), "max_chars is 3; .*9"),
        (lambda: Length(), "length has no bound"),
        (lambda: Length(min_words=-1), "min_words is -1"),
        (lambda: Predicate("nothing"), "has no module"),
        (lambda: Predicate("no_such_package.keep"), "no module 'no_such_package'"),
        (lambda: Predicate("math.pi"), "is a float"),
    ],
)
def test_wrong_options_are_named(make, message):
    with pytest.raises(UserError, match=message):
        make()


@pytest.fixture
def my_rules(monkeypatch):
    module = types.ModuleType("my_rules")
    exec(
        "def keep(document, least=5):\n"
        "    return len(document.text) >= least or 'shorter than ' + str(least)\n"
        "def boolean(document): return document.metadata['source'] == 'good'\n"
        "def broken(document): return 1 / 0\n"
        "def vague(document): return None\n"
        "class Has:\n"
        "    def __init__(self, word): self.word = word\n"
        "    def __call__(self, document): return self.word in document.text\n",
        module.__dict__,
    )
    monkeypatch.setitem(sys.modules, "my_rules", module)


@pytest.mark.usefixtures("my_rules")
def test_a_users_function_or_class_decides():
    assert judge(Predicate("my_rules.keep"), "abc") == Rejected("predicate", "shorter than 5")
    assert judge(Predicate("my_rules.keep", {"least": 2}), "abc").text == "abc"
    assert judge(Predicate("my_rules.boolean"), "abc", source="bad") == Rejected("predicate", "my_rules.boolean")
    assert judge(Predicate("my_rules.boolean"), "abc", source="good").text == "abc"
    assert judge(Predicate("my_rules.Has", {"word": "b"}), "abc").text == "abc"
    assert judge(Predicate("my_rules.Has", {"word": "z"}), "abc").reason == "predicate"


@pytest.mark.usefixtures("my_rules")
def test_a_users_mistake_names_the_document():
    with pytest.raises(UserError, match=r"my_rules.broken failed on document a document: ZeroDivisionError"):
        judge(Predicate("my_rules.broken"), "abc")
    with pytest.raises(UserError, match=r"returned None for document a document; return True"):
        judge(Predicate("my_rules.vague"), "abc")
    with pytest.raises(UserError, match="words.*did you mean word"):
        Predicate("my_rules.Has", {"words": "b"})
