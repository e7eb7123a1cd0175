"""Every argument of Lightning's Trainer, with `lit_gpt.Trainer` and with Lightning's own: it works or is refused."""

import inspect
import re
import sys
from copy import copy
from datetime import timedelta

import lightning.pytorch as pl
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.profilers import SimpleProfiler

from lit_gpt.cli import main
from lit_gpt.datamodules import TextDataModule
from lit_gpt.errors import UserError
from lit_gpt.modules import PretrainModule
from lit_gpt.plugins import AtomicCheckpointIO
from lit_gpt.trainer import Trainer

MINUTE = timedelta(minutes=1)
WORKS = {
    "accelerator": ["cpu", "auto"],
    "strategy": ["auto", "ddp", "single_device"],  # others: tests/plugins/test_strategy_names.py
    "devices": [1, "1", "auto"],
    "num_nodes": [1],
    "precision": [32, "32-true", "64-true", "bf16-mixed", "bf16-true", "16-true"],
    "logger": [None, False, CSVLogger("logs"), [CSVLogger("logs")]],
    "callbacks": [None, Timer(MINUTE), [Timer(MINUTE)]],
    "fast_dev_run": [False, 2],
    "max_epochs": [1, -1, None],
    "min_epochs": [0, 1, None],
    "max_steps": [2],
    "min_steps": [1, None],
    "max_time": [MINUTE, "00:00:01:00", {"minutes": 1}],
    "limit_train_batches": [2, 0.5, 1.0, None],
    "limit_val_batches": [0, 1, 0.5, None],
    "limit_test_batches": [0, 1, 0.5, None],
    "limit_predict_batches": [0, 1, 0.5, None],
    "overfit_batches": [0, 1, 0.5],
    "val_check_interval": [1, 0.5, 1.0, None, MINUTE, "00:00:01:00", {"minutes": 1}],
    "check_val_every_n_epoch": [1, None],
    "num_sanity_val_steps": [0, 1, -1],
    "log_every_n_steps": [0, 1, None],
    "enable_checkpointing": [True, False, None],
    "enable_progress_bar": [True, False, None],
    "enable_model_summary": [True, False, None],
    "accumulate_grad_batches": [1],
    "gradient_clip_val": [1, 0.5, 0, None],
    "gradient_clip_algorithm": ["norm", "value", None],
    "deterministic": [True, False, "warn", None],
    "benchmark": [True, False, None],
    "inference_mode": [True, False],
    "use_distributed_sampler": [True, False],
    "profiler": [None, "simple", "advanced", SimpleProfiler()],
    "detect_anomaly": [True, False],
    "barebones": [False],  # true: below
    "plugins": [None, []],
    "sync_batchnorm": [True, False],
    "reload_dataloaders_every_n_epochs": [0, 1],
    "default_root_dir": [None],
    "enable_autolog_hparams": [True, False],
    "model_registry": [None],
}
"""Values with which a run of two steps trains."""

REFUSED = {
    "accelerator": ["cudaa", "tpu", None],
    "strategy": ["ddpp", "{class_path: Nowhere}"],
    "devices": [0, -1, [0], [], "two", "0,1", 1.5],
    "num_nodes": [0, 2, "two"],  # 2: nothing says which node this is
    "precision": ["bf17", "transformer-engine"],
    "logger": ["csv", [3]],
    "callbacks": ["timer", [3]],
    "fast_dev_run": [-1, "maybe"],
    "max_epochs": [-2, 0, 1.5, "one"],
    "min_epochs": [-1, 1.5],
    "max_steps": [-2, 0, 1.5, "ten", None],
    "min_steps": [-1, "ten"],
    "max_time": [3, "soon", "00:99", "00:00:00:00", {"minuts": 3}, {"minutes": -1}],
    "limit_train_batches": [-1, 0, 1.5, "all"],
    "limit_val_batches": [-1, 1.5, "all"],
    "limit_test_batches": [-1, 1.5, "all"],
    "limit_predict_batches": [-1, 1.5, "all"],
    "overfit_batches": [-1, 1.5, "all"],
    "val_check_interval": [0, -1, 2.5, True, [1], "soon", "00:00:00:00", {"minuts": 3}],
    "check_val_every_n_epoch": [0, "x"],
    "num_sanity_val_steps": [-2, "x"],
    "log_every_n_steps": [-1, "x"],
    "gradient_clip_val": [-1, float("nan"), "x"],
    "gradient_clip_algorithm": ["x"],
    "accumulate_grad_batches": [0, 2, "x"],
    "profiler": ["x"],
    "detect_anomaly": [None],
    "plugins": ["x", ["x"], [{"class_path": "Nowhere"}]],
    "reload_dataloaders_every_n_epochs": [-1, "x"],
    "default_root_dir": ["s3://bucket/runs"],
}
"""Values that `lit_gpt.Trainer` refuses when it is created, each with a sentence that names the argument."""

STOCK_ACCEPTS = {
    "max_epochs": [0],
    "min_epochs": [-1, 1.5],
    "max_steps": [0, 1.5],
    "min_steps": [-1, "ten"],
    "max_time": ["00:00:00:00", {"minutes": -1}],
    "limit_train_batches": [0],
    "val_check_interval": [True, "00:00:00:00"],
    "num_sanity_val_steps": [-2],
    "log_every_n_steps": [-1],
    "gradient_clip_val": [-1],
}
"""Those of them that Lightning's own Trainer accepts, with Lightning's meaning (no step, no limit, no clipping)."""

MODULE_REFUSES = {"num_nodes": [2], "accumulate_grad_batches": [0, 2, "x"]}
"""Those that our module refuses with Lightning's own Trainer; for all others, Lightning's exceptions are left as they are:
they are what a user of its Trainer expects."""

NAMED_AS = {
    "accelerator": "accelerator|torch_xla",
    "precision": "(?i)precision|transformer_engine",
}
"""What a refusal has instead of the argument's own name, where Lightning writes it."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "a.txt").write_text("\n\n".join(f"document {n}: " + "some words " * 9 for n in range(40)))

    def make():
        return TextDataModule(
            files=[str(folder / "a.txt")], document_separator="\n\n", val_fraction=0.2, vocab_size=300, block_size=16,
            global_batch_size=4, cache_dir=str(folder / "cache"),
        )  # fmt: skip

    make().prepare_data()
    return make


@pytest.fixture(autouse=True)
def in_a_new_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    torch.use_deterministic_algorithms(False)
    torch.distributed.destroy_process_group() if torch.distributed.is_initialized() else None


def module():
    return PretrainModule(overrides={"n_layer": 1, "n_head": 2, "n_embd": 16, "vocab_size": 300, "block_size": 16})


def make_trainer(kind, **arguments):
    defaults = {"default_root_dir": "runs", "accelerator": "cpu", "max_steps": 2, "enable_progress_bar": False}
    defaults |= {"logger": False, "enable_model_summary": False}
    if kind == "ours":
        return Trainer(**defaults | arguments)
    arguments["plugins"] = arguments.get("plugins") or [AtomicCheckpointIO()]
    if isinstance(arguments.get("val_check_interval"), timedelta | str | dict):
        arguments["check_val_every_n_epoch"] = None
    return pl.Trainer(**defaults | {"num_sanity_val_steps": 0} | arguments)


def pairs(table):
    return [pytest.param(name, value, id=f"{name}={value}"[:60]) for name in table for value in table[name]]


def test_the_table_lists_every_argument():
    assert list(WORKS) == [name for name in inspect.signature(pl.Trainer.__init__).parameters if name != "self"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ours", "stock"])
@pytest.mark.parametrize(("name", "value"), pairs(WORKS))
def test_a_run_trains(kind, name, value, data):
    trainer = make_trainer(kind, **{name: value})
    trainer.fit(module(), datamodule=data())
    assert trainer.global_step == 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Trainer, pl.Trainer])
def test_a_barebones_run_trains(kind, data):
    trainer = kind(max_steps=2, accelerator="cpu", barebones=True)
    trainer.fit(module(), datamodule=data())
    assert trainer.global_step == 2


@pytest.mark.parametrize(("name", "value"), pairs(REFUSED))
def test_a_wrong_value_is_refused_by_name(name, value, data):
    with pytest.raises(UserError) as caught:
        make_trainer("ours", **{name: value}).fit(module(), datamodule=data())
    assert re.search(NAMED_AS.get(name, name), str(caught.value))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "value"), pairs(REFUSED))
def test_on_the_command_line_a_wrong_value_is_one_line(name, value, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lit_gpt"])
    (tmp_path / "a.txt").write_text("\n\n".join(f"document {n}: " + "some words " * 9 for n in range(40)))
    data = {"files": ["a.txt"], "document_separator": "\n\n", "vocab_size": 300, "block_size": 16}
    trainer = {"max_steps": 2, "accelerator": "cpu", "logger": False, name: value}
    model = {"overrides": {"n_layer": 1, "n_head": 2, "n_embd": 16}}
    config = {
        "trainer": trainer,
        "model": {"class_path": "PretrainModule", "init_args": model},
        "data": {"class_path": "TextDataModule", "init_args": data | {"global_batch_size": 4, "cache_dir": "cache"}},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    try:
        status = main(["fit", "--config", "config.yaml"])
    except SystemExit as stop:
        status = stop.code
    lines = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert status == 2
    assert len(lines) == 1
    assert re.search(NAMED_AS.get(name, name), lines[0])
    assert not list(tmp_path.glob("runs/*"))


@pytest.mark.parametrize(
    ("name", "value"),
    [("accumulate_grad_batches", 2), ("num_nodes", 2), ("default_root_dir", "file-system://bucket/runs")],
)
def test_a_stock_trainer_that_would_go_wrong_silently_is_refused(name, value, data, tmp_path):
    with pytest.raises((UserError, ValueError, ImportError), match=f"{name}|file-system"):
        make_trainer("stock", **{name: value}).fit(module(), datamodule=data())
    assert not (tmp_path / "file-system:").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "value"), pairs(REFUSED))
def test_with_a_stock_trainer_a_wrong_value_is_answered_by_lightning(name, value, data):
    def fit():
        make_trainer("stock", **{name: copy(value)}).fit(module(), datamodule=data())

    if value in STOCK_ACCEPTS.get(name, []):
        fit()
        return
    with pytest.raises(Exception) as caught:  # noqa: PT011  (Lightning raises nearly every kind of exception)
        fit()
    assert isinstance(caught.value, UserError) == (value in MODULE_REFUSES.get(name, []))
