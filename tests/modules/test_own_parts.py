"""A module whose model has parts of its own: it trains, says that a run needs its class, and opens where that is."""

import sys
from contextlib import nullcontext

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from lit_gpt.checkpoints.resolve import exportable_weights, resolve_model
from lit_gpt.checkpoints.step import read_builder
from lit_gpt.cli import main
from lit_gpt.datamodules import TextDataModule
from lit_gpt.errors import UserError
from lit_gpt.extensions import VARIABLE, load_extensions
from lit_gpt.generation.loading import load_for_generation
from lit_gpt.modules import PretrainModule
from lit_gpt.plugins import AtomicCheckpointIO
from lit_gpt.trainer import Trainer

SMALL = {"n_layer": 1, "n_head": 2, "n_embd": 16, "vocab_size": 300, "block_size": 16}
PROJECT = """
import torch
from torch import nn
from lit_gpt import PretrainModule
from lit_gpt.models import GPT

class Squared(nn.Module):
    def __init__(self, width, scale):
        super().__init__()
        self.up, self.down = nn.Linear(16, width), nn.Linear(width, 16)
        self.register_buffer("scale", torch.empty(1))
        self.value = scale
        self.reset_parameters()

    def reset_parameters(self):
        self.scale.fill_(self.value)

    def forward(self, x):
        return self.scale * self.down(torch.relu(self.up(x)) ** 2)

class Own(PretrainModule):
    def __init__(self, width=24, scale=3.0, function=None, **kwargs):
        super().__init__(**kwargs)
        self.width, self.mlp_scale = width, scale

    def build_model(self):
        model = GPT(self.config)
        for block in model.blocks:
            block.mlp = Squared(self.width, self.mlp_scale)
        return model

class Further(Own):
    pass
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The imported `own_project.py`; afterwards it is forgotten."""
    (tmp_path / "own_project.py").write_text(PROJECT)
    monkeypatch.syspath_prepend(str(tmp_path))
    __import__("own_project")
    yield sys.modules["own_project"]
    sys.modules.pop("own_project", None)
    load_extensions.cache_clear()


@pytest.fixture
def fit(tmp_path):
    (tmp_path / "a.txt").write_text("\n\n".join(f"document {n}: " + "some words " * 9 for n in range(40)))

    def run(module, name="run", **arguments):
        data = TextDataModule(
            files=[str(tmp_path / "a.txt")], document_separator="\n\n", val_fraction=0.2, vocab_size=300, block_size=16,
            global_batch_size=4, cache_dir=str(tmp_path / "cache"),
        )  # fmt: skip
        trainer = Trainer(
            name=name, default_root_dir=str(tmp_path / "runs"), accelerator="cpu", logger=False,
            enable_progress_bar=False, **{"max_steps": 2} | arguments,
        )  # fmt: skip
        ckpt_path = "last" if (tmp_path / "runs" / name / "checkpoints").exists() else None
        trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
        return tmp_path / "runs" / name

    return run


def test_it_trains_says_what_it_needs_and_opens_there(project, fit, monkeypatch, capsys):
    module = project.Own(width=20, scale=0.5, overrides=SMALL)
    run = fit(module)
    assert f"{VARIABLE}=own_project python -m lit_gpt generate" in capsys.readouterr().out
    assert float(module.model.blocks[0].mlp.scale) == 0.5, "a buffer has its own value after the meta device"

    model, _ = load_for_generation(str(run))
    assert model.blocks[0].mlp.up.out_features == 20
    assert not model.training
    ids = torch.arange(8)[None]
    torch.testing.assert_close(model(ids), module.eval().model(ids))
    opened = project.Own.load_from_checkpoint(run, width=20)
    torch.testing.assert_close(opened.model(ids), model(ids))

    with pytest.raises(UserError, match=r"own_project\.Own"):
        exportable_weights(resolve_model(run))  # of `export` and `quantize`
    del sys.modules["own_project"]
    load_extensions.cache_clear()
    assert main(["generate", "--model", str(run), "--prompt", "some"]) == 2
    error = capsys.readouterr().err
    assert f"{VARIABLE}=own_project" in error
    assert "Traceback" not in error
    for name in ("no_such_project", "own_project"):
        monkeypatch.setenv(VARIABLE, name)
        load_extensions.cache_clear()
        with pytest.raises(UserError, match=name) if name != "own_project" else nullcontext():
            load_for_generation(str(run))


def test_another_class_does_not_take_its_weights(project, fit):
    run = fit(project.Own(overrides=SMALL))
    for wrong in (PretrainModule(init_from=str(run)), PretrainModule(overrides=SMALL)):
        with pytest.raises(UserError, match=r"own_project\.Own"):
            fit(wrong, name="other" if wrong.init_from else "run", max_steps=3)
    fit(project.Further(init_from=str(run)), name="further")
    fit(project.Own(overrides=SMALL), max_steps=3)


def test_what_a_checkpoint_cannot_hold_is_named(project, fit):
    run = fit(project.Own(function=max, overrides=SMALL))
    assert {"scale": 3.0, "width": 24}.items() <= read_builder(resolve_model(run).path)["arguments"].items()
    with pytest.raises(UserError, match="function"):
        load_for_generation(str(run))


def test_a_class_of_a_function_or_a_part_that_cannot_be_filled(fit):
    class Local(PretrainModule):
        def build_model(self):
            model = super().build_model()
            model.blocks[0].mlp = nn.Identity()
            model.blocks[0].mlp.register_buffer("table", torch.ones(2))
            return model

    with pytest.raises(UserError, match="Identity.*table.*reset_parameters"):
        fit(Local(overrides=SMALL))
    Local.build_model = lambda self: _without_mlp(PretrainModule.build_model(self))
    run = fit(Local(overrides=SMALL))
    with pytest.raises(UserError, match=r"Local.*top of a module"):
        load_for_generation(str(run))


def _without_mlp(model):
    model.blocks[0].mlp = nn.Identity()
    return model


def test_with_an_adapter(project, fit):
    from lit_gpt.adapters import AdapterConfig

    base = fit(project.Own(overrides=SMALL))
    module = project.Own(init_from=str(base), adapter=AdapterConfig(rank=2))
    run = fit(module, name="adapted")
    model, _ = load_for_generation(str(run))
    ids = torch.arange(8)[None]
    torch.testing.assert_close(model(ids), module.eval().model(ids))


def test_a_plain_model_names_no_class(fit):
    class OwnLoss(PretrainModule):
        def loss(self, batch):
            return super().loss(batch)

    assert read_builder(resolve_model(fit(OwnLoss(overrides=SMALL))).path) is None


def test_with_a_stock_trainer(project, tmp_path):
    class Batches(pl.LightningDataModule):
        def train_dataloader(self):
            ids = torch.arange(17)[None]
            return torch.utils.data.DataLoader(
                [[{"input_ids": ids[:, :-1], "labels": ids[:, 1:]}]] * 2, batch_size=None
            )

    trainer = pl.Trainer(
        max_steps=2, accelerator="cpu", logger=False, enable_progress_bar=False, plugins=[AtomicCheckpointIO()],
        default_root_dir=tmp_path, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(project.Own(overrides=SMALL), datamodule=Batches())
    trainer.save_checkpoint(tmp_path / "own.ckpt")
    model = project.Own.load_from_checkpoint(tmp_path / "own.ckpt").model
    assert model.blocks[0].mlp.up.out_features == 24
