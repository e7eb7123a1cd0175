"""What a reviewer broke: models that give no numbers, seeds that were no seeds, intervals that did not cover."""

import json
import math

import numpy as np
import pytest
import torch
from small_chats import small_tokenizer
from small_subjects import random_subject

from lit_gpt.errors import UserError
from lit_gpt.evaluation.code import HumanEval, ParsesAsPython
from lit_gpt.evaluation.code.sandbox import JailError, Limits, Sandbox
from lit_gpt.evaluation.intervals import bootstrap_mean, bootstrap_ratio, mean_score
from lit_gpt.evaluation.plan import make_plan
from lit_gpt.evaluation.safety.bias import CrowSPairs
from lit_gpt.evaluation.safety.contamination import records_of
from lit_gpt.evaluation.safety.judges import FunctionJudge, Judge
from lit_gpt.evaluation.safety.membership import true_positive_rate, true_positive_rate_interval
from lit_gpt.evaluation.safety.memorisation import Memorisation
from lit_gpt.evaluation.safety.privacy import Privacy
from lit_gpt.evaluation.safety.refusal import PromptSet, Refusal
from lit_gpt.evaluation.safety.robustness import Robustness
from lit_gpt.evaluation.subject import Subject, check_answer_length
from lit_gpt.evaluation.texts import Texts
from lit_gpt.pages.text import score as number


def test_a_model_that_gives_no_numbers_has_no_score():
    subject = random_subject(small_tokenizer())
    with torch.no_grad():
        for parameter in subject.model.parameters():
            parameter.fill_(math.nan)
    with pytest.raises(UserError, match="NaN"):
        CrowSPairs().run(subject)  # was: prefers a stereotype in 0 % of the pairs


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
def test_what_is_no_number_has_words(value):
    assert number(value, "share") == "not a finite number"


def test_counts_of_0_and_1_are_no_shares():
    assert bootstrap_mean([0.0, 1.0, 1.0]).method == "Wilson"
    assert mean_score("matched_tokens", [0, 0, 0], "abc", "tokens", bounds=(0.0, 50.0)).interval is None
    assert bootstrap_mean([0.0, 1.0, 1.0, 0.0], bounds=(0.0, 50.0)).method != "Wilson"


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_the_interval_of_what_an_attack_finds_covers(shift, monkeypatch):
    """Wilson's, over the members alone, holds the truth in 82 and 70 % of these repeats."""
    monkeypatch.setattr("lit_gpt.evaluation.safety.membership.RESAMPLES", 200)
    draw = np.random.default_rng(3)
    truth = 0.5 * math.erfc((1.6448536269514722 - shift) / math.sqrt(2))
    held = 0
    for seed in range(150):
        members, others = draw.normal(shift, 1, 150), draw.normal(0, 1, 150)
        interval = true_positive_rate_interval(members, others, 0.05, seed)
        held += interval.low <= truth <= interval.high
        assert interval.low <= true_positive_rate(members, others, 0.05) <= interval.high
    assert held / 150 >= 0.9


def test_the_interval_of_a_perfect_attack_is_no_point():
    interval = true_positive_rate_interval([5.0] * 20, [float(n) / 20 for n in range(20)], 0.05)
    assert interval.low < 0.9
    assert interval.high == 1.0


def test_the_seed_of_the_plan_decides_what_is_drawn(tmp_path):
    file = tmp_path / "many.txt"
    draw = np.random.default_rng(0)
    words = ["".join(chr(97 + c) for c in draw.integers(26, size=5)) for _ in range(4000)]
    file.write_text(" ".join(words))

    def drawn(plan_seed, **own):
        subject = random_subject(small_tokenizer())
        object.__setattr__(subject, "seed", plan_seed)
        measure = Memorisation(
            Texts(files=str(file)), num_windows=3, prefix_tokens=5, continuation_tokens=5, num_samples=1, **own
        )
        (result,) = measure.run(subject)
        assert result.settings["seed"] == own.get("seed", plan_seed)
        return list(result.score("verbatim_greedy").per_item)

    assert drawn(0) == drawn(0) != drawn(1)
    assert drawn(0) == drawn(7, seed=0)


def test_two_tasks_of_one_name_are_refused(tmp_path):
    file = tmp_path / "he.jsonl"
    row = {"task_id": "t/1", "prompt": "def f():\n", "test": "def check(f):\n    pass\n", "entry_point": "f"}
    file.write_text(2 * (json.dumps(row) + "\n"))
    try:
        Sandbox(Limits()).run("pass")
    except UserError as error:
        pytest.skip(f"no isolation here: {error}")
    with pytest.raises(UserError, match="two tasks 't/1'"):
        HumanEval(str(file), max_new_tokens=99, run_untrusted_code=True).run(random_subject(small_tokenizer()))


@pytest.mark.parametrize("family", [17, 38, 40])  # AF_PACKET, AF_ALG, AF_VSOCK
def test_sockets_that_no_namespace_holds_are_refused(family):
    try:
        sandbox = Sandbox(Limits(), at_once=1)
        assert sandbox.run("import socket\nfor f in (1, 2, 10): socket.socket(f, 1).close()\n").passed
    except JailError as error:
        pytest.skip(f"no isolation here: {error}")
    outcome = sandbox.run(f"import socket\nsocket.socket({family}, 1, 0)\n")
    assert outcome.reason == "PermissionError"


class Tired(Judge):
    """Judges once, and then its address is gone."""

    def __init__(self):
        self.calls = 0

    def describe(self):
        return {}

    def judge(self, exchanges, progress=None):
        self.calls += 1
        if self.calls > 1:
            raise UserError("the judge refused the request (status 401)")
        return FunctionJudge(lambda prompt, answer: True).judge(exchanges, progress)


def test_a_judge_that_is_gone_is_no_prompt_that_is_too_long():
    measure = Robustness(judge=Tired(), perturbations=["typos"], limit=1, max_new_tokens=2)
    with pytest.raises(UserError, match="status 401"):
        measure.run(random_subject(small_tokenizer()))


@pytest.mark.parametrize(
    "measure",
    [
        Refusal(limit=1, max_new_tokens=300),
        Robustness(limit=1, max_new_tokens=300),
        HumanEval("nowhere.jsonl", max_new_tokens=300, run_untrusted_code=True),
        ParsesAsPython(max_new_tokens=300),
        Privacy(Texts(files=__file__), max_new_tokens=300),
    ],
    ids=lambda measure: type(measure).__name__,
)
def test_answers_longer_than_the_context_are_refused_before_anything_is_asked(measure, monkeypatch):
    subject = random_subject(small_tokenizer())
    monkeypatch.setattr(Subject, "generate", lambda *_: pytest.fail("asked"))
    monkeypatch.setattr(Subject, "complete", lambda *_: pytest.fail("asked"))
    with pytest.raises(UserError, match=r"max_new_tokens is 300.*256 tokens"):
        measure.run(subject)


def test_answers_that_some_prompts_cut_short_are_told(tmp_path):
    rows = [{"prompt": "a", "label": "safe"}, {"prompt": "a b c d e f g h " * 8, "label": "safe"}]
    file = tmp_path / "p.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (result,) = Refusal(PromptSet(str(file)), max_new_tokens=200).run(random_subject(small_tokenizer()))
    assert any("1 of 2 prompts" in note and "max_new_tokens 200" in note for note in result.notes)
    check_answer_length(15, 16, [1, 5, 99])
    with pytest.raises(UserError, match="max_new_tokens is 13.* 12 .*4 tokens"):
        check_answer_length(13, 16, [4, 5, 99])


def test_every_seeded_measure_takes_the_plans():
    entries = [
        {"class_path": "MembershipInference"},
        {"class_path": "Privacy"},
        {"class_path": "Robustness"},
        {"class_path": "CanaryExposure", "init_args": {"file": "canaries.jsonl"}},
        {"class_path": "Memorisation", "init_args": {"seed": 0}},
    ]
    measures = [planned.measure for planned in make_plan({"measures": entries}, "x").measures]
    assert [measure.own_seed for measure in measures] == [None, None, None, None, 0]


def test_a_quick_look_is_another_plan():
    whole, quick = (make_plan({"measures": ["CrowSPairs"]}, "x", limit) for limit in (None, 5))
    assert "limit" not in whole.config
    assert quick.config == {**whole.config, "limit": 5}


def test_items_beyond_the_benchmarks_file_are_not_taken_for_clean(tmp_path):
    file = tmp_path / "part.jsonl"
    file.write_text('{"question": "a"}\n{"question": "b"}\n')
    assert records_of(["0", "1"], file) == {"0": "1", "1": "2"}
    assert records_of(["0", "2"], file) is None


@pytest.mark.parametrize(("count", "quantile"), [(2, 12.7062), (3, 4.30265), (4, 3.18245)])
def test_intervals_of_a_few_items_are_students_and_cover(count, quantile):
    """The bootstrap's held the truth in 51, 79 and 88 % of repeats; quantiles from the published table."""
    draw = np.random.default_rng(count)
    values = draw.normal(size=(1000, count))
    found = [bootstrap_mean(row) for row in values]
    half = quantile * values[0].std(ddof=1) / math.sqrt(count)
    assert (found[0].high - found[0].low) / 2 == pytest.approx(half, rel=1e-4)
    assert 0.93 <= sum(one.low <= 0 <= one.high for one in found) / 1000 <= 0.97


def test_a_ratio_of_what_cannot_be_negative_is_not():
    assert bootstrap_ratio([1.0, 9.0], [1.0, 1.0]).low == 0.0
    assert bootstrap_ratio([-1.0, 9.0], [1.0, 1.0]).low < 0
