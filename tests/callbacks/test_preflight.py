"""Each setting that would waste a run is refused before its first step."""

import dataclasses
import types

import pytest
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningDataModule
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from lightning.pytorch.strategies import ModelParallelStrategy
from tiny_run import CONFIG, TinyModule

from lit_gpt.callbacks import Preflight, RunCheckpoint
from lit_gpt.callbacks.preflight import _check_checkpoints, _ever_moves
from lit_gpt.errors import UserError
from lit_gpt.plugins import AtomicCheckpointIO, ParallelStrategy

schedulers = torch.optim.lr_scheduler


class Data(LightningDataModule):
    def __init__(self, vocab_size=11, block_size=8):
        super().__init__()
        self.vocab_size, self.block_size = vocab_size, block_size

    def train_dataloader(self):
        return TinyModule().train_dataloader()


def refused(make_trainer, match, module=None, datamodule=None, **options):
    module = module or TinyModule()
    trainer = make_trainer(Preflight(), **options)
    with pytest.raises(UserError, match=match):
        trainer.fit(module, datamodule=datamodule)
    assert module.losses == {}


def test_a_sound_run_passes(make_trainer, module):
    make_trainer(Preflight(), RunCheckpoint(), max_steps=1).fit(module, datamodule=Data())
    assert len(module.losses) == 1


def test_a_tokenizer_larger_than_the_vocabulary(make_trainer):
    refused(make_trainer, "12 tokens, but the model's vocab_size is 11; set vocab_size", datamodule=Data(vocab_size=12))


def test_a_context_longer_than_the_models(make_trainer):
    for positions in ("learned", "rope"):
        module = TinyModule()
        module.config = dataclasses.replace(CONFIG, positions=positions)
        refused(
            make_trainer,
            "block_size 9 .* 8 positions of the model; .* set the model's block_size",
            module,
            datamodule=Data(block_size=9),
        )


def test_sizes_are_checked_without_training_too(make_trainer):
    class Validation(Data):
        val_dataloader = TinyModule.val_dataloader

    with pytest.raises(UserError, match="12 tokens"):
        make_trainer(Preflight(), limit_val_batches=1).validate(TinyModule(), datamodule=Validation(vocab_size=12))


def test_accumulation_by_the_trainer(make_trainer):
    refused(make_trainer, "accumulate_grad_batches is 4, it must be 1: .*micro_batch_size", accumulate_grad_batches=4)


def test_a_learning_rate_of_zero(make_trainer):
    refused(make_trainer, "learning rate is 0 in every parameter group at every step of LambdaLR", TinyModule(lr=0.0))


class Scheduled(TinyModule):
    def __init__(self, make):
        super().__init__(lr=1.0)
        self.make = make

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.make(optimizer), "interval": "step"}}


@pytest.mark.parametrize(
    ("make", "moves"),
    [
        (lambda o: schedulers.LambdaLR(o, lambda step: 0.0), False),
        (lambda o: schedulers.LambdaLR(o, lambda step: 0.0 if step < 5 else 1.0), True),
        (lambda o: schedulers.LambdaLR(o, lambda step: 0.0 if step < 50 else 1.0), False),  # max_steps is 12
        (lambda o: schedulers.CosineAnnealingLR(o, 12), True),
        (
            lambda o: schedulers.SequentialLR(
                o, [schedulers.LambdaLR(o, lambda step: 0.0), schedulers.LambdaLR(o, lambda step: 0.5)], [4]
            ),
            True,
        ),
    ],
)
def test_schedules_are_followed_to_their_end(make_trainer, make, moves):
    module = Scheduled(make)
    trainer = make_trainer(Preflight(), max_steps=12)
    if moves:
        trainer.fit(module)
        plain = Scheduled(make)  # looking ahead has changed nothing
        make_trainer(max_steps=12).fit(plain)
        assert plain.losses == module.losses
    else:
        with pytest.raises(UserError, match="learning rate is 0"):
            trainer.fit(module)


def test_looking_ahead_leaves_the_schedule_where_it_is():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = schedulers.OneCycleLR(optimizer, 1.0, total_steps=10)
    before = {**scheduler.state_dict(), "lr": optimizer.param_groups[0]["lr"]}
    assert _ever_moves(scheduler, 10)
    assert {**scheduler.state_dict(), "lr": optimizer.param_groups[0]["lr"]} == before


def checks(strategy):
    trainer = types.SimpleNamespace(checkpoint_callbacks=[object()], fast_dev_run=False, strategy=strategy)
    _check_checkpoints(trainer)


def test_checkpoints_that_could_be_cut_in_half(make_trainer):
    trainer = make_trainer(Preflight(), RunCheckpoint(), plugins=[])
    with pytest.raises(UserError, match="written by TorchCheckpointIO.*plugins"):
        trainer.fit(TinyModule())
    make_trainer(Preflight(), plugins=[], max_steps=1).fit(TinyModule())  # nothing is saved
    with pytest.raises(UserError, match="ParallelStrategy"):
        checks(ModelParallelStrategy())
    checks(ParallelStrategy())
    checks(ParallelStrategy(save_distributed_checkpoint=False))
    strategy = ParallelStrategy(save_distributed_checkpoint=False)
    strategy.checkpoint_io = TorchCheckpointIO()
    with pytest.raises(UserError, match="TorchCheckpointIO"):
        checks(strategy)
    checks(types.SimpleNamespace(checkpoint_io=AsyncCheckpointIO(AtomicCheckpointIO())))
    with pytest.raises(UserError, match="AsyncCheckpointIO"):
        checks(types.SimpleNamespace(checkpoint_io=AsyncCheckpointIO(TorchCheckpointIO())))
