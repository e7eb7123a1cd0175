"""Another package's objective reports its own sums: the same for every cut of a step, on two processes and resumed."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

HERE = Path(__file__).parent
REPORTED = ("train/loss", "train/entropy", "train/sure", "train/right_when_sure", "val/entropy", "val/right_when_sure")


@pytest.fixture(scope="module")
def fit(tmp_path_factory):
    """Return a function that trains by the command line, and returns metric → {step: value} of its run."""
    folder = tmp_path_factory.mktemp("objective")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE / "package"), *sys.path])}
    environment["LIT_GPT_CACHE"] = str(folder / "cache")

    def run(name, *words):
        command = [sys.executable, "-m", "lit_gpt", "fit", "--config", str(HERE / "confidence.yaml")]
        options = ["--trainer.default_root_dir", str(folder / "runs"), "--trainer.name", name, *words]
        done = subprocess.run([*command, *options], env=environment, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        events = EventAccumulator(str(folder / "runs" / name))
        events.Reload()
        return {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}

    return run


@pytest.fixture(scope="module")
def whole(fit):
    return fit("whole", "--data.init_args.micro_batch_size", "8")


def same(found, expected):
    for name in REPORTED:
        assert found[name] == pytest.approx(expected[name], rel=2e-4), name
    assert sorted(found["train/entropy"]) == [3, 6]


def test_what_it_reports(whole):
    assert whole["train/rows"] == {3: 8.0, 6: 8.0}
    assert 0 < whole["train/sure"][6] <= 1
    assert 0 <= whole["train/right_when_sure"][6] <= 1
    assert whole["val/entropy"].keys() == {6}
    assert "val/rows" not in whole


def test_eight_micro_batches_of_one(fit, whole):
    cut = fit("cut", "--data.init_args.micro_batch_size", "1")
    same(cut, whole)
    assert cut["train/rows"] == {3: 1.0, 6: 1.0}


@pytest.mark.slow
def test_two_processes(fit, whole):
    two = ("--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.init_args.micro_batch_size", "2")
    found = fit("two", *two)
    same(found, whole)
    assert found["train/rows"] == {3: 2.0, 6: 2.0}


@pytest.mark.slow
def test_resumed_between_two_entries_of_the_log(fit, whole):
    fit("resumed", "--trainer.max_steps", "4")
    resumed = fit("resumed", "--trainer.max_steps", "6", "--ckpt_path", "last")
    for name in REPORTED:
        assert resumed[name][6] == whole[name][6], name


def test_it_uses_no_private_name():
    tree = ast.parse((HERE / "package" / "acme_lm" / "confidence.py").read_text())
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not {name for name in names if name.startswith("_") and name != "__init__"}
