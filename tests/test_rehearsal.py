"""A rehearsal names what differs between two starts; slow: real runs, one of them with a planted fault."""

import random
import sys

import pytest
import yaml

from lit_gpt.cli import main
from lit_gpt.errors import UserError
from lit_gpt.rehearsal import FAILED, Rehearsal, read_duration

STEPS = [{"step": n, "batch": f"b{n}", "loss": (5.0 - n).hex()} for n in range(1, 7)]
END = {"weights": "w", "optimizer": "o"}
VALIDATED = {"validated": 6, "loss": (2.0).hex()}


def changed(place, **values):
    return [entry | (values if number == place else {}) for number, entry in enumerate([*STEPS, VALIDATED, END])]


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (changed(3, batch="other"), ("step 4", "DataModule", "seed")),
        (changed(4, loss=(0.5).hex()), ("step 5", "loss", "0.5")),
        (changed(6, loss=(2.5).hex()), ("validation", "step 6")),
        (changed(7, weights="x"), ("weights",)),
        (changed(7, optimizer="x"), ("optimizer",)),
    ],
)
def test_what_differs_is_named(tmp_path, found, words):
    rehearsal = Rehearsal([], 1.0, tmp_path)
    assert not rehearsal._compare("start again", changed(99), found)
    (check,) = rehearsal.checks
    assert check.result == "differs"
    assert all(word in check.detail for word in words), check.detail


def test_a_resumed_part_is_equal_to_the_end_of_the_whole(tmp_path):
    rehearsal = Rehearsal([], 1.0, tmp_path)
    assert rehearsal._compare("resume", changed(99), changed(99)[3:])
    assert rehearsal.checks[0].result == "equal"
    assert "4 to 6" in rehearsal.checks[0].detail
    assert not rehearsal._compare("resume", changed(99), [END])


def test_what_there_is_no_time_for_is_listed(tmp_path):
    rehearsal = Rehearsal(["--config", "x.yaml"], 0.0, tmp_path)
    assert not rehearsal.run()
    assert [check.result for check in rehearsal.checks] == ["not tried"]


def test_durations():
    assert [read_duration(text) for text in ("90s", "3m", "1.5h")] == [90, 180, 5400]
    for text in ("3", "m", "0s", "3 days"):
        with pytest.raises(UserError, match="3m"):
            read_duration(text)


@pytest.mark.parametrize("words", [["--rehearse"], ["--rehearse", "soon"], ["--plan"]])
def test_a_bad_option_is_one_line(capsys, words):
    assert main(["fit", "--config", "nowhere.yaml", *words]) == 2
    err = capsys.readouterr().err.strip()
    assert len(err.splitlines()) == 1
    assert words[0] in err


CLOCKED = """
import time
from lit_gpt.datamodules import TextDataModule

class Clocked(TextDataModule):
    def setup(self, stage=None):
        self.seed = time.time_ns() % 1000
        super().setup(stage)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["TextDataModule", "clocked_data.Clocked"])
def test_a_run_is_rehearsed(tmp_path, monkeypatch, capfd, kind):
    rng = random.Random(0)
    (tmp_path / "texts").mkdir()
    for number in range(8):
        (tmp_path / "texts" / f"{number}.txt").write_text(
            " ".join(rng.choices(["red", "blue", "stone", "river"], k=600))
        )
    (tmp_path / "clocked_data.py").write_text(CLOCKED)
    shape = {"n_layer": 1, "n_head": 2, "n_embd": 16, "intermediate_size": 32}
    data = {"files": "texts", "vocab_size": 300, "block_size": 16, "global_batch_size": 4, "val_fraction": 0.3}
    values = {
        "trainer": {"name": "small", "max_steps": 500},
        "model": {"class_path": "PretrainModule", "init_args": {"preset": "tiny", "overrides": shape}},
        "data": {"class_path": kind, "init_args": data | {"cache_dir": str(tmp_path / "cache")}},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    status = main(["fit", "--config", "run.yaml", "--rehearse", "10m"])
    text = capfd.readouterr().out
    if kind == "TextDataModule":
        assert status == 0, text
        for check in ("equal      start again", "equal      kill and resume", "done       sample the export"):
            assert check in text
        assert "not tried  another number of devices" in text
    else:
        assert status == FAILED
        assert "differs    start again: the batch of step 1" in text
        assert "DataModule" in text
    assert not (tmp_path / "runs").exists()
