"""Documents are added up over windows and batches, and the file is whole or absent."""

import json
import math

import pytest
import torch
from lightning.pytorch import LightningModule
from torch.utils.data import DataLoader

from lit_gpt.callbacks import PredictionWriter

# Two batches; document 2 has windows in both, document 1 none, -1 is padding.
BATCHES = [
    {
        "document_index": torch.tensor([0, 2, -1]),
        "loss_sum": torch.tensor([3.0, 1.0, 99.0]),
        "num_tokens": torch.tensor([2, 4, 9]),
        "num_bytes": torch.tensor([0, 10, 9]),
        "sources": ["a.txt:1", "b.txt", ""],
    },
    {
        "document_index": torch.tensor([2, 5, 2]),
        "loss_sum": torch.tensor([2.0, 8.0, 4.0]),
        "num_tokens": torch.tensor([4, 8, 2]),
        "num_bytes": torch.tensor([10, 16, 5]),
        "sources": ["b.txt", "c.txt", "b.txt"],
    },
]


class Predicts(LightningModule):
    def __init__(self, fail=False):
        super().__init__()
        self.fail = fail

    def predict_dataloader(self):
        return DataLoader([0, 1], batch_size=None)

    def predict_step(self, batch, batch_idx):
        if self.fail and batch_idx == 1:
            raise ZeroDivisionError
        return BATCHES[batch]


def test_lines_by_hand(make_trainer, tmp_path, capsys):
    make_trainer(PredictionWriter()).predict(Predicts())
    path = tmp_path / "run" / "predictions.jsonl"
    assert str(path) in capsys.readouterr().out
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["document"] for line in lines] == [0, 2, 5]
    assert lines[0] == {
        "document": 0,
        "source": "a.txt:1",
        "loss_nats": 1.5,
        "num_tokens": 2,
        "num_bytes": 0,
        "bits_per_byte": None,
    }
    assert (lines[1]["num_tokens"], lines[1]["num_bytes"], lines[1]["source"]) == (10, 25, "b.txt")
    assert lines[1]["loss_nats"] == pytest.approx(0.7)
    assert lines[1]["bits_per_byte"] == pytest.approx(7 / 25 / math.log(2))
    assert lines[2]["loss_nats"] == pytest.approx(1.0)


def test_a_path_of_ones_own_and_twice(make_trainer, tmp_path):
    path = tmp_path / "deep" / "out.jsonl"
    writer = PredictionWriter(str(path))
    trainer = make_trainer(writer)
    trainer.predict(Predicts())
    first = path.read_text()
    trainer.predict(Predicts())
    assert path.read_text() == first
    assert len(first.splitlines()) == 3


def test_an_error_leaves_the_old_file(make_trainer, tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError):
        make_trainer(PredictionWriter(str(path))).predict(Predicts(fail=True))
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir() if "tmp" in p.name] == []


def test_a_trial_does_not_replace_the_predictions(make_trainer, tmp_path):
    make_trainer(PredictionWriter()).predict(Predicts())
    path = tmp_path / "run" / "predictions.jsonl"
    whole = path.read_text()
    make_trainer(PredictionWriter(), fast_dev_run=True).predict(Predicts())
    assert path.read_text() == whole


def test_limited_predictions_do_not_replace_those_of_the_split(make_trainer, tmp_path):
    make_trainer(PredictionWriter()).predict(Predicts())
    path = tmp_path / "run" / "predictions.jsonl"
    whole = path.read_text()
    for limit in (1, 0.5):
        make_trainer(PredictionWriter(), limit_predict_batches=limit).predict(Predicts())
        limited = path.with_name("predictions-limited.jsonl")
        assert path.read_text() == whole
        assert [json.loads(line)["document"] for line in limited.read_text().splitlines()] == [0, 2]
        limited.unlink()
    make_trainer(PredictionWriter(), limit_predict_batches=1.0).predict(Predicts())
    assert not limited.exists()
