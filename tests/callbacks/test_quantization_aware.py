"""Training sees the weights that `quantize` will write, changes the whole ones, and resumes exactly."""

import pytest
import torch
from lightning.pytorch import Callback
from tiny_run import CONFIG, TinyModule

from lit_gpt.callbacks import QuantizationAware, RunCheckpoint
from lit_gpt.checkpoints.quantization import Quantization, quantizable_layers, quantize_weight, trained_for
from lit_gpt.checkpoints.resolve import resolve_model
from lit_gpt.errors import UserError
from lit_gpt.models import GPT

CHECKPOINT = "checkpoints/step-{:08d}.ckpt"
IDS = torch.arange(8)[None] % CONFIG.vocab_size


def rounded(weight, group):
    """Symmetric rounding in loops: the largest magnitude of each group lies at 7.5 steps."""
    result = weight.clone()
    for row in result:
        for start in range(0, len(row), group):
            part = row[start : start + group]
            scale = part.abs().max() / 7.5
            part.copy_((part * (1 / scale)).round().clamp(-8, 7) * scale)  # (the largest is at 7.5, a tie)
    return result


def plain(module):
    model = GPT(CONFIG).eval()
    model.load_state_dict(module.model.state_dict())
    return model


class Watch(RunCheckpoint):
    """What the model computes while it is being trained."""

    def on_train_batch_end(self, trainer, pl_module, *arguments):
        super().on_train_batch_end(trainer, pl_module, *arguments)
        pl_module.eval()
        with torch.no_grad():
            self.seen = pl_module.model(IDS)
            self.kinds = {type(m).__name__ for m in pl_module.model.modules()}
        pl_module.train()


def test_the_model_in_training_is_the_rounded_one(make_trainer, module):
    watch = Watch()
    make_trainer(QuantizationAware(group_size=4), watch, max_steps=5).fit(module)
    assert "FakeQuantizedLinear" in watch.kinds
    model = plain(module)
    with torch.no_grad():
        whole = model(IDS)
        for layer in quantizable_layers(model).values():
            layer.weight.copy_(rounded(layer.weight, 4))
        torch.testing.assert_close(watch.seen, model(IDS), rtol=1e-5, atol=1e-6)
    assert (whole - watch.seen).abs().max() > 1e-3


@pytest.mark.parametrize(("method", "group"), [("int4", 4), ("int8", None), ("int8", 2)])
def test_conversion_gives_the_numbers_that_were_trained(make_trainer, module, method, group):
    watch = Watch()
    make_trainer(QuantizationAware(method, group), watch, max_steps=5).fit(module)
    model = plain(module)
    with torch.no_grad():
        for layer in quantizable_layers(model).values():
            layer.weight.copy_(quantize_weight(layer.weight, Quantization(method, group)).dequantize())
        torch.testing.assert_close(watch.seen, model(IDS), rtol=1e-6, atol=1e-6)


def test_afterwards_the_layers_are_plain_and_whole(make_trainer, module):
    before = [type(m) for m in module.model.modules()]
    names = list(module.state_dict())
    parameters = [id(p) for p in module.model.parameters()]
    make_trainer(QuantizationAware(group_size=4), max_steps=3).fit(module)
    assert [type(m) for m in module.model.modules()] == before
    assert [id(p) for p in module.model.parameters()] == parameters
    assert list(module.state_dict()) == names


def test_random_numbers_are_left_alone(make_trainer):
    losses = []
    for callbacks in ([], [QuantizationAware(group_size=4, start_step=100)]):
        module = TinyModule()
        make_trainer(*callbacks, max_steps=4).fit(module)
        losses.append(module.losses)
    assert losses[0] == losses[1]  # and before `start_step`, training is as without it


def test_rounding_begins_at_its_step(make_trainer):
    runs = {}
    for start in (0, 3, 100):
        module = TinyModule()
        make_trainer(QuantizationAware(group_size=4, start_step=start), max_steps=6).fit(module)
        runs[start] = module.losses
    assert [runs[3][s] for s in range(3)] == [runs[100][s] for s in range(3)]
    assert runs[3][3] != runs[100][3]
    assert runs[0][0] != runs[100][0]


@pytest.mark.parametrize("start_step", [0, 4])
def test_a_resumed_run_is_the_same_to_the_bit(make_trainer, tmp_path, start_step):
    def callbacks():
        return QuantizationAware(group_size=4, start_step=start_step), RunCheckpoint(every_n_steps=6)

    whole, first, second = TinyModule(), TinyModule(), TinyModule()
    make_trainer(*callbacks(), max_steps=12, run="whole").fit(whole)
    make_trainer(*callbacks(), max_steps=6, run="cut").fit(first)
    make_trainer(*callbacks(), max_steps=12, run="cut").fit(second, ckpt_path=tmp_path / "cut" / CHECKPOINT.format(6))
    assert second.losses == {step: loss for step, loss in whole.losses.items() if step >= 6}
    for a, b in zip(whole.parameters(), second.parameters(), strict=True):
        assert a.equal(b)


def test_a_checkpoint_says_what_it_was_trained_for(make_trainer, module, tmp_path):
    make_trainer(
        QuantizationAware(group_size=4, start_step=2), RunCheckpoint(every_n_steps=2, keep_last=5), max_steps=4
    ).fit(module)
    assert trained_for(tmp_path / "run" / CHECKPOINT.format(2)) is None  # no step has been rounded yet
    assert trained_for(resolve_model(tmp_path / "run").path) == Quantization("int4", 4)


def test_another_method_on_resume_is_an_error(make_trainer, module, tmp_path):
    make_trainer(QuantizationAware(group_size=4), RunCheckpoint(), max_steps=2).fit(module)
    path = tmp_path / "run" / CHECKPOINT.format(2)
    with pytest.raises(UserError, match="int4 in groups of 4.* QuantizationAware .*int8"):
        make_trainer(QuantizationAware("int8"), max_steps=4).fit(TinyModule(), ckpt_path=path)


class Losses(Callback):
    """Of validation, batch by batch."""

    def __init__(self):
        self.seen = []

    def on_validation_batch_end(self, trainer, pl_module, outputs, *_):
        self.seen.append(outputs.item())


def test_validation_alone_measures_the_rounded_model(make_trainer, module):
    def losses(*callbacks):
        watch = Losses()
        make_trainer(watch, *callbacks, limit_val_batches=2).validate(module, verbose=False)
        return watch.seen

    whole, measured = losses(), losses(QuantizationAware(group_size=4))
    assert len(whole) == 2
    assert losses() == whole != measured  # plain again for a run without the callback
    for layer in quantizable_layers(module.model).values():
        layer.weight.data = rounded(layer.weight.data, 4)
    assert losses() == pytest.approx(measured, rel=1e-6)


class Fails(Callback):
    """Ends a run in the middle of it."""

    def __init__(self, error):
        self.error = error

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 3:
            raise self.error


@pytest.mark.parametrize("error", [RuntimeError("out of luck"), KeyboardInterrupt()])
def test_a_run_that_fails_leaves_plain_layers(make_trainer, module, error):
    with pytest.raises((RuntimeError, SystemExit)):
        make_trainer(QuantizationAware(group_size=4), Fails(error)).fit(module)
    assert len(quantizable_layers(module.model)) == 6
    trainer = make_trainer(QuantizationAware(group_size=4), max_steps=2)
    trainer.fit(module)
    assert trainer.global_step == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "fp8"}, "int4, int8"),
        ({"method": "int2"}, "int2"),
        ({"start_step": -1}, "at least 0"),
        ({"group_size": 1}, "at least 2"),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(UserError, match=message):
        QuantizationAware(**arguments)


def test_groups_that_do_not_divide_are_refused_before_the_first_step(make_trainer, module):
    with pytest.raises(UserError, match=r"group_size 32 does not divide the 8 inputs of blocks.0.attn.q_proj; .*8, 4"):
        make_trainer(QuantizationAware()).fit(module)
    assert module.losses == {}


def test_an_adapter_is_refused(make_trainer, module):
    module.adapter = object()
    with pytest.raises(UserError, match="adapter"):
        make_trainer(QuantizationAware(group_size=4)).fit(module)
