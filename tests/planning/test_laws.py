"""Laws are found again in what they made, and bad tables are one line."""

import math
from dataclasses import replace

import numpy as np
import pytest

from lit_gpt.cli import main
from lit_gpt.errors import UserError
from lit_gpt.planning.laws import Point, ScalingLaw, effective_tokens, fit_law, fit_power_law, load_law

TRUE = ScalingLaw({"E": 1.8, "A": 400.0, "alpha": 0.34, "B": 1200.0, "beta": 0.36})


def runs(noise=0.0, seed=0, corpus="web"):
    rng = np.random.default_rng(seed)
    return [
        Point(
            n, n * ratio, TRUE.loss(n, n * ratio) * math.exp(noise * rng.standard_normal()), corpus, f"{n:.0e}-{ratio}"
        )
        for n in (1e7, 3e7, 1e8, 3e8, 1e9)
        for ratio in (5, 20, 80, 320)
    ]


def test_the_constants_are_found_again():
    law = fit_law(runs(), num_resamples=0)
    for name, value in TRUE.constants.items():
        assert law.constants[name] == pytest.approx(value, rel=0.02)


def test_one_failed_run_pulls_little_and_is_named():
    points = runs(noise=0.002)
    points[7] = Point(points[7].params, points[7].tokens, points[7].loss * 1.3, "web", "failed")
    law = fit_law(points, num_resamples=0)
    assert law.outliers == ["failed"]
    assert law.loss(1e10, 2e11) == pytest.approx(TRUE.loss(1e10, 2e11), rel=0.03)


def test_intervals_hold_what_they_say_on_larger_models():
    held = []
    for seed in range(5):
        law = fit_law(runs(noise=0.005, seed=seed), num_resamples=20)
        forecast = law.forecast(5e9, 1e11)
        held.append(forecast.low <= TRUE.loss(5e9, 1e11) <= forecast.high)
        assert forecast.extrapolation == pytest.approx(5e20 * 6 / (6 * 1e9 * 320e9))
        assert forecast.high / forecast.low < 1.05
    assert sum(held) >= 4


def test_a_form_that_the_runs_do_not_have_widens_the_interval():
    """Runs whose loss bends away from the law: the fits to the smaller ones miss the larger ones by more than noise."""
    straight = runs(noise=0.002)
    bent = [replace(p, loss=p.loss * math.exp(0.01 * math.log10(p.compute / 1e17) ** 2)) for p in straight]
    errors = [fit_law(points, num_resamples=0).relative_error for points in (straight, bent)]
    assert errors[0] < 0.005 < errors[1]


def test_the_optimum_is_the_least_loss_of_its_compute():
    n, d = TRUE.optimum(1e20)
    assert 6 * n * d == pytest.approx(1e20)
    assert all(TRUE.loss(n, d) < TRUE.loss(n * f, d / f) for f in (0.9, 1.1))


def test_repeated_tokens_are_worth_less_and_less():
    assert effective_tokens(100, 100) == 100
    # by hand: 3 repetitions of 100, R* = 15.39
    assert effective_tokens(400, 100) == pytest.approx(100 + 100 * 15.39 * (1 - math.exp(-3 / 15.39)))
    assert effective_tokens(1e9, 100) == pytest.approx(100 * 16.39)


def test_a_power_law_is_found_again():
    rows = [{"params": n, "tokens": d, "lr": 2 * n**-0.25 * d**0.1} for n in (1e6, 1e7, 1e8) for d in (1e9, 1e10)]
    law = fit_power_law(rows, "lr")
    assert (law["constant"], law["params"], law["tokens"]) == pytest.approx((2, -0.25, 0.1))


@pytest.mark.parametrize(
    ("points", "words"),
    [
        (runs()[:3], ("3 runs", "at least 6")),
        (runs() + runs(corpus="code"), ("code", "web", "--corpus")),
        ([Point(1e7, d * 1e8, 3.0, "web") for d in range(1, 9)], ("parameters", "at least 3")),
        ([*runs(), Point(1e7, 1e9, math.nan, "web", "diverged")], ("diverged",)),
    ],
)
def test_runs_that_no_law_can_be_fitted_to(points, words):
    with pytest.raises(UserError) as error:
        fit_law(points)
    assert all(word in str(error.value) for word in words)


def table(tmp_path, points, header="params,tokens,loss,corpus,model"):
    path = tmp_path / "runs.csv"
    lines = [f"{p.params},{p.tokens},{p.loss},{p.corpus},{p.name}" for p in points]
    path.write_text("\n".join([header, *lines]))
    return str(path)


def test_the_command_fits_scores_and_writes_a_law(tmp_path, capsys):
    out = tmp_path / "law.json"
    words = ["plan", "fit-law", "--table", table(tmp_path, runs(noise=0.003)), "--out", str(out)]
    words += ["--max_compute", "1e20", "--min_compute_to_score", "3e20", "--num_resamples", "20"]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "alpha" in text
    assert "in the 90 % interval" in text
    law = load_law(out)
    assert law.loss(1e9, 1e11) == pytest.approx(TRUE.loss(1e9, 1e11), rel=0.05)
    assert law.max_compute < 1e20


def test_runs_that_do_not_show_an_exponent_say_so(tmp_path, capsys):
    starved = [Point(n, d, 13 * d**-0.08, "web", f"{n}-{d}") for n in (1e6, 2e6, 4e6) for d in (1e4, 3e4, 1e5)]
    assert main(["plan", "fit-law", "--table", table(tmp_path, starved), "--num_resamples", "0"]) == 0
    text = capsys.readouterr().out
    assert "A and alpha are not determined" in text
    assert "B and beta" not in text


@pytest.mark.parametrize(
    ("header", "options", "words"),
    [
        ("n_params,tokens,loss,corpus,model", [], ("params", "n_params", "--columns.params")),
        ("params,tokens,loss,corpus,model", ["--corpus", "weeb"], ("weeb", "web")),
        ("params,tokens,loss,corpus,model", ["--min_compute_to_score", "1e30"], ("min_compute_to_score",)),
    ],
)
def test_a_bad_table_is_one_line(tmp_path, capsys, header, options, words):
    assert main(["plan", "fit-law", "--table", table(tmp_path, runs(), header), "--num_resamples", "0", *options]) == 2
    err = capsys.readouterr().err.strip()
    assert len(err.splitlines()) == 1
    assert all(word in err for word in words)


def test_a_file_that_is_no_law(tmp_path):
    path = tmp_path / "law.json"
    path.write_text('{"constants": {"E": 1}}')
    with pytest.raises(UserError, match="fit-law"):
        load_law(path)
