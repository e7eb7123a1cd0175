"""What a module learns of the data: from our DataModules, from another package's, and from bare loaders."""

import types
from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule

from lit_gpt.data_info import DataInfo, DataParallel, read_data_info, read_data_parallel, read_sample_rank
from lit_gpt.datamodules import TextDataModule


def trainer(datamodule=None, **ranks):
    strategy = types.SimpleNamespace(distributed_sampler_kwargs=ranks or None)
    return types.SimpleNamespace(datamodule=datamodule, strategy=strategy)


def test_without_a_datamodule_everything_is_unknown():
    assert read_data_info(types.SimpleNamespace()) == DataInfo()
    assert read_data_info(trainer(LightningDataModule())) == DataInfo()


def test_the_attributes_of_another_packages_datamodule():
    class Foreign(LightningDataModule):
        tokenizer_path = "some/folder"
        block_size = 16
        data_parallel = "not ours"

        def lineage(self):
            return {"corpus": "mine"}

    info = read_data_info(trainer(Foreign()))
    assert (info.tokenizer_path, info.block_size, info.vocab_size) == (Path("some/folder"), 16, None)
    assert info.lineage() == {"corpus": "mine"}
    assert info.data_parallel == DataParallel()


def test_a_data_info_of_its_own_wins_over_attributes():
    class Foreign(LightningDataModule):
        block_size = 16
        data_info = DataInfo(block_size=8)

    assert read_data_info(trainer(Foreign())).block_size == 8


def test_the_ranks_are_the_strategys():
    assert read_data_parallel(None) == DataParallel(0, 1)
    assert read_sample_rank(None) == (0, 1)
    assert read_sample_rank(trainer(num_replicas=4, rank=3)) == (3, 4)
    assert read_data_info(trainer(num_replicas=4, rank=3)).data_parallel == DataParallel(3, 4)
    value = torch.ones(2)
    assert DataParallel().sum(value) is value


def test_our_datamodules(tmp_path):
    (tmp_path / "a.txt").write_text("some words and more words\n" * 400)
    data = TextDataModule(
        files=str(tmp_path / "a.txt"),
        vocab_size=300,
        block_size=16,
        global_batch_size=8,
        val_fraction=0.0,
        test_fraction=0.0,
        predict_split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    data.prepare_data()
    data.setup("fit")
    info = read_data_info(trainer(data))
    assert (info.vocab_size, info.block_size, info.tokens_per_step, info.packing) == (300, 16, 128, True)
    assert (info.tokenizer_path / "tokenizer.json").exists()
    assert info.lineage()["global_batch_size"] == 8
    assert info.mixture is None
