"""`plan`: the forecast of a YAML that `fit` accepts, and what cannot be planned, in one line."""

import json

import pytest
import yaml

from lit_gpt.cli import main

SMALL = {"n_layer": 1, "n_head": 2, "n_embd": 16, "intermediate_size": 32}


def config(tmp_path, trainer=None, data=None, **model):
    values = {
        "trainer": {"name": "small", "max_steps": 20} | (trainer or {}),
        "model": {"class_path": "PretrainModule", "init_args": {"preset": "tiny", "overrides": SMALL} | model},
        "data": {
            "class_path": "StdlibDataModule",
            "init_args": {"vocab_size": 300, "block_size": 16, "global_batch_size": 8} | (data or {}),
        },
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


def plan(*words):
    return main(["plan", "--config", *map(str, words)])


def test_a_run_is_forecast_and_written(tmp_path, capsys):
    out = tmp_path / "plan.json"
    options = ("--device", "h100", "--price_per_hour", "3", "--out", out)
    assert plan(config(tmp_path, data={"micro_batch_size": 2}), *options) == 0
    text = capsys.readouterr().out
    forecast = json.loads(out.read_text())
    assert "fits" in text
    assert forecast["fits"] is True
    assert forecast["run"]["micro_batches"] == 4
    assert forecast["run"]["tokens_per_step"] == 8 * 16
    hours, money = forecast["hours"], forecast["money"]
    assert money["value"] == pytest.approx(3 * hours["value"])
    assert hours["low"] < hours["value"] < hours["high"]
    assert forecast["memory"]["value"] == sum(forecast["memory_by_kind"].values())
    assert forecast["largest_micro_batch"]["with"] >= forecast["largest_micro_batch"]["without"]
    assert len(forecast["changes"]) == 3
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_devices_share_a_step_and_cost_each(tmp_path, capsys):
    out = tmp_path / "plan.json"
    assert plan(config(tmp_path), "--device", "h100", "--devices", "4", "--out", out) == 0
    forecast = json.loads(out.read_text())
    assert forecast["run"]["micro_batch_size"] == 2
    assert [c["name"] for c in forecast["collectives"] if c["num_bytes"] > 1000] == ["all_reduce"]
    assert forecast["money"]["basis"].startswith("4 x")


@pytest.mark.slow
def test_measured_steps_narrow_the_time(tmp_path, capsys):
    out = tmp_path / "plan.json"
    assert plan(config(tmp_path), "--measure", "true", "--out", out) == 0
    step = json.loads(out.read_text())["step_seconds"]
    assert step["high"] / step["low"] <= 1.5**2 * 1.001
    assert "timed here" in step["basis"]


@pytest.mark.parametrize(
    ("trainer", "data", "options", "words"),
    [
        ({}, {}, ["--device", "h10"], ("h10", "h100", "peak_flops")),
        ({}, {}, ["--devices", "3"], ("global_batch_size", "3 devices")),
        ({}, {}, ["--devices", "0"], ("devices", "at least 1")),
        ({"precision": "fp4"}, {}, [], ("fp4", "bf16-mixed")),
        ({}, {}, ["--device", "h100", "--measure", "true"], ("--measure", "h100")),
        ({}, {}, ["--law", "nowhere.json"], ("nowhere.json", "fit-law")),
        (
            {"strategy": {"class_path": "ParallelStrategy", "init_args": {"tensor": 2}}},
            {},
            ["--devices", "1"],
            ("tensor 2", "trainer.devices"),
        ),
    ],
)
def test_what_cannot_be_planned_is_one_line(tmp_path, capsys, trainer, data, options, words):
    assert plan(config(tmp_path, trainer, data), *options) == 2
    err = capsys.readouterr().err.strip()
    assert len(err.splitlines()) == 1, err
    assert all(word in err for word in words), err


@pytest.mark.slow
def test_a_device_without_a_price_says_so(tmp_path, capsys):
    assert plan(config(tmp_path), "--device", "l4") == 0
    assert "--price_per_hour" in capsys.readouterr().out


@pytest.mark.slow
def test_a_device_of_ones_own(tmp_path, capsys):
    device = {"name": "npu", "kind": "cuda", "memory": 1e6, "peak_flops": 1e12, "bandwidth": 1e11, "link": 1e10}
    path = tmp_path / "device.yaml"
    path.write_text(yaml.safe_dump({"device": device | {"network": 1e9, "watts": 100}}))
    assert plan(config(tmp_path), "--device", path) == 0
    assert "does not fit" in capsys.readouterr().out
    path.write_text(yaml.safe_dump({"device": device}))
    assert plan(config(tmp_path), "--device", path) == 2
    assert "network, watts" in capsys.readouterr().err
