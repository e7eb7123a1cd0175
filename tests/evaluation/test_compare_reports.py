"""Comparing two reports, item by item."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lit_gpt.errors import UserError
from lit_gpt.evaluation.compare import compare_reports
from lit_gpt.evaluation.intervals import mean_score, paired_bootstrap, share_score
from lit_gpt.evaluation.report import Report, plain, result_from
from lit_gpt.evaluation.result import Chart, Example, Interval, Result, Score
from lit_gpt.evaluation.safety.bias import _bbq_scores, bbq_scores


def report(name, parts, better="higher", settings=None, examples=(), more=()):
    score = Score("score", float(np.mean(list(parts.values()))), len(parts), None, "", better, parts)
    results = (Result("toy", "Toy", "", "", (score,), tuple(examples), settings=settings or {}), *more)
    return Report({"model": {"name": name, "checkpoint": f"{name}.ckpt"}}, results, Path("report.json"))


def parts(shift=0.0, noise=0.01, count=80):
    generator = np.random.default_rng(0)
    hard = generator.normal(size=count)
    return {
        f"{n}": float(hard[n] + shift + noise * np.random.default_rng(n + int(1000 * shift)).normal())
        for n in range(count)
    }


@pytest.mark.parametrize(("better", "verdict"), [("higher", "better"), ("lower", "worse"), ("neither", "different")])
def test_a_difference_much_smaller_than_the_spread_is_found(better, verdict):
    (line,) = compare_reports(report("a", parts(), better), report("b", parts(0.05), better)).differences
    assert line.difference == pytest.approx(0.05, abs=0.01)
    assert line.interval.low > 0
    assert line.verdict == verdict
    assert line.count == 80


def test_items_of_one_cluster_are_drawn_together():
    """Twenty documents of ten passages that are all alike: the interval is that of twenty numbers."""
    generator = np.random.default_rng(1)
    shifts = generator.normal(0.1, 1, size=20)
    first = {f"{d}@{n}": 0.0 for d in range(20) for n in range(10)}
    second = {f"{d}@{n}": float(shifts[d]) for d in range(20) for n in range(10)}
    clusters = {item: item.partition("@")[0] for item in first}
    pair = [report("a", first), report("b", second)]
    clustered = []
    for one in pair:
        score = replace(one.results[0].scores[0], clusters=clusters)
        clustered.append(Report(one.content, (replace(one.results[0], scores=(score,)),), one.file))
    (alone,), (together,) = (compare_reports(*two).differences for two in (pair, clustered))
    expected = paired_bootstrap([0.0] * 20, [float(shifts[int(d)]) for d in sorted(map(str, range(20)))])
    assert together.interval.low == pytest.approx(expected.low, abs=1e-6)
    assert together.interval.high == pytest.approx(expected.high, abs=1e-6)
    width, narrow = (line.interval.high - line.interval.low for line in (together, alone))
    assert width > 2.5 * narrow
    (known_to_one,) = compare_reports(pair[0], clustered[1]).differences
    assert known_to_one.interval == together.interval


def test_shares_and_means_keep_their_clusters():
    items, clusters = ["a@0", "a@9", "b@0"], ["a", "a", "b"]
    kept = dict(zip(items, clusters, strict=True))
    assert share_score("s", [True, False, True], items, clusters).clusters == kept
    assert mean_score("s", [1, 2, 3], items, "", clusters).clusters == kept
    assert share_score("s", [True, False], ["a", "b"], ["a", "b"]).clusters == {}
    for score in _bbq_scores("ambiguous", {str(n): bbq_sample(n) for n in range(4)}, 0):
        assert score.clusters == {"0": "t0", "1": "t0", "2": "t1", "3": "t1"}


def bbq_sample(number):
    doc = {"template": f"t{number // 2}", "right": 2, "biased": 0, "ambiguous": True}
    metrics = bbq_scores(doc, [(float(choice == number % 3), False) for choice in range(3)])
    return {"doc": doc, "metrics": list(metrics), **metrics}


def test_equal_models_differ_by_chance_alone():
    comparison = compare_reports(report("a", parts()), report("a", parts()))
    assert comparison.differences[0].verdict == ""
    assert comparison.items == ()
    assert comparison.names == ("a (first)", "a (second)")


def test_only_common_items_count():
    first, second = parts(), parts(0.05)
    del first["3"], second["4"], second["5"]
    (line,) = compare_reports(report("a", first), report("b", second)).differences
    assert (line.count, line.unmatched) == (77, 3)


def test_items_that_differ_come_with_what_was_said():
    first, second = parts(noise=0), parts(noise=0)
    second["7"] += 1
    second["9"] += 2
    shown = Example("wrong", {"answer": "no"}, "7")
    found = compare_reports(report("a", first, examples=[shown]), report("b", second)).items
    assert [item.item for item in found] == ["7", "9"]  # one that can be read comes first
    assert found[0].first_fields == {"answer": "no"}
    assert found[1].first_fields == {}


def test_notes_say_what_cannot_be_compared():
    alone = Result("alone", "", "", "", ())
    comparison = compare_reports(
        report("a", parts(), settings={"stride": 1}, more=[alone]), report("b", parts(), settings={"stride": 2})
    )
    assert any("only in" in note for note in comparison.notes)
    assert any("other settings: stride" in note for note in comparison.notes)


def test_nothing_in_common():
    with pytest.raises(UserError, match="no score in common"):
        compare_reports(
            report("a", parts()), Report({"model": {"name": "b", "checkpoint": None}}, (), Path("report.json"))
        )


def test_a_result_comes_back_from_json():
    result = Result(
        "toy",
        "Toy",
        "What.",
        "Who.",
        (
            Score(
                "s", 0.5, 2, Interval(0.1, 0.9, "by hand"), "share", "lower", {"a": 0.0, "b": 1.0}, {"a": "x", "b": "x"}
            ),
        ),
        (Example("t", {"prompt": "p"}, "a"),),
        (Chart("c", "x", "y", [1.0, 2.0], {"l": [0.5, None]}),),
        {"seed": 0},
        ("a note",),
    )
    assert result_from(plain(result)) == result
    infinite = Result("toy", "", "", "", (Score("perplexity", float("inf"), 1),))
    assert plain(infinite)["scores"][0]["value"] is None
