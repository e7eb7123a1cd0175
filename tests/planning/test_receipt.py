"""A receipt by hand: scores, bands that are left, and the calibration over many runs."""

import json
import math

import pytest

from lit_gpt.cli import main
from lit_gpt.errors import UserError
from lit_gpt.planning.forecast import loss_curve
from lit_gpt.planning.laws import LossForecast
from lit_gpt.planning.receipt import (
    Bands,
    calibration_table,
    check_plan,
    read_plan,
    read_receipts,
    score,
    write_receipt,
)


def around(value, factor=1.5):
    return {"low": value / factor, "value": value, "high": value * factor, "basis": "by hand"}


def plan(**changes):
    values = {
        "run": {
            "name": "small",
            "steps": 100,
            "tokens_per_step": 2048,
            "precision": "32-true",
            "model_params": 1000,
            "layout": {"replicate": 2, "data": 1, "expert": 2},
        },
        "device": {"kind": "cpu", "name": "cpu", "price_per_hour": 2.0},
        "memory": around(1e8, 2),
        "step_seconds": around(1.0),
        "tokens_per_second": around(2000.0),
        "hours": around(1.0),
        "money": around(4.0),
        "loss": around(3.0, 1.1) | {"extrapolation": 0.5},
        "curve": {"points": [[1, 8.0, 9.0], [10, 5.0, 6.0], [100, 3.0, 4.0]], "basis": "by hand"},
    }
    return values | changes


def test_forecasts_are_scored():
    measured = {"memory": 1.5e8, "tokens_per_second": 1000.0, "hours": 1.2, "money": 4.8, "loss": 3.5}
    scores = {s.name: s for s in score(plan(), measured)}
    assert {name: s.held for name, s in scores.items()} == {
        "memory": True,
        "tokens_per_second": False,
        "hours": True,
        "money": True,
        "loss": False,
    }
    assert scores["hours"].error == pytest.approx(0.2)
    assert scores["memory"].low < 0.5e8  # tensors alone, less what noise may hide


def test_what_was_not_measured_or_not_forecast_is_not_scored():
    free = plan(money=around(0.0), hours=None, loss=around(3.0) | {"extrapolation": 1e-9})
    scores = {s.name: s for s in score(free, {"memory": 1e8})}
    assert set(scores) == {"memory", "tokens_per_second"}
    assert scores["tokens_per_second"].held is None


def test_a_band_is_interpolated_over_the_logarithm_of_the_step():
    bands = Bands(plan())
    assert bands.at("loss", 10) == (5.0, 6.0)
    middle = bands.at("loss", 32)  # 10^1.5
    assert middle == pytest.approx((4.0, 5.0), abs=0.02)
    assert bands.at("loss", 1000) == (3.0, 4.0)
    assert bands.at("memory", 7) == (0.0, 2e8)
    assert Bands(plan(curve={"points": [], "basis": ""})).at("loss", 3) is None


def test_leaving_a_band_is_said_once_until_it_is_left_again():
    bands = Bands(plan())
    said = [bands.leaves("loss", step, loss) for step, loss in ((10, 7.0), (11, 7.0), (12, 5.5), (13, math.nan))]
    assert [sentence is not None for sentence in said] == [True, False, False, True]
    assert "step 10" in said[0]
    assert "above" in said[0]
    speeds = [
        bands.leaves("tokens_per_second", step, speed) for step, speed in ((1, 9.0), (2, 2e3), (3, 9.0), (4, 9.0))
    ]
    assert [sentence is not None for sentence in speeds] == [False, False, False, True]  # one slow entry is no news
    assert "below" in speeds[-1]
    sides = [bands.leaves("loss", step, loss) for step, loss in ((20, 0.1), (21, 0.1), (22, 9.0), (23, 9.0))]
    assert [sentence and sentence.split(" is ")[1].split()[0] for sentence in sides] == ["below", None, "above", None]


@pytest.mark.parametrize(
    ("name", "value"),
    [("steps", 99), ("tokens_per_step", 1024), ("model_params", 2000), ("device", "cuda"), ("world_size", 1)],
)
def test_a_plan_of_another_run_is_refused(name, value):
    check_plan(plan(), {"steps": 100, "world_size": 2, "device": "cpu", "model_params": None})
    with pytest.raises(UserError, match=rf"{name} .*{value}.*--plan"):
        check_plan(plan(), {name: value})


@pytest.mark.parametrize("content", [None, "{", '{"run": {}}', "[]"])
def test_what_is_no_plan_is_refused(tmp_path, content):
    file = tmp_path / "plan.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=r"plan\.json.*plan --config"):
        read_plan(file)


def write(folder, hours, departures=()):
    folder.mkdir()
    measured = {"memory": 1.5e8, "tokens_per_second": 1900.0, "hours": hours, "loss": 3.1}
    history = [[25, 5.0, 1900.0], [50, math.nan, 1950.0]]
    write_receipt(folder, plan(), score(plan(), measured), history, departures, {"loss measured": "the last val/loss"})
    return str(folder)


def test_many_receipts_are_one_calibration(tmp_path, capsys):
    runs = [write(tmp_path / f"run{hours}", hours, ["step 3: <loss>"] * (hours > 2)) for hours in (1.0, 1.2, 3.0)]
    rows = {row["name"]: row for row in calibration_table(read_receipts(runs))}
    assert rows["hours"]["num_runs"] == 3
    assert rows["hours"]["median_error"] == pytest.approx(0.2)
    assert rows["hours"]["largest_error"] == pytest.approx(2.0)
    assert rows["hours"]["bias"] == pytest.approx(3.6 ** (1 / 3) - 1)
    assert rows["hours"]["held"] == pytest.approx(2 / 3)
    assert "money" not in rows
    html = tmp_path / "calibration.html"
    assert main(["plan", "score", *runs, "--html", str(html)]) == 0
    text = capsys.readouterr().out
    assert "1 of 3 runs left a band" in text
    assert html.read_text().count(">missed<") == 1


def test_the_page_has_scores_and_pictures(tmp_path):
    page = (tmp_path / write(tmp_path / "run", 3.0, ["step 3: <loss>"]) / "receipt.html").read_text()
    assert page.count(">missed<") == 1
    assert page.count("<polygon") == 2  # the bands of loss and speed
    assert "&lt;loss&gt;" in page
    receipt = json.loads((tmp_path / "run" / "receipt.json").read_text())
    assert receipt["run"] == "run"  # the run's, not its plan's
    assert receipt["history"][1] == [50, None, 1950.0]
    assert {s["name"]: s["held"] for s in receipt["scores"]}["hours"] is False


def test_a_run_without_a_receipt_is_named(tmp_path, capsys):
    assert main(["plan", "score", str(tmp_path)]) == 2
    err = capsys.readouterr().err.strip()
    assert len(err.splitlines()) == 1
    assert "receipt.json" in err
    assert "fit --plan" in err


def test_a_curve_rests_on_the_best_of_what_is_known():
    def law(tokens):
        value = 2.0 + 20 * tokens**-0.3
        return LossForecast(value, 0.95 * value, 1.05 * value, 1.0)

    plain = loss_curve(1000, 2048, 4096, lambda done: 1.0)
    assert plain.points[-1][0] == 1000
    assert all(low == 0 and high < 1.05 * math.log(4096) for _, low, high in plain.points)
    ruled = {step: (low, high) for step, low, high in loss_curve(1000, 2048, 4096, lambda done: 1.0, (), law).points}
    assert ruled[1000] == pytest.approx((0.95 * law(2048e3).value, 1.05 * law(2048e3).value))
    piloted = loss_curve(1000, 2048, 4096, lambda done: 1.0, [(25, 6.0), (50, 5.0)], law)
    assert piloted.points[:2] == [
        (25, pytest.approx(5.82), pytest.approx(6.18)),
        (50, pytest.approx(4.85), pytest.approx(5.15)),
    ]
    assert all(high <= 5.3 for step, _, high in piloted.points if step > 50)
    slow = loss_curve(1000, 2048, 4096, lambda done: min(1.0, (done + 1) / 500))  # warm-up: nothing is learned yet
    assert {s: h for s, _, h in slow.points}[32] > {s: h for s, _, h in plain.points}[32]
