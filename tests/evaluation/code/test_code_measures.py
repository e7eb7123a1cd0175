"""HumanEval and ParsesAsPython: counted by hand on models whose answers are known, and run on a small real one."""

import gzip
import json
from types import SimpleNamespace

import pytest

from lit_gpt.data.bpe import train_bpe
from lit_gpt.errors import UserError
from lit_gpt.evaluation.code import HumanEval, ParsesAsPython
from lit_gpt.evaluation.code.parsing import HEADERS, parses
from lit_gpt.evaluation.code.sandbox import Limits, check_isolation
from lit_gpt.evaluation.subject import Subject
from lit_gpt.generation.request import Completion
from lit_gpt.models import GPT, GPTConfig

TASKS = [
    {"task_id": "add", "prompt": 'def add(a, b):\n    """Sum."""\n', "entry_point": "add", "test": "def check(f):\n    assert f(1, 2) == 3\n"},
    {"task_id": "neg", "prompt": "def neg(a):\n", "entry_point": "neg", "test": "def check(f):\n    assert f(1) == -1\n"},
]  # fmt: skip
LIMITS = Limits(seconds=1.0, memory_mb=256)


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(["def add(a, b):\n    return a + b\n"] * 5, 300)


@pytest.fixture
def tasks(tmp_path):
    file = tmp_path / "tasks.jsonl.gz"
    with gzip.open(file, "wt") as out:
        out.writelines(json.dumps(task) + "\n" for task in TASKS)
    return str(file)


@pytest.fixture
def isolated():
    try:
        check_isolation(LIMITS)
    except UserError as error:
        pytest.skip(f"no isolation here: {error}")


class Scripted:
    """Answers prompts as it is told, in turn."""

    def __init__(self, tokenizer, answers, reason="stop", block_size=1024):
        self.tokenizer, self.answers, self.reason = tokenizer, answers, reason
        self.block_size, self.seed = block_size, 0
        self.asked = []

    def complete(self, texts, params, progress):
        self.asked += zip(texts, params, strict=True)
        written = {}
        completions = []
        for number, text in enumerate(texts):
            progress(number + 1, len(texts))
            place = written[text] = written.get(text, -1) + 1
            answers = self.answers[text] if isinstance(self.answers, dict) else self.answers
            completions.append(Completion(str(number), [], [], answers[place % len(answers)], self.reason))
        return completions


def test_pass_at_k_of_known_answers(tokenizer, tasks, isolated):
    right, wrong, early = "    return a + b\n", "    return 0\n", "    import os; os._exit(0)\n"
    subject = Scripted(tokenizer, {TASKS[0]["prompt"]: [right, wrong, early, right], TASKS[1]["prompt"]: [wrong]})
    seen = []
    measure = HumanEval(tasks, k=[1, 2, 4], samples=4, temperature=0.8, limits=LIMITS, run_untrusted_code=True)
    (result,) = measure.run(subject, lambda done, total: seen.append((done, total)))
    # 2 of 4 right: pass@1 = 1/2, pass@2 = 1 - C(2, 2)/C(4, 2) = 5/6, pass@4 = 1; the other task has 0.
    assert [score.name for score in result.scores] == ["pass_at_1", "pass_at_2", "pass_at_4"]
    assert [score.value for score in result.scores] == pytest.approx([1 / 4, 5 / 12, 1 / 2])
    assert result.score("pass_at_2").per_item == pytest.approx({"add": 5 / 6, "neg": 0.0})
    assert all(score.interval.low <= score.value <= score.interval.high for score in result.scores)
    bars = dict(zip(result.charts[0].x, result.charts[0].series["programs"], strict=True))
    assert bars == {"passed": 2, "AssertionError": 5, "ended early": 1}
    assert {example.title for example in result.examples} == {
        "passed",
        "did not pass: AssertionError",
        "did not pass: ended early",
    }
    assert seen[0] == (1, 16)
    assert seen[-1] == (16, 16)
    params = [one for _, one in subject.asked]
    assert len({one.seed for one in params}) == 8
    assert "\ndef" in params[0].stop
    json.dumps(result.to_dict())


def test_a_prompt_without_room_counts_as_not_solved(tokenizer, tasks, isolated):
    room = len(tokenizer.encode(TASKS[1]["prompt"])) + 2
    subject = Scripted(tokenizer, ["    return -a\n"], block_size=room)
    (result,) = HumanEval(tasks, max_new_tokens=1, limits=LIMITS, run_untrusted_code=True).run(subject)
    assert result.score("pass_at_1").per_item == {"add": 0.0, "neg": 1.0}
    assert any("1 tasks" in note and "add" in note for note in result.notes)


def test_nothing_runs_without_the_flag(tokenizer, tasks):
    subject = Scripted(tokenizer, ["x"])
    with pytest.raises(UserError, match="--run_untrusted_code"):
        HumanEval(tasks).run(subject)
    assert not subject.asked


def test_nothing_runs_where_it_cannot_be_isolated(tokenizer, tasks, monkeypatch):
    subject = Scripted(tokenizer, ["x"])
    monkeypatch.setattr("lit_gpt.evaluation.code.sandbox.this_processor", lambda: None)
    with pytest.raises(UserError, match="cannot be isolated"):
        HumanEval(tasks, run_untrusted_code=True).run(subject)
    assert not subject.asked


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "needs its tasks"),
        ({"file": "x", "k": []}, "is empty"),
        ({"file": "x", "k": [1, 10], "samples": 5}, "pass@10 .* 10 samples"),
        ({"file": "x", "temperature": 0.0, "samples": 2}, "the same program 2 times"),
        ({"file": "x", "limit": 0}, "at least 1"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(UserError, match=message):
        HumanEval(**arguments)


def test_a_file_with_a_missing_column_is_named(tokenizer, tmp_path, isolated):
    file = tmp_path / "bad.jsonl"
    file.write_text(json.dumps(TASKS[0]) + "\n" + json.dumps({**TASKS[1], "test": None}) + "\n")
    with pytest.raises(UserError, match=r"bad.jsonl:2: no field 'test'"):
        HumanEval(str(file), run_untrusted_code=True).run(Scripted(tokenizer, ["x"]))
    with pytest.raises(UserError, match="nowhere"):
        HumanEval(str(tmp_path / "nowhere.jsonl"), run_untrusted_code=True).run(Scripted(tokenizer, ["x"]))


@pytest.mark.parametrize(
    ("header", "text", "finished", "good"),
    [
        ("def f(x):\n", "    return x\n", True, True),
        ("def f(x):\n", "    return x +\n", True, False),
        ("def f(x):\n", "", True, False),
        ("def f(x):\n    return 1\n", "  ", True, False),
        ("def f(x):\n", "    if x:\n        ret", False, True),  # the last line is left out, the block stays open
        ("def f(x):\n", "    if x:\n", True, False),
        ("def f(x):\n", "    y = [1,\n        2,\n   ", False, True),
        ("def f(x):\n", "    y = 1]\n   ", False, False),
        ('def f(x):\n    """Words\n', "    more wo", False, False),  # nothing is left of it
        ('def f(x):\n    """Words\n', "    more\n    wo", False, True),
        ("def f(x):\n", "  y = 1\n    z = 2\n", True, False),
        ("def f(x):\n", "\0", True, False),
        ("def f(x):\n", "    return " + "(" * 5000 + ")" * 5000, True, False),
        ("def f(x):\n", "    return '\\d'\n", True, True),
    ],
)
def test_what_parses(header, text, finished, good):
    assert parses(header, text, finished) is good


def test_the_headers_can_be_gone_on_with():
    assert len(set(HEADERS)) == len(HEADERS) >= 30
    endings = [
        "    pass\n",
        "        pass\n",
        '    """\n    pass\n',
        "        pass\n    except OSError: pass\n",
        "x)\n",
        "x): pass\n",
        "}\n",
        "Equal(1, 1)\n",
        "'x'\n",
    ]
    for header in HEADERS:
        assert any(parses(header, ending, True) for ending in endings), header
        assert not parses(header, " ) nonsense (", True)


def test_the_share_that_parses(tokenizer):
    subject = Scripted(tokenizer, {"def f(x):\n": ["    return x\n", "    return )"], "def g(x):\n": ["    pass\n"]})
    (result,) = ParsesAsPython(["def f(x):\n", "def g(x):\n"], samples=2).run(subject)
    assert result.score("parses").value == pytest.approx(0.75)
    assert result.score("parses").per_item == {"00 def f(x):": 0.5, "01 def g(x):": 1.0}
    assert result.score("ended_itself").value == 1
    assert {example.title for example in result.examples} == {"parses", "does not parse"}


def test_a_real_model_is_asked_and_answers_alike_each_time(tokenizer):
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=48, vocab_size=tokenizer.vocab_size))
    model.init_weights(0)
    results = [
        ParsesAsPython(samples=2, max_new_tokens=12, limit=5).run(Subject("small", model.eval(), tokenizer))[0]
        for _ in range(2)
    ]
    assert results[0] == results[1]
    assert results[0].score("parses").count <= 5
    json.dumps(results[0].to_dict())
    with pytest.raises(UserError, match="context"):
        ParsesAsPython(["def f(x): " * 50], max_new_tokens=9).run(
            SimpleNamespace(tokenizer=tokenizer, block_size=48, seed=0)
        )


@pytest.mark.parametrize("arguments", [{"samples": 0}, {"headers": []}, {"temperature": 0.0}, {"limit": 0}])
def test_settings_have_bounds(arguments):
    with pytest.raises(UserError):
        ParsesAsPython(**arguments)
