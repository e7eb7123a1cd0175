"""A sealed plan: in the run's folder and lineage before the first step, scored at the end, also across a resume."""

import json
import shutil

import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_run import CONFIG, TinyLoader, TinyModule

from lit_gpt.callbacks import PlanReceipt, RunCheckpoint, RunFolder
from lit_gpt.errors import UserError
from lit_gpt.hashing import sha256_json

STEPS = 12


class Logs(TinyModule):
    """Logs the losses that it is given, after the callbacks as the project's modules do."""

    def __init__(self, train_losses=()):
        super().__init__()
        self.train_losses = list(train_losses) or [2.0] * STEPS

    def on_train_batch_end(self, *_):
        if self.trainer.global_step % self.trainer.log_every_n_steps == 0:
            self.log("train/loss", self.train_losses[self.trainer.global_step - 1], logger=False)


def make_plan(tmp_path, **run):
    def around(value):
        return {"low": value / 1e3, "value": value, "high": value * 1e3, "basis": "by hand"}

    layout = {"replicate": 1, "data": 1, "expert": 1}
    facts = {"name": "tiny", "steps": STEPS, "tokens_per_step": 16, "precision": "32-true", "layout": layout}
    values = {
        "run": facts | {"model_params": CONFIG.num_parameters()} | run,
        "device": {"kind": "cpu", "name": "cpu", "price_per_hour": 3.0},
        "memory": around(1e8),
        "step_seconds": around(1.0),
        "tokens_per_second": around(1e4),
        "hours": around(1e-3),
        "money": around(3e-3),
        "loss": around(2.0) | {"extrapolation": None},
        "curve": {"points": [[1, 1.5, 2.5], [STEPS, 1.0, 2.2]], "basis": "by hand"},
    }
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(values))
    return str(path), values


def fit(make_trainer, plan, module, **options):
    """Train under the plan in the folder `run`."""
    callbacks = [PlanReceipt(plan), RunFolder(), RunCheckpoint(every_n_steps=4)]
    ckpt_path = options.pop("ckpt_path", None)
    trainer = make_trainer(*callbacks, log_every_n_steps=2, **options)
    trainer.fit(module, TinyLoader(), TinyLoader(2), ckpt_path=ckpt_path)
    return trainer


def test_a_plan_is_sealed_and_scored(make_trainer, tmp_path, capsys):
    plan, values = make_plan(tmp_path)
    logger = TensorBoardLogger(tmp_path / "run", name="tensorboard", version="")
    module = Logs([2.0] * 5 + [3.0] * 4 + [2.0] * 3)
    fit(make_trainer, plan, module, logger=logger, val_check_interval=6)
    run = tmp_path / "run"
    assert json.loads((run / "plan.json").read_text()) == values
    assert json.loads((run / "lineage.json").read_text())["plan_sha256"] == sha256_json(values)
    receipt = json.loads((run / "receipt.json").read_text())
    scores = {s["name"]: s for s in receipt["scores"]}
    assert set(scores) == {"memory", "tokens_per_second", "hours", "money", "loss"}
    assert scores["loss"]["measured"] == 2.0  # of the second validation, which this module numbers
    assert scores["money"]["measured"] == pytest.approx(3 * scores["hours"]["measured"])
    assert [row[:2] for row in receipt["history"]] == [[2, 2.0], [4, 2.0], [6, 3.0], [8, 3.0], [10, 2.0], [12, 2.0]]
    assert len(receipt["departures"]) == 1
    assert "step 6" in receipt["departures"][0]
    text = capsys.readouterr().out
    assert text.count("plan: step 6") == 1
    assert "receipt.html" in text
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    highs = [scalar.value for scalar in events.Scalars("plan/loss_high")]
    assert len(highs) == STEPS // 2
    assert highs[-1] == pytest.approx(2.2)
    assert "custom_scalars__config__" in events.Tags()["tensors"]


def test_a_resumed_run_goes_on_with_its_receipt(make_trainer, tmp_path):
    plan, _ = make_plan(tmp_path)
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000008.ckpt"

    class Killed(Logs):
        def on_train_batch_start(self, batch, batch_idx):
            if self.trainer.global_step == 9:
                raise SystemExit
            super().on_train_batch_start(batch, batch_idx)

    with pytest.raises(SystemExit):
        fit(make_trainer, plan, Killed())
    assert not (tmp_path / "run" / "receipt.json").exists()
    other, _ = make_plan(shutil.copytree(tmp_path / "run", tmp_path / "other"), name="another")
    with pytest.raises(UserError, match="--plan"):
        fit(make_trainer, other, Logs(), ckpt_path=str(checkpoint))
    fit(make_trainer, plan, Logs(), ckpt_path=str(checkpoint))
    receipt = json.loads((tmp_path / "run" / "receipt.json").read_text())
    assert [row[0] for row in receipt["history"]] == [2, 4, 6, 8, 10, 12]
    assert receipt["departures"] == []


@pytest.mark.parametrize(("name", "value"), [("steps", 99), ("model_params", 5), ("precision", "bf16-mixed")])
def test_a_plan_of_another_run_is_refused_before_the_first_step(make_trainer, tmp_path, name, value):
    plan, _ = make_plan(tmp_path, **{name: value})
    with pytest.raises(UserError, match=name):
        fit(make_trainer, plan, Logs())
    assert not (tmp_path / "run").exists()
