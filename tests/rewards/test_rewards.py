"""Rewards judge text by rules that can be worked out by hand, and never run it."""

import math

import pytest

from configs.grpo.python_rewards import KeepsSignature, PythonFunction, UsesArguments
from lit_gpt.errors import UserError
from lit_gpt.rewards import (
    ExactAnswer,
    Length,
    MatchesFormat,
    Reward,
    Rewards,
    Sample,
)


def sample(completion, num_tokens=5, finished=True, **row):
    prompt = [{"role": "user", "content": "?"}]
    return Sample(prompt, completion, row, num_tokens, finished, "rows.jsonl:7")


@pytest.mark.parametrize(
    ("completion", "answer", "reward"),
    [
        ("2 + 2 = 4\n#### 4", "He has 4.\n#### 4", 1),
        ("#### 1,200", "1200", 1),
        ("#### $1200.00.", "#### 1,200", 1),
        ("#### 4\nand more", "4", 1),
        ("#### 3\n#### 4", "4", 1),
        ("#### 3/4", "0.75", 1),
        ("#### -4", "4", 0),
        ("#### 44", "4", 0),
        ("the answer is 4", "4", 0),
        ("#### four", "4", 0),
        ("#### Paris ", "paris", 1),
        ("####", "4", 0),
        ("", "4", 0),
        ("#### 1/0", "4", 0),
        ("#### " + "9" * 5000, "4", 0),
    ],
)
def test_exact_answer(completion, answer, reward):
    assert ExactAnswer()(sample(completion, answer=answer)) == reward


def test_exact_answer_without_a_marker():
    lenient = ExactAnswer(needs_marker=False)
    assert lenient(sample("first 3, then 1,004.", answer="#### 1004")) == 1
    assert lenient(sample("Paris", answer="paris")) == 1
    assert lenient(sample("none", answer="4")) == 0
    with pytest.raises(UserError, match="no field 'answer'"):
        lenient(sample("4", solution="4"))


def test_format_and_length():
    form = MatchesFormat("<think>.*</think>.*")
    assert form(sample(" <think>a\nb</think> 4\n")) == 1
    assert form(sample("so <think>a</think>")) == 0
    assert MatchesFormat("<think>", whole=False)(sample("so <think>a</think>")) == 1
    with pytest.raises(UserError, match="not a regular expression"):
        MatchesFormat("(")
    length = Length(max_tokens=10, margin=4, min_tokens=2)
    assert [length(sample("", n)) for n in (1, 2, 6, 7, 8, 10, 11)] == [-1, 0, 0, -0.25, -0.5, -1, -1]
    assert Length(10, must_finish=True)(sample("", 3, finished=False)) == -1
    with pytest.raises(UserError, match="margin of Length|min_tokens of Length|max_tokens of Length"):
        Length(10, margin=8, min_tokens=4)


PLAIN = "def add(a, b):\n    return a + b"


@pytest.mark.parametrize(
    ("source", "does_something", "uses"),
    [
        (PLAIN, 1, 1),
        (f"```python\n{PLAIN}\n```", 1, 1),
        ("def add(a, b):\n    return a + 1", 1, 0.5),
        ("def add(a, b):\n    pass", 0, 0),
        ("def add(a, b):\n    'a docstring'", 0, 0),
        ("def add(a, b):\n    ...", 0, 0),
        ("def add(a, b):\n    a\n    b", 0, 0),
        ("def add(a, b):\n    a + b", 0, 0),
        ("def add(a, b):\n    return a", 0, 0),
        ("def add(a, b):\n    return a, b", 0, 0),
        ("def add(a, b):\n    a = a\n    b = b", 0, 0),
        ("def add(a, b):\n    return None\n    return a + b", 0, 0),
        ("def add(a, b):\n    x = a + 1\n    return x\n    b()", 1, 0.5),
        ("def add(a, b):\n    if a:\n        b\n    return 1", 0, 0),
        ("def add(a, b):\n    if a:\n        return b\n    return 1", 1, 1),
        ("def add(a, b):\n    a += b\n    return a", 1, 1),
        ("def add(self, b):\n    return b + 1", 1, 1),
        ("def add(a, a):\n    return a + 1", 0, 0),
        ("def add(self):\n    return self.x", 0, 0),
        ("def add(self):\n    return self.x()", 1, 1),
        ("def add(self):\n    return f()", 1, 0),
        ("def now():\n    return clock()", 1, 1),
        ("def add(*a, **b):\n    return f(*a, **b)", 1, 1),
        ("async def add(a):\n    return await a", 1, 1),
        (f"{PLAIN}\nprint(1)", 0, 0),
        (f"{PLAIN}\n\n{PLAIN}", 0, 0),
        ("x = 1", 0, 0),
        ("def add(a, b)\n    return a + b", 0, 0),
        ("", 0, 0),
        ("def f(a):\n    return " + "(" * 5000, 0, 0),
        ("def f(a):\n    return " + "-" * 50_000 + "a", 0, 0),
        ("def f(a):\n    return a" + " + 1" * 100_000, 0, 0),
        ("def f(a):\n    x = " + "(" * 150 + "a" + ")" * 150 + "\n    return x + 1", 1, 1),
        ("def f(a):\n    x = " + "a." * 900 + "a\n    return x + 1", 0, 0),
        ("\x00", 0, 0),
        ("def f(a):\n    return '\ud800' + a", 0, 0),
    ],
)
def test_python(source, does_something, uses):
    assert PythonFunction()(sample(source)) == does_something
    assert UsesArguments()(sample(source)) == uses


def test_what_was_asked_for_is_to_be_used():
    uses = UsesArguments()
    assert uses(sample(PLAIN, signature="def f(a, b):")) == 1
    assert uses(sample(PLAIN, signature="def f(a, c):")) == 0.5
    assert uses(sample("def f(self):\n    return self.x()", signature="def f(self, a):")) == 0
    assert uses(sample("def f():\n    return a + b", signature="def f(a, b):")) == 0
    assert uses(sample("def f(self, a):\n    return self.x(a)", signature="def f(self, a):")) == 1


def test_signatures():
    keeps = KeepsSignature()
    assert keeps(sample("def add(a, b=1):\n    pass", signature="def add(a,  b = 1):")) == 1
    assert keeps(sample("def add(a: int, b=1) -> int:\n    pass", signature="def add(a, b=1):")) == 1
    assert keeps(sample("def add(b, a=1):\n    pass", signature="def add(a, b=1):")) == 0
    assert keeps(sample("def sub(a, b=1):\n    pass", signature="def add(a, b=1):")) == 0
    assert keeps(sample("def add(a, b=2):\n    pass", signature="def add(a, b=1):")) == 0
    assert keeps(sample("async def add(a):\n    pass", signature="def add(a):")) == 0
    assert keeps(sample("nonsense", signature="def add(a):")) == 0
    part = KeepsSignature(partial=0.5)
    assert part(sample("def sub(a, c):\n    pass", signature="def add(a, b):")) == pytest.approx(0.5 / 3)
    assert part(sample("def add(a, b):\n    pass", signature="def add(a, b):")) == 1
    with pytest.raises(UserError, match="no field 'signature'"):
        keeps(sample(PLAIN))
    with pytest.raises(UserError, match="not a `def name"):
        keeps(sample(PLAIN, signature="class A:"))


def test_nothing_is_run(tmp_path):
    """Source that would leave a mark if it were imported, compiled into a default, decorated or evaluated."""
    mark = tmp_path / "mark"
    write = f"open({str(mark)!r}, 'w').close()"
    for source in (
        f"def f(a={write}):\n    return a + 1",
        f"@{write}\ndef f(a):\n    return a + 1",
        f"{write}\ndef f(a):\n    return a + 1",
        f"def f(a):\n    return {write}",
    ):
        for reward in (PythonFunction(), UsesArguments(), KeepsSignature(), ExactAnswer(), MatchesFormat(".*")):
            reward(sample(source, signature="def f(a):", answer=write))
    assert not mark.exists()


def raises(one):
    if one.completion == "bad":
        raise RuntimeError("no such thing")
    return 2.0


def gives(value):
    def given(one):
        return value if one.completion == "bad" else 1.0

    return given


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (raises, "raised RuntimeError: no such thing"),
        (gives(math.nan), "returned nan"),
        (gives(math.inf), "returned inf"),
        (gives(None), "returned None"),
        (gives("much"), "returned 'much'"),
    ],
)
def test_a_failing_reward_is_named_by_row_or_skipped(function, problem):
    samples = [sample("good"), sample("bad"), sample("good")]
    with pytest.raises(UserError, match=f"rows.jsonl:7: the reward {function.__name__} .*{problem}") as failure:
        Rewards([function])(samples)
    assert "'bad'" in str(failure.value)
    skipping = Rewards([function, Length(10)], [0.5, 1.0], "skip")
    rated = skipping(samples)
    good = rated.by_name[function.__name__][0]
    assert rated.totals == [0.5 * good, None, 0.5 * good]
    assert rated.by_name["length"] == [0, 0, 0]
    assert skipping.bad_input.num_skipped == 1
    assert skipping.bad_input.named[0].startswith("rows.jsonl:7: ")


def test_a_missing_field_is_named_by_row():
    with pytest.raises(UserError, match=r"rows\.jsonl:7: .*no field 'answer'"):
        Rewards([ExactAnswer()])([sample("4")])


@pytest.mark.parametrize("on_bad_input", ["error", "skip"])
def test_a_reward_that_returns_too_few_or_too_many_values(on_bad_input):
    """Which answers they are for cannot be known, so none is skipped."""

    class Short(Reward):
        def __call__(self, sample):
            return 1.0

        def rate(self, samples):
            return [1.0] * (len(samples) + self.more)

    for more in (-1, 1):
        reward = Short()
        reward.more = more
        with pytest.raises(UserError, match=rf"reward short returned {3 + more} values for 3 answers"):
            Rewards([reward], on_bad_input=on_bad_input)([sample("a"), sample("b"), sample("c")])


def test_names_and_weights():
    assert Rewards([ExactAnswer(), Length(5), Length(6), raises]).names == [
        "exact_answer",
        "length_1",
        "length_2",
        "raises",
    ]
    with pytest.raises(UserError, match="one finite number per reward"):
        Rewards([raises], [1.0, 2.0])
    with pytest.raises(UserError, match="rewards is empty"):
        Rewards([])
