"""A package of somebody else's, pip-installed, trained through our command line by `class_path`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Install the package into a folder of its own."""
    target = tmp_path_factory.mktemp("site")
    source = tmp_path_factory.mktemp("source") / "package"
    subprocess.run(["cp", "-r", str(HERE / "package"), str(source)], check=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(target), str(source)], check=True)
    return target


def test_its_module_and_corpus_train_and_its_metrics_are_in_tensorboard(site, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(site), "LIT_GPT_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "lit_gpt", "fit", "--config", str(HERE / "config.yaml")]
    done = subprocess.run(
        [*command, "--trainer.default_root_dir", str(tmp_path / "runs")],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    events = EventAccumulator(str(tmp_path / "runs" / "focal" / "tensorboard"))
    events.Reload()
    scalars = events.Tags()["scalars"]
    assert {"train/loss", "val/loss", "val/bits_per_byte", "val/gamma", "optim/grad_norm"} <= set(scalars)
    assert [event.step for event in events.Scalars("val/loss")] == [3, 6]
    assert events.Scalars("val/gamma")[-1].value == 1.5
    assert events.Scalars("train/loss")[-1].value < events.Scalars("train/loss")[0].value + 0.5
