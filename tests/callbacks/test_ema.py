"""The average is the one of the formula, is seen where it should be, and survives a resume exactly."""

import pytest
import torch
from lightning.pytorch import Callback
from tiny_run import TinyModule

from lit_gpt.callbacks import ExponentialMovingAverage, RunCheckpoint
from lit_gpt.callbacks.ema import lerp_weight
from lit_gpt.checkpoints.resolve import resolve_model
from lit_gpt.checkpoints.step import read_checkpoint
from lit_gpt.errors import UserError


class Record(Callback):
    """Keeps the weights after each step, as the optimizer left them."""

    def __init__(self):
        self.weights = {}

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.weights[trainer.global_step] = {n: p.detach().clone() for n, p in pl_module.named_parameters()}


def naive_average(weights, decay):
    """sum of d^(t-i) w_i over sum of d^(t-i), written out."""
    t = len(weights)
    factors = [decay ** (t - i) for i in range(1, t + 1)]
    return {
        name: sum(f * w[name].double() for f, w in zip(factors, weights, strict=True)) / sum(factors)
        for name in weights[0]
    }


def test_weights_by_hand():
    assert lerp_weight(0.9, 1) == pytest.approx(1.0)  # the first weights are the first average
    assert lerp_weight(0.9, 2) == pytest.approx(1 / 1.9)
    assert lerp_weight(0.999, 10**6) == pytest.approx(0.001)


@pytest.mark.parametrize("every_n_steps", [1, 3])
def test_the_average_equals_the_sum_written_out(make_trainer, module, every_n_steps):
    record, ema = Record(), ExponentialMovingAverage(decay=0.8, every_n_steps=every_n_steps)
    make_trainer(record, ema).fit(module)
    weights = [record.weights[step] for step in range(every_n_steps, 13, every_n_steps)]
    for name, value in naive_average(weights, 0.8).items():
        torch.testing.assert_close(ema._averages[name].double(), value, rtol=1e-5, atol=1e-6)


def test_training_is_the_same_with_it(make_trainer, module):
    plain = TinyModule()
    make_trainer(val_check_interval=3).fit(plain)
    make_trainer(ExponentialMovingAverage(decay=0.5), val_check_interval=3).fit(module)
    assert module.losses == plain.losses


@pytest.mark.parametrize("evaluate", [True, False])
def test_validation_sees_the_average_and_training_does_not(make_trainer, evaluate):
    seen = {}

    class Looks(TinyModule):
        def validation_step(self, batch, batch_idx):
            seen[self.trainer.global_step] = self.model.wte.weight.detach().clone()

    record, ema = Record(), ExponentialMovingAverage(decay=0.8, evaluate=evaluate)
    module = Looks()
    make_trainer(record, ema, val_check_interval=5, max_steps=10).fit(module)
    raw = [record.weights[step] for step in range(1, 6)]
    expected = naive_average(raw, 0.8) if evaluate else raw[-1]
    torch.testing.assert_close(seen[5].double(), expected["model.wte.weight"].double(), rtol=1e-5, atol=1e-6)
    assert module.model.wte.weight.equal(record.weights[10]["model.wte.weight"])


def test_an_error_in_validation_puts_the_weights_back(make_trainer):
    class Fails(TinyModule):
        def validation_step(self, *_):
            raise ZeroDivisionError

    record, module = Record(), Fails()
    with pytest.raises(ZeroDivisionError):
        make_trainer(record, ExponentialMovingAverage(decay=0.5), val_check_interval=4).fit(module)
    assert all(p.equal(record.weights[4][name]) for name, p in module.named_parameters())


def test_a_resumed_average_is_bit_identical(make_trainer, tmp_path):
    whole, averages = TinyModule(), ExponentialMovingAverage(decay=0.9)
    make_trainer(averages, RunCheckpoint(every_n_steps=6, keep_last=9), run="whole").fit(whole)
    part, resumed = TinyModule(), ExponentialMovingAverage(decay=0.9)
    path = tmp_path / "whole" / "checkpoints" / "step-00000006.ckpt"
    make_trainer(resumed, run="part").fit(part, ckpt_path=str(path))
    assert resumed.num_updates == averages.num_updates == 12
    for name, value in averages._averages.items():
        assert resumed._averages[name].equal(value)
    assert all(a.equal(b) for a, b in zip(part.parameters(), whole.parameters(), strict=True))


def test_bfloat16_weights_are_averaged_in_float32(make_trainer, tmp_path):
    module, ema = TinyModule(), ExponentialMovingAverage(decay=0.999)
    module.to(torch.bfloat16)
    make_trainer(ema, RunCheckpoint(), precision="bf16-true").fit(module)
    assert {value.dtype for value in ema._averages.values()} == {torch.float32}
    read = read_checkpoint(tmp_path / "run" / "checkpoints" / "step-00000012.ckpt")
    assert {value.dtype for value in read["ema"].values()} == {torch.float32}
    assert {value.dtype for value in read["state_dict"].values()} == {torch.bfloat16}


def test_the_checkpoint_hands_out_the_average(make_trainer, module, tmp_path):
    ema = ExponentialMovingAverage(decay=0.8)
    make_trainer(ema, RunCheckpoint()).fit(module)
    averaged = resolve_model(tmp_path / "run").load_state_dict()
    raw = resolve_model(tmp_path / "run", averaged=False).load_state_dict()
    assert averaged["wte.weight"].equal(ema._averages["model.wte.weight"])
    assert averaged["lm_head.weight"] is averaged["wte.weight"]
    assert raw["wte.weight"].equal(module.model.wte.weight)


def test_testing_from_a_checkpoint_sees_the_average(make_trainer, module, tmp_path):
    ema = ExponentialMovingAverage(decay=0.8)
    make_trainer(ema, RunCheckpoint()).fit(module)
    seen = []

    class Tests(TinyModule):
        test_dataloader = TinyModule.val_dataloader

        def test_step(self, batch, batch_idx):
            seen.append(self.model.wte.weight.detach().clone())

    path = tmp_path / "run" / "checkpoints" / "step-00000012.ckpt"
    make_trainer(ExponentialMovingAverage(decay=0.8)).test(Tests(), ckpt_path=str(path), verbose=False)
    assert seen[0].equal(ema._averages["model.wte.weight"])


def test_a_checkpoint_without_an_average_starts_one(make_trainer, tmp_path):
    make_trainer(RunCheckpoint(), max_steps=4).fit(TinyModule())
    ema, module, record = ExponentialMovingAverage(decay=0.5), TinyModule(), Record()
    path = tmp_path / "run" / "checkpoints" / "step-00000004.ckpt"
    make_trainer(record, ema, max_steps=5).fit(module, ckpt_path=str(path))
    assert ema.num_updates == 1
    assert ema._averages["model.wte.weight"].equal(record.weights[5]["model.wte.weight"])


@pytest.mark.parametrize("wrong", [{"decay": 1.0}, {"decay": 0.0}, {"every_n_steps": 0}])
def test_arguments_out_of_bounds(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        ExponentialMovingAverage(**wrong)
