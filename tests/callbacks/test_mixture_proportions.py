"""Counts of what was trained on, beside what was wanted; across a resume; and nothing where there is no mixture."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningDataModule
from tiny_run import ListLogger, TinyModule

from lit_gpt.callbacks import MixtureProportions


class Mixture:
    names = ("a", "b")
    num_windows = (10, 20)

    def wanted(self, num_samples):
        return {"a": 0.75 * num_samples, "b": 0.25 * num_samples}


class Mixed(LightningDataModule):
    """Step s has corpora (0, 0, 0, 1), and (0, 1, 1, 1) from step 6 on."""

    def __init__(self):
        super().__init__()
        self.mixture = Mixture()

    def train_dataloader(self):
        batches = []
        for step in range(12):
            ids = torch.tensor([0, 0, 0, 1] if step < 6 else [0, 1, 1, 1])
            micro = {"input_ids": torch.zeros(2, 8, dtype=torch.int64), "labels": torch.ones(2, 8, dtype=torch.int64)}
            batches.append([micro | {"corpus_ids": ids[:2]}, micro | {"corpus_ids": ids[2:]}])
        return torch.utils.data.DataLoader(batches, batch_size=None)


class Module(TinyModule):
    def training_step(self, batch, batch_idx):
        return next(iter(self.parameters())).sum() * 0.0


def test_shares_by_hand(make_trainer):
    callback, logger = MixtureProportions(), ListLogger()
    make_trainer(callback, logger=logger, log_every_n_steps=4).fit(Module(), datamodule=Mixed())
    logged = {step: values for step, values in logger.entries if "mixture/a" in values}
    assert sorted(logged) == [4, 8, 12]
    assert [logged[step]["mixture/a"] for step in (4, 8, 12)] == [0.75, 0.5, 0.25]
    assert logged[8]["mixture_total/a"] == (6 * 3 + 2) / 32
    assert logged[12]["mixture_total/b"] == (6 + 18) / 48
    assert logged[12]["mixture_wanted/a"] == 0.75
    assert logged[12]["mixture_epochs/b"] == 24 / 20
    assert callback.latest == logged[12]


def test_counts_survive_a_resume(make_trainer, tmp_path):
    first = make_trainer(MixtureProportions(), max_steps=5)
    first.fit(Module(), datamodule=Mixed())
    first.save_checkpoint(tmp_path / "five.ckpt")
    callback = MixtureProportions()
    make_trainer(callback, max_steps=10, run="again").fit(
        Module(), datamodule=Mixed(), ckpt_path=str(tmp_path / "five.ckpt"), weights_only=True
    )
    total = sum(callback.latest[f"mixture_total/{name}"] for name in "ab")
    assert total == pytest.approx(1.0)
    assert callback.latest["mixture_epochs/a"] + 2 * callback.latest["mixture_epochs/b"] == pytest.approx(40 / 10)


def test_rows_that_processes_share_are_counted_on_the_first(make_trainer):
    class Shared(Mixed):
        def train_dataloader(self):
            for step in super().train_dataloader():
                yield [micro | {"sequence": SimpleNamespace(rank=rank)} for rank, micro in enumerate(step)]

    callback = MixtureProportions()
    make_trainer(callback, max_steps=12, log_every_n_steps=12).fit(Module(), datamodule=Shared())
    assert callback.latest["mixture/a"] == (6 * 2 + 6) / 24


def test_without_a_mixture_it_does_nothing(make_trainer):
    callback = MixtureProportions()
    make_trainer(callback).fit(TinyModule())
    assert callback.latest == {}
    assert callback._counts is None
