"""`lit_gpt.Trainer` and its command line: mistakes are one sentence with value and remedy, and lose nothing."""

import json
import os
import pickle
import sys
from functools import partial, wraps
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import EarlyStopping
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_gpt.callbacks import RunCheckpoint
from lit_gpt.checkpoints.resolve import list_checkpoints
from lit_gpt.cli import main
from lit_gpt.datamodules import TextDataModule
from lit_gpt.errors import UserError
from lit_gpt.generation.loading import load_for_generation
from lit_gpt.lightning_cli import SaveRunConfig
from lit_gpt.modules import PretrainModule
from lit_gpt.parser import short_message
from lit_gpt.plugins import AtomicCheckpointIO
from lit_gpt.trainer import Trainer

SMALL = {"n_layer": 1, "n_head": 2, "n_embd": 16, "vocab_size": 300, "block_size": 16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trainer")
    (folder / "a.txt").write_text("\n\n".join(f"document {n}: " + "some words " * 9 for n in range(40)))
    return folder


@pytest.fixture
def config(folder, tmp_path):
    """The content of a complete YAML, in a new runs folder."""
    return {
        "trainer": {
            "name": "run", "default_root_dir": str(tmp_path / "runs"), "max_steps": 2, "accelerator": "cpu",
            "enable_progress_bar": False, "logger": False,
        },
        "model": {"class_path": "PretrainModule", "init_args": {"overrides": {"n_layer": 1, "n_head": 2, "n_embd": 16}}},
        "data": {
            "class_path": "TextDataModule",
            "init_args": {
                "files": [str(folder / "a.txt")], "document_separator": "\n\n", "val_fraction": 0.2, "vocab_size": 300,
                "block_size": 16, "global_batch_size": 4, "cache_dir": str(folder / "cache"),
            },
        },
    }  # fmt: skip


@pytest.fixture
def fit(config, tmp_path, capsys):
    """Run `fit` in this process; returns the exit status and standard error."""

    def run(*words, **trainer):
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump(config | {"trainer": config["trainer"] | trainer}))
        capsys.readouterr()
        try:
            status = main(["fit", "--config", str(file), *words])
        except SystemExit as stop:
            status = stop.code
        return status, capsys.readouterr().err

    return run


def data(folder):
    init = {"document_separator": "\n\n", "val_fraction": 0.2, "vocab_size": 300, "block_size": 16}
    return TextDataModule(files=[str(folder / "a.txt")], global_batch_size=4, cache_dir=str(folder / "cache"), **init)


def quiet(tmp_path, **arguments):
    defaults = {"name": "run", "default_root_dir": str(tmp_path), "accelerator": "cpu", "logger": False, "max_steps": 1}
    return Trainer(**defaults | {"enable_progress_bar": False} | arguments)


# ---- what a run is called, and where it is -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "step-00000001.ckpt", None])
def test_names_that_no_run_can_have(tmp_path, name):
    with pytest.raises(UserError, match="name is"):
        Trainer(name=name, default_root_dir=str(tmp_path))


def test_a_root_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    for root, name in ((tmp_path / "file", "run"), (tmp_path, "file")):
        with pytest.raises(UserError, match="file is a file"):
            Trainer(name=name, default_root_dir=str(root))


@pytest.mark.parametrize("root", ["s3://bucket/runs", "gs://b", "hdfs://b/c", "file:///tmp/x", "memory://x"])
def test_addresses_are_no_folders(root):
    with pytest.raises(UserError, match="default_root_dir is"):
        Trainer(default_root_dir=root)


# ---- arguments -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "names"),
    [
        ({"val_check_interval": 0}, "val_check_interval is 0.*limit_val_batches"),
        ({"val_check_interval": 2.5}, "val_check_interval is 2.5"),
        ({"val_check_interval": -1}, "val_check_interval is -1"),
        ({"val_check_interval": "soon"}, "val_check_interval"),
        ({"devices": "two"}, "devices"),
        ({"strategy": "ddpp"}, "ddpp"),
        ({"callbacks": [RunCheckpoint(), RunCheckpoint(every_n_steps=5)]}, "two of RunCheckpoint"),
    ],
    ids=str,
)
def test_wrong_arguments(tmp_path, wrong, names):
    with pytest.raises(UserError, match=names):
        Trainer(default_root_dir=str(tmp_path), **wrong)


def test_a_whole_number_of_steps_may_be_written_as_a_float(tmp_path):
    assert quiet(tmp_path, val_check_interval=1e3).val_check_interval == 1000
    assert quiet(tmp_path, val_check_interval=0.5).val_check_interval == 0.5


def test_the_environment_replaces_defaults_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("PL_TRAINER_MAX_STEPS", "7")
    monkeypatch.setenv("PL_TRAINER_PRECISION", "bf16-mixed")
    monkeypatch.setenv("PL_TRAINER_ACCELERATOR", "gpu")
    trainer = Trainer("run", str(tmp_path), accelerator="cpu", logger=False)
    assert (trainer.max_steps, trainer.precision) == (7, "bf16-mixed")
    monkeypatch.setenv("PL_TRAINER_NAME", "x")
    with pytest.raises(UserError, match="PL_TRAINER_NAME"):
        Trainer(default_root_dir=str(tmp_path))


def test_weights_only_is_taken_and_changes_nothing(tmp_path, folder):
    for value in (True, False):
        trainer = quiet(tmp_path, name=f"run{value}")
        trainer.fit(PretrainModule(overrides=SMALL), datamodule=data(folder), weights_only=value)
        trainer.validate(PretrainModule(overrides=SMALL), datamodule=data(folder), ckpt_path="last", weights_only=value)


def test_an_optimizer_that_refuses_the_parameters(tmp_path, folder):
    module = PretrainModule(overrides=SMALL, optimizer=partial(torch.optim.Muon, lr=1e-3))
    with pytest.raises(UserError, match="optimizer.*2D"):
        quiet(tmp_path).fit(module, datamodule=data(folder))


# ---- the command line ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "names"),
    [
        ("trainer.name", 7, ["name", "7", "quotes"]),
        ("trainer.name", True, ["name", "True", "quotes"]),
        ("trainer.max_steps", 1e1, ["max_steps", "10.0", "write 10"]),
        ("trainer.precision", "bf17", ["precision", "bf17", "bf16-mixed"]),
        ("model.init_args.max_tokens", 1e9, ["max_tokens", "write 1000000000"]),
        ("model.init_args.overrides.n_layer", "x", ["n_layer", "x", "whole number"]),
        ("seed_everything", True, ["seed_everything", "True", "whole number"]),
        ("seed_everything", -1, ["seed_everything", "-1", "0"]),
        ("seed_everything", None, ["seed_everything", "None"]),
        ("trainer.devices", "two", ["devices"]),
        ("trainer.default_root_dir", "s3://bucket", ["default_root_dir", "s3://bucket"]),
    ],
)
def test_wrong_values_are_named_with_the_remedy(fit, config, key, value, names):
    *parents, last = key.split(".")
    place = config
    for parent in parents:
        place = place[parent]
    place[last] = value
    status, error = fit()
    assert status == 2
    assert "Traceback" not in error
    for name in names:
        assert name in error


@pytest.mark.parametrize("text", ["", "null", "[]", "a", "trainer: []", "{}"])
def test_a_config_that_is_none(tmp_path, capsys, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(tmp_path / "config.yaml")])
    error = capsys.readouterr().err
    assert "config" in error
    assert "model" in error


def test_a_message_about_a_union_names_all_its_kinds():
    message = 'Parser key "x": Does not validate against any of the Union subtypes Subtypes: [a] Errors: - Expected a '
    message += "<class 'int'> - Expected a <class 'NoneType'> Given value type: <class 'str'> Given value: y"
    assert short_message(message) == "x is y; it must be a whole number or null"


def test_our_class_is_meant_by_a_name_that_lightning_has_too(fit, config):
    config["trainer"]["callbacks"] = [{"class_path": "ThroughputMonitor"}]
    status, error = fit()
    assert status == 0, error


def test_a_callback_whose_default_is_an_enum(fit, config):
    config["trainer"]["callbacks"] = [{"class_path": "Timer", "init_args": {"duration": "00:00:05:00"}}]
    status, error = fit()
    assert status == 0, error


@pytest.mark.parametrize("plugin", ["AtomicCheckpointIO", "AsyncCheckpointIO"])
def test_plugins_may_have_short_names(fit, config, plugin):
    inner = {"class_path": "AtomicCheckpointIO"}
    entry = {"class_path": plugin} | ({"init_args": {"checkpoint_io": inner}} if plugin.startswith("Async") else {})
    config["trainer"]["plugins"] = [entry]
    status, error = fit()
    assert status == 0, error


def test_the_configuration_can_be_sent_to_another_process(fit, monkeypatch, tmp_path):
    sent = []

    @wraps(Trainer.fit)  # the command line derives its options from the signature
    def send(self, *args, **kwargs):
        sent.extend(pickle.loads(pickle.dumps([c for c in self.callbacks if isinstance(c, SaveRunConfig)])))

    monkeypatch.setattr(Trainer, "fit", send)
    status, error = fit()
    assert status == 0, error
    assert yaml.safe_load(sent[0]._text())["trainer"]["default_root_dir"] == str(tmp_path / "runs")


def test_lightnings_variables_are_named(fit, monkeypatch):
    monkeypatch.setenv("PL_TRAINER_MAX_STEPS", "7")
    status, error = fit()
    assert status == 0
    assert "PL_TRAINER_MAX_STEPS" in error
    assert "--trainer.max_steps" in error


# ---- checkpoints ---------------------------------------------------------------------------------------------------


def test_foreign_files_are_not_loaded(tmp_path):
    class Foreign:
        pass

    files = {name: tmp_path / name for name in ("text", "empty", "list", "other", "object")}
    files["text"].write_text("hello")
    files["empty"].write_bytes(b"")
    torch.save([1], files["list"])
    torch.save({"weights": torch.zeros(2)}, files["other"])
    Foreign.__qualname__ = "Foreign"
    sys.modules[__name__].Foreign = Foreign
    torch.save({"state_dict": Foreign()}, files["object"])
    for name, file in files.items():
        with pytest.raises(UserError, match=name) as caught:
            AtomicCheckpointIO().load_checkpoint(file)
        assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize("path", ["hpc", "registry", "registry:model", "nowhere"])
def test_checkpoints_that_no_run_has(tmp_path, folder, path):
    with pytest.raises(UserError, match=path):
        quiet(tmp_path).validate(PretrainModule(overrides=SMALL), datamodule=data(folder), ckpt_path=path)


def test_a_damaged_record_of_the_run_is_named_on_resume(fit, tmp_path):
    assert fit()[0] == 0
    run = tmp_path / "runs" / "run"
    for name, text in (("lineage.json", "[]"), ("config.yaml", "a: [b")):
        whole = (run / name).read_text()
        (run / name).write_text(text)
        status, error = fit("--ckpt_path", "last", max_steps=3)
        assert status == 2
        assert str(run / name) in error
        assert (run / name).read_text() == text
        (run / name).write_text(whole)
    assert fit("--ckpt_path", "last", max_steps=3)[0] == 0


def test_every_name_of_a_checkpoint_finds_its_tokenizer(fit, tmp_path, monkeypatch):
    assert fit()[0] == 0
    run = tmp_path / "runs" / "run"
    (checkpoint,) = list_checkpoints(run)
    (tmp_path / "link").symlink_to(checkpoint)
    (tmp_path / "run-link").symlink_to(run)
    for place, name in (
        (tmp_path, "link"), (tmp_path, "run-link"), (run, "."), (checkpoint, "."), (checkpoint.parent, checkpoint.name),
    ):  # fmt: skip
        monkeypatch.chdir(place)
        assert load_for_generation(name)[1].vocab_size == 300, (place, name)
    moved = tmp_path / "moved"
    os.rename(checkpoint, moved)
    checkpoint.symlink_to(moved)
    assert load_for_generation(str(run))[1].vocab_size == 300


def test_resuming_from_the_wrong_folder_does_not_advise_to_start_anew(fit, tmp_path, monkeypatch):
    assert fit()[0] == 0
    monkeypatch.chdir(tmp_path / "runs" / "run")
    status, error = fit("--ckpt_path", "last", default_root_dir="runs")
    assert status == 2
    assert str(Path("runs/run").absolute()) in error
    assert "default_root_dir" in error
    assert "start the run" not in error


# ---- before the first step -----------------------------------------------------------------------------------------


class Steps(pl.Callback):
    """Counts the optimizer steps that were started."""

    def __init__(self):
        self.count = 0

    def on_train_batch_start(self, *_):
        self.count += 1


def test_a_monitor_that_validation_does_not_log_is_refused_before_the_first_step(tmp_path, folder):
    for wrong in (RunCheckpoint(monitor="val/los"), EarlyStopping(monitor="val/accuracy")):
        steps = Steps()
        trainer = quiet(tmp_path, val_check_interval=1, callbacks=[wrong, steps])
        with pytest.raises(UserError, match=rf"{type(wrong).__name__}.*{wrong.monitor}.*val/loss"):
            trainer.fit(PretrainModule(overrides=SMALL), datamodule=data(folder))
        assert steps.count == 0
    for number, right in enumerate((RunCheckpoint(monitor="val/bits_per_byte"), EarlyStopping(monitor="val/rare"))):

        class Rare(PretrainModule):
            def evaluation_loss(self, batch):
                self.log_sum("rare", 1.0, 0 if self.trainer.sanity_checking else 1)
                return super().evaluation_loss(batch)

        trainer = quiet(tmp_path, name=str(number), val_check_interval=1, callbacks=[right])
        trainer.fit(Rare(overrides=SMALL), datamodule=data(folder))
        assert trainer.global_step == 1


def test_hyperparameters_that_no_checkpoint_can_hold(tmp_path, folder):
    class Saves(PretrainModule):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.save_hyperparameters()

    steps = Steps()
    trainer = quiet(tmp_path, callbacks=[steps])
    module = Saves(overrides=SMALL, optimizer=partial(torch.optim.SGD, lr=1e-3))
    with pytest.raises(UserError, match=r"Saves.*optimizer.*save_hyperparameters"):
        trainer.fit(module, datamodule=data(folder))
    assert steps.count == 0
    quiet(tmp_path).fit(Saves(overrides=SMALL), datamodule=data(folder))


# ---- what is logged ------------------------------------------------------------------------------------------------


def scalars(tmp_path, name="train/loss"):
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    return [event.step for event in events.Scalars(name)]


def test_a_short_run_logs_its_loss_and_a_resumed_one_shows_each_step_once(tmp_path, folder):
    def run(max_steps, **arguments):
        trainer = quiet(tmp_path, logger=None, max_steps=max_steps, callbacks=[RunCheckpoint(every_n_steps=2)])
        trainer.fit(PretrainModule(overrides=SMALL), datamodule=data(folder), **arguments)

    run(5)
    assert scalars(tmp_path) == [5]
    (tmp_path / "run" / "checkpoints" / "step-00000005.ckpt").rename(tmp_path / "gone")
    run(6, ckpt_path="last")
    assert scalars(tmp_path) == [6]


def test_steps_in_which_nothing_is_supervised_log_no_loss(tmp_path, folder):
    class Nothing(PretrainModule):
        def num_units(self, batch):
            return torch.zeros((), dtype=torch.int64)

    quiet(tmp_path, logger=None, log_every_n_steps=1, max_steps=2).fit(
        Nothing(overrides=SMALL), datamodule=data(folder)
    )
    with pytest.raises(KeyError):
        scalars(tmp_path)
    assert scalars(tmp_path, "optim/grad_norm") == [1, 2]


def test_processes_that_torchrun_starts_again_go_on(tmp_path, folder, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    quiet(tmp_path, max_steps=2).fit(PretrainModule(overrides=SMALL), datamodule=data(folder))
    with pytest.raises(UserError, match="already contains a run"):
        quiet(tmp_path, max_steps=4).fit(PretrainModule(overrides=SMALL), datamodule=data(folder))
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    again = quiet(tmp_path, max_steps=4)
    started = []
    again.callbacks.append(pl.callbacks.LambdaCallback(on_train_start=lambda run, _: started.append(run.global_step)))
    again.fit(PretrainModule(overrides=SMALL), datamodule=data(folder))
    assert started == [2]


def test_auto_starts_a_run_and_goes_on_with_it(tmp_path, folder):
    started = []
    for max_steps in (2, 4):
        trainer = quiet(tmp_path, max_steps=max_steps)
        trainer.callbacks.append(
            pl.callbacks.LambdaCallback(on_train_start=lambda run, _: started.append(run.global_step))
        )
        trainer.fit(PretrainModule(overrides=SMALL), datamodule=data(folder), ckpt_path="auto")
    assert started == [0, 2]
    with pytest.raises(UserError, match=r"ckpt_path is auto.*last"):
        trainer.validate(PretrainModule(overrides=SMALL), datamodule=data(folder), ckpt_path="auto")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [({}, (4, 2)), ({"devices": "auto"}, (4, 2)), ({"devices": 2}, (2, 1)), ({"num_nodes": 3}, (4, 3))],
)
def test_devices_are_the_processes_of_torchrun(tmp_path, monkeypatch, arguments, expected):
    given = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "RANK": "0", "LOCAL_RANK": "0"}
    for name, value in (given | {"GROUP_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}).items():
        monkeypatch.setenv(name, value)
    trainer = quiet(tmp_path, strategy="ddp", **arguments)
    assert (trainer.num_devices, trainer.num_nodes) == expected


def test_precision_auto_is_that_of_the_devices_and_a_resumed_run_keeps_it(tmp_path, folder, monkeypatch):
    def trained(name, fast, ckpt_path=None, steps=1, accelerator="cpu"):
        monkeypatch.setattr("lit_gpt.trainer.fast_precision", lambda kind: fast if kind == "cpu" else "16-true")
        trainer = quiet(tmp_path, name=name, precision="auto", max_steps=steps, accelerator=accelerator)
        trainer.fit(PretrainModule(overrides=SMALL), datamodule=data(folder), ckpt_path=ckpt_path)
        return trainer

    first = trained("run", "bf16-mixed")
    assert first.precision == "bf16-mixed"
    assert trained("run", "32-true", "last", 2).precision == "bf16-mixed"
    assert trained("auto", "32-true", accelerator="auto").precision == "32-true"
    with pytest.raises(UserError, match="trainer.precision: bf16-mixed"):  # of another run's folder
        trained("another", "32-true", str(list_checkpoints(first.run_dir)[0]), 3)


def test_precision_auto_on_the_command_line(fit, tmp_path, monkeypatch):
    monkeypatch.setattr("lit_gpt.trainer.fast_precision", lambda kind: "bf16-mixed")
    status, error = fit(precision="auto", max_steps=1)
    assert status == 0, error
    assert json.loads((tmp_path / "runs" / "run" / "lineage.json").read_text())["precision"] == "bf16-mixed"
    status, error = fit(precision="fast")
    assert status == 2
    assert "trainer.precision" in error
    assert "auto" in error
