"""`plan`: the forecast of a YAML that `fit` accepts, and what cannot be planned, in one line."""

import json
import random
from pathlib import Path

import pytest
import yaml

from lit_gpt.cli import main
from lit_gpt.data import tokenizers
from lit_gpt.errors import UserError
from lit_gpt.planning.devices import find_device
from lit_gpt.planning.forecast import UNCALIBRATED
from lit_gpt.plans import PlannedRun

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


def real_config(tmp_path, trainer=None, **model):
    """A run whose steps can be done: on a small text of its own, which is prepared in a moment."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(2, 6))) for _ in range(40)]
    texts = tmp_path / "texts"
    texts.mkdir(exist_ok=True)
    for number in range(8):
        (texts / f"{number}.txt").write_text(" ".join(rng.choices(words, k=900)))
    where = {"default_root_dir": str(tmp_path / "runs")}
    path = config(tmp_path, where | (trainer or {}), **model)
    values = yaml.safe_load(Path(path).read_text())
    own = {"files": str(texts), "val_fraction": 0.3, "cache_dir": str(tmp_path / "cache")}
    values["data"] = {"class_path": "TextDataModule", "init_args": values["data"]["init_args"] | own}
    Path(path).write_text(yaml.safe_dump(values))
    return path


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


def test_a_tokenizer_that_cannot_be_reached_is_not_needed(tmp_path, monkeypatch, capsys):
    def unreachable(name):
        raise UserError(f"no network for {name}")

    monkeypatch.setattr(tokenizers, "_download", unreachable)
    path = Path(config(tmp_path, data={"tokenizer": "nobody/nothing", "files": str(tmp_path)}))
    values = yaml.safe_load(path.read_text())
    values["data"]["class_path"] = "TextDataModule"
    path.write_text(yaml.safe_dump(values))
    run = PlannedRun(path, find_device("h100"))
    assert run.module.config.vocab_size == run.data.vocab_size == 300
    del values["data"]["init_args"]["vocab_size"]  # then the model's size is not known
    path.write_text(yaml.safe_dump(values))
    assert plan(path) == 2
    assert "nobody/nothing" in capsys.readouterr().err


@pytest.mark.slow
def test_measured_steps_narrow_the_time(tmp_path, capsys):
    out = tmp_path / "plan.json"
    assert plan(real_config(tmp_path), "--measure", "--out", out) == 0
    step = json.loads(out.read_text())["step_seconds"]
    assert step["high"] / step["low"] <= UNCALIBRATED**2 * 1.001
    assert "20 steps" in step["basis"]


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
        (
            {"strategy": {"class_path": "ParallelStrategy", "init_args": {"pipeline": 2}}, "devices": 2},
            {"micro_batch_size": 8},
            [],
            ("pipeline 2", "n_layer 1"),
        ),
    ],
)
def test_what_cannot_be_planned_is_one_line(tmp_path, capsys, trainer, data, options, words):
    assert plan(config(tmp_path, trainer, data), *options) == 2
    err = capsys.readouterr().err.strip()
    assert len(err.splitlines()) == 1, err
    assert all(word in err for word in words), err


@pytest.mark.slow
@pytest.mark.parametrize(("schedule", "idle"), [("1f1b", 1 / 8), ("interleaved", 1 / 16), ("zero_bubble", 1 / 24)])
def test_a_pipeline_waits_for_its_first_and_last_micro_batch(tmp_path, schedule, idle):
    strategy = {"class_path": "ParallelStrategy", "init_args": {"pipeline": 2, "schedule": schedule}}
    trainer, data = {"strategy": strategy, "devices": 2}, {"micro_batch_size": 1}
    run = PlannedRun(Path(config(tmp_path, trainer, data, overrides=SMALL | {"n_layer": 4})), find_device("h100"))
    work, simulated = run.work(1, 8), run.simulate(1, 8).work
    assert work.idle_share == pytest.approx(idle)
    assert work.flops["linear"] == pytest.approx(2 * simulated.flops["linear"])  # four micro-batches are simulated
    assert run.forecast().step_seconds.value == pytest.approx(run.step_seconds())


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


SEALED = {"max_steps": 60, "log_every_n_steps": 10, "val_check_interval": 30, "gradient_clip_val": None}


@pytest.mark.slow
def test_a_sealed_run_keeps_to_its_plan_and_says_when_it_does_not(tmp_path, capsys):
    adamw = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.003}}
    path = real_config(tmp_path, SEALED, optimizer=adamw)
    out = tmp_path / "plan.json"
    assert plan(path, "--measure", "--out", out) == 0
    assert "50 steps" in json.loads(out.read_text())["curve"]["basis"]
    capsys.readouterr()
    assert main(["fit", "--config", path, "--plan", str(out)]) == 0
    assert "plan: step" not in "".join(line for line in capsys.readouterr().out.splitlines() if "train/loss" in line)
    run = tmp_path / "runs" / "small"
    receipt = json.loads((run / "receipt.json").read_text())
    assert next(s for s in receipt["scores"] if s["name"] == "loss")["held"]
    assert receipt["plan_sha256"] == json.loads((run / "lineage.json").read_text())["plan_sha256"]
    rate = ["--model.init_args.optimizer.init_args.lr", "0.09", "--trainer.name", "fast"]
    assert main(["fit", "--config", path, "--plan", str(out), *rate]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("plan: step")]
    assert any("train/loss" in line and int(line.split()[2].rstrip(":")) <= 50 for line in said), said
    assert main(["plan", "score", str(run), str(tmp_path / "runs" / "fast")]) == 0
    assert "loss" in capsys.readouterr().out


def test_a_run_cannot_be_held_to_what_is_no_plan(tmp_path, capsys):
    options = ["--trainer.default_root_dir", str(tmp_path / "runs"), "--plan", str(tmp_path / "nowhere.json")]
    assert main(["fit", "--config", config(tmp_path), *options]) == 2
    err = capsys.readouterr().err.strip().splitlines()[-1]
    assert "nowhere.json" in err
    assert "plan --config" in err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("device", "precision"), [("h100", "bf16-mixed"), ("cpu", "64-true")])
def test_precision_auto_is_that_of_the_planned_device(tmp_path, monkeypatch, device, precision):
    monkeypatch.setattr("lit_gpt.plans.fast_precision", lambda kind: "64-true")
    run = PlannedRun(Path(config(tmp_path, {"precision": "auto"})), find_device(device))
    assert run.precision == precision
