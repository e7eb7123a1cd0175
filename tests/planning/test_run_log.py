"""Run folders as points of a law and as a calibration of time: what their logs say, and what they lack."""

import json
import math

import pytest
import yaml
from torch.utils.tensorboard import SummaryWriter

from lit_gpt.cli import main
from lit_gpt.errors import UserError
from lit_gpt.planning.devices import find_device
from lit_gpt.planning.forecast import calibration_from
from lit_gpt.planning.laws import ScalingLaw
from lit_gpt.planning.run_log import read_log, run_row
from lit_gpt.plans import calibrate, law_rows
from lit_gpt.trainer import Trainer

TRUE = ScalingLaw({"E": 1.0, "A": 30.0, "alpha": 0.3, "B": 200.0, "beta": 0.35})


def make_run(tmp_path, name, width=16, steps=100, corpus="a", tokens=128, log=True, step_seconds=0.5):
    """A folder as `fit` leaves it, with a loss that follows a law."""
    run = tmp_path / name
    run.mkdir()
    overrides = {"n_layer": 1, "n_head": 2, "n_embd": width, "intermediate_size": 32}
    values = {
        "trainer": {"name": name, "max_steps": steps},
        "model": {"class_path": "PretrainModule", "init_args": {"preset": "tiny", "overrides": overrides}},
        "data": {
            "class_path": "StdlibDataModule",
            "init_args": {"vocab_size": 300, "block_size": 16, "global_batch_size": 8},
        },
    }
    (run / "config.yaml").write_text(yaml.safe_dump(values))
    lineage = {"corpus": {"documents": corpus, "seed": len(name), "global_batch_size": steps}}
    (run / "lineage.json").write_text(json.dumps(lineage))
    if log:
        logger = Trainer(name=name, default_root_dir=tmp_path, accelerator="cpu").logger
        params = law_params(width)
        for step in range(10, steps + 1, 10):
            logger.log_metrics({"throughput/tokens_seen": step * tokens, "throughput/step_seconds": step_seconds}, step)
        logger.log_metrics({"val/loss": 9.0}, steps // 2)
        logger.log_metrics({"val/loss": TRUE.loss(params, steps * tokens)}, steps)
        logger.finalize("success")
    return str(run)


def law_params(width):
    from lit_gpt.models import GPTConfig

    shape = {"n_layer": 1, "n_head": 2, "n_embd": width, "intermediate_size": 32}
    return GPTConfig.from_preset("tiny", vocab_size=300, block_size=16, **shape).num_parameters()


def test_a_law_is_fitted_to_run_folders(tmp_path, capsys):
    sizes = [(16, 100), (16, 300), (32, 300), (32, 900), (64, 100), (64, 900)]
    runs = [make_run(tmp_path, f"w{w}-{s}", w, s) for w, s in sizes]
    out = tmp_path / "law.json"
    assert main(["plan", "fit-law", "--runs", *runs, "--out", str(out), "--num_resamples", "5"]) == 0
    assert "6 runs" in capsys.readouterr().out
    law = ScalingLaw(**json.loads(out.read_text()))
    assert law.loss(law_params(64), 900 * 128) == pytest.approx(TRUE.loss(law_params(64), 900 * 128), rel=0.01)


def test_runs_of_different_corpora_are_refused(tmp_path, capsys):
    runs = [make_run(tmp_path, corpus, corpus=corpus) for corpus in "ab"]
    assert main(["plan", "fit-law", "--runs", *runs]) == 2
    err = capsys.readouterr().err.strip()
    assert len(err.splitlines()) == 1
    assert "2 corpora" in err
    assert "--corpus" in err


@pytest.mark.parametrize(
    ("options", "words"),
    [([], ("--table", "--runs")), (["--runs", "nowhere"], ("nowhere", "TensorBoard"))],
)
def test_what_is_no_run_is_one_line(capsys, options, words):
    assert main(["plan", "fit-law", *options]) == 2
    err = capsys.readouterr().err.strip()
    assert len(err.splitlines()) == 1
    assert all(word in err for word in words)


def test_a_run_without_validation_says_nothing_to_a_law(tmp_path):
    log = {"throughput/tokens_seen": [(10, 1280.0)]}
    with pytest.raises(UserError, match=r"val/loss.*val_check_interval"):
        run_row(tmp_path, log, 1000, "a")
    row = run_row(tmp_path, log | {"val/loss": [(5, 3.0), (20, 2.0)]}, 1000, "a")
    assert (row["tokens"], row["loss"]) == (2560.0, 2.0)  # tokens a step are constant


def test_a_step_that_was_logged_twice_counts_once(tmp_path):
    run = make_run(tmp_path, "twice")
    with SummaryWriter(run, filename_suffix=".resumed") as writer:
        writer.add_scalar("val/loss", 1.5, 100)
    assert read_log(tmp_path / "twice")["val/loss"] == [(50, 9.0), (100, 1.5)]
    assert law_rows([tmp_path / "twice"])[0]["loss"] == 1.5


def test_the_log_of_a_run_that_an_older_version_started(tmp_path):
    run = tmp_path / "old"
    run.mkdir()
    with SummaryWriter(str(run / "tensorboard")) as writer:
        writer.add_scalar("val/loss", 1.5, 100)
    assert read_log(run)["val/loss"] == [(100, 1.5)]


def test_a_calibration_by_hand():
    logs = [math.log(ratio) for ratio in (1.0, 1.2, 1.5)]
    mean = sum(logs) / 3
    deviation = math.sqrt(sum((log - mean) ** 2 for log in logs) / 2)
    found = calibration_from([1.0, 1.2, 1.5], "")
    assert found.ratio == pytest.approx(1.2)
    assert found.spread == pytest.approx(math.exp(2.920 * deviation * math.sqrt(4 / 3)))  # t(2), 95 %
    many = calibration_from([1.0, 1.1] * 4, "")
    assert many.spread == pytest.approx(math.exp(1.8946 * 0.050945 * math.sqrt(9 / 8)), rel=1e-3)  # t(7)
    assert calibration_from([2.0], "").spread > 1.2


def test_time_is_calibrated_by_the_logs_of_runs(tmp_path):
    runs = [make_run(tmp_path, name, step_seconds=seconds) for name, seconds in (("a", 0.5), ("b", 0.5))]
    found = calibrate([tmp_path / "a", tmp_path / "b"], find_device("h100"))
    assert found.spread == 1.05
    assert found.ratio > 10
    assert "2 runs" in found.basis
    silent = make_run(tmp_path, "silent", steps=5)
    with pytest.raises(UserError, match="step_seconds"):
        calibrate([tmp_path / "silent"], find_device("h100"))
    assert main(["plan", "--config", runs[0], "--calibration", silent, "--measure"]) == 2
