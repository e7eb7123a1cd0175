"""A package of somebody else's, pip-installed, trained through our command line by `class_path`."""

import subprocess
import sys
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

HERE = Path(__file__).parent


def test_its_module_and_corpus_train_and_its_metrics_are_in_tensorboard(environment, tmp_path):
    command = [sys.executable, "-m", "lit_gpt", "fit", "--config", str(HERE / "config.yaml")]
    done = subprocess.run(
        [*command, "--trainer.default_root_dir", str(tmp_path / "runs")],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    events = EventAccumulator(str(tmp_path / "runs" / "focal"))
    events.Reload()
    scalars = events.Tags()["scalars"]
    assert {"train/loss", "val/loss", "val/bits_per_byte", "val/gamma", "optim/grad_norm"} <= set(scalars)
    assert [event.step for event in events.Scalars("val/loss")] == [3, 6]
    assert events.Scalars("val/gamma")[-1].value == 1.5
    assert events.Scalars("train/loss")[-1].value < events.Scalars("train/loss")[0].value + 0.5
