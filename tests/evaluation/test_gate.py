"""The gate: what passes, what misses, and what is no gate."""

import math

import pytest

from lit_gpt.errors import UserError
from lit_gpt.evaluation.plan import check_gate, read_gate
from lit_gpt.evaluation.result import Interval, Result, Score


def results(value=0.5, interval=None):
    return [Result("toy", "Toy", "", "", (Score("share", value, 10, interval),))]


@pytest.mark.parametrize(
    ("line", "passed"),
    [
        ({"min": 0.5}, True),
        ({"max": 0.5}, True),
        ({"min": 0.51}, False),
        ({"max": 0.49}, False),
        ({"min": 0.3, "max": 0.6}, True),
        ({"min": 0.6, "max": 0.9}, False),
        ({"min": 0.4, "by": "interval"}, True),
        ({"min": 0.45, "by": "interval"}, False),
        ({"max": 0.6, "by": "interval"}, True),
        ({"max": 0.55, "by": "interval"}, False),
    ],
)
def test_thresholds(line, passed):
    record = check_gate(read_gate({"toy.share": line}), results(interval=Interval(0.4, 0.6, "by hand")))
    assert record.passed is passed
    assert (not record.missed) is passed
    for verdict in record.verdicts:
        assert verdict.reason


def test_what_is_not_there_is_missed_and_said():
    record = check_gate(read_gate({"toy.shar": {"min": 0}, "toy.share": {"min": 0, "by": "interval"}}), results())
    assert not record.passed
    assert "did you mean toy.share" in record.verdicts[0].reason
    assert "no confidence interval" in record.verdicts[1].reason


def test_not_a_number_reaches_nothing():
    assert not check_gate(read_gate({"toy.share": {"min": 0}}), results(math.nan)).passed
    assert not check_gate(read_gate({"toy.share": {"max": 9}}), results(math.nan)).passed


def test_reasons_say_value_and_bound():
    (verdict,) = check_gate(read_gate({"toy.share": {"max": 0.25}}), results()).verdicts
    assert verdict.reason == "0.5, above the maximum of 0.25"
    (verdict,) = check_gate(read_gate({"toy.share": {"min": 0.75}}), results()).verdicts
    assert verdict.reason == "0.5, below the minimum of 0.75"


@pytest.mark.parametrize(
    ("gate", "said"),
    [
        ([1], "it is a mapping"),
        ({"share": {"min": 1}}, "a key is <result>.<score>"),
        ({"toy.share": 1}, "needs min or max"),
        ({"toy.share": {"by": "value"}}, "neither min nor max"),
        ({"toy.share": {"mni": 1}}, "did you mean min"),
        ({"toy.share": {"min": "much"}}, "min is 'much'"),
        ({"toy.share": {"min": True}}, "min is True"),
        ({"toy.share": {"min": math.inf}}, "min is inf"),
        ({"toy.share": {"min": 1, "by": "luck"}}, "by .* is 'luck'"),
    ],
)
def test_what_is_no_gate(gate, said):
    with pytest.raises(UserError, match=said):
        read_gate(gate)


def test_no_gate():
    assert read_gate(None) == ()
    assert check_gate((), results()) is None
