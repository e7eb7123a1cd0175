"""The base of all objectives under a Trainer: precision, limits, resuming, starting from weights."""

import itertools
import pickle
import warnings
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers.logger import DummyLogger

import lit_gpt.modules
from lit_gpt.callbacks import RunCheckpoint, ThroughputMonitor
from lit_gpt.checkpoints.bundle import save_bundle
from lit_gpt.checkpoints.resolve import read_best, resolve_model
from lit_gpt.data_info import DataInfo, DataParallel
from lit_gpt.datamodules import TokenDataModule
from lit_gpt.errors import UserError
from lit_gpt.models import GPT, GPTConfig, kernel_choice, linear, training_kernels
from lit_gpt.modules import PretrainModule, SFTModule
from lit_gpt.objectives import linear_cross_entropy
from lit_gpt.optim import Cosine, MuonAdamW
from lit_gpt.plugins import AtomicCheckpointIO
from lit_gpt.trainer import Trainer

SMALL = {"n_layer": 1, "n_head": 2, "n_embd": 16, "intermediate_size": 32, "vocab_size": 300, "block_size": 16}


class Counting(TokenDataModule):
    """A small corpus: 14 steps an epoch."""

    def documents(self):
        for number in range(60):
            yield f"{number} " * 20


class Trace(pl.Callback):
    """Samples of each step, and what the loss was."""

    def __init__(self):
        self.samples, self.rates = {}, {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.samples[trainer.global_step] = [i for micro in batch for i in micro["sample_ids"].tolist()]
        self.rates[trainer.global_step] = trainer.optimizers[0].param_groups[0]["lr"]


@pytest.fixture
def data(tmp_path):
    def make():
        return Counting(
            block_size=16, global_batch_size=8, vocab_size=300, val_fraction=0.2, cache_dir=str(tmp_path / "cache")
        )

    return make


@pytest.fixture
def fit(tmp_path, data):
    """Train a small module in a run's folder; returns module, trainer and trace."""

    def run(name="run", ckpt_path=None, module=None, **arguments):
        trace = Trace()
        arguments = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False} | arguments
        trainer = Trainer(name=name, default_root_dir=str(tmp_path / "runs"), callbacks=[trace], **arguments)
        module = module or PretrainModule(overrides=SMALL)
        trainer.fit(module, datamodule=data(), ckpt_path=ckpt_path)
        return module, trainer, trace

    return run


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("optimizer", [None, MuonAdamW])
def test_half_precisions_clip_and_train(fit, precision, optimizer):
    module, trainer, _ = fit(
        module=PretrainModule(overrides=SMALL, optimizer=optimizer),
        precision=precision,
        max_steps=3,
        val_check_interval=3,
    )
    assert trainer.global_step == 3
    assert module.val_metrics.loss_sum.dtype == torch.float64, "sums of losses keep their precision"
    assert 0 < trainer.callback_metrics["val/loss"] < 10


def test_a_resumed_run_keeps_its_kernels_where_the_machine_would_choose_others(fit, tmp_path, monkeypatch):
    monkeypatch.setenv("LIT_GPT_KERNELS", str(tmp_path / "kernels.json"))
    monkeypatch.setattr(linear, "_LARGE", 1)
    monkeypatch.setattr(training_kernels, "_FEW", 1)
    module = partial(PretrainModule, overrides=SMALL | {"n_embd": 32})

    def run(seconds, **arguments):
        """Train where each later measurement takes `seconds` more."""
        kernel_choice.restore_choices({})
        monkeypatch.setattr(kernel_choice, "_restored", {})
        times = itertools.count(0, seconds)
        for place in (linear, training_kernels):
            monkeypatch.setattr(place, "best_time", lambda *_, times=times: next(times))
        trained, *_ = fit(module=module(), **arguments)
        (tmp_path / "kernels.json").unlink(missing_ok=True)  # not written where all choices are restored
        return [p.detach().clone() for p in trained.parameters()]

    whole = run(-1, name="whole", max_steps=4)
    other = run(1, name="other", max_steps=4)
    run(-1, name="cut", max_steps=2)
    resumed = run(1, name="cut", max_steps=4, ckpt_path="last")
    assert all(map(torch.equal, whole, resumed))
    assert not all(map(torch.equal, whole, other)), "other kernels differ in the last bits"
    kernel_choice.restore_choices({})


def test_another_seed_is_refused_on_resume(fit):
    fit(max_steps=1)
    with pytest.raises(UserError, match="seed 0, not 5; set seed_everything: 0"):
        fit(max_steps=2, ckpt_path="last", module=PretrainModule(overrides=SMALL, seed=5))


def test_clipping_does_clip(fit):
    norms = {}

    for clip in (None, 1e-3):
        module = PretrainModule(overrides=SMALL)
        step = module.configure_gradient_clipping

        def clipped(optimizer, *arguments, step=step, clip=clip, module=module, **kwargs):
            step(optimizer, *arguments, **kwargs)
            norms[clip] = torch.nn.utils.get_total_norm([p.grad for p in module.model.parameters()]).item()

        module.configure_gradient_clipping = clipped
        fit(name=f"clip{clip}", module=module, precision="bf16-mixed", max_steps=1, gradient_clip_val=clip)
    assert norms[None] > 1e-2
    assert norms[1e-3] <= 1.001e-3


def test_a_run_in_epochs_goes_on_where_it_was(fit):
    def module():
        return PretrainModule(overrides=SMALL, schedule=Cosine(warmup_steps=2, final=0.0))

    _, trainer, whole = fit(name="whole", module=module(), max_epochs=2)
    total = trainer.global_step
    assert total == 2 * trainer.num_training_batches
    fit(name="part", module=module(), max_epochs=2, max_steps=5)
    _, _, rest = fit(name="part", module=module(), max_epochs=2, ckpt_path="last")
    assert sorted(rest.samples) == list(range(6, total + 1))
    assert rest.samples == {step: whole.samples[step] for step in rest.samples}


def test_max_tokens_stops_saves_and_trains_no_further(fit):
    module, trainer, trace = fit(module=PretrainModule(overrides=SMALL, max_tokens=5 * 8 * 16), max_steps=50)
    assert trainer.global_step == 5
    assert module.tokens_seen == 640
    assert trainer.checkpoint_callback.last_model_path.endswith("step-00000005.ckpt")
    again, trainer, trace = fit(
        module=PretrainModule(overrides=SMALL, max_tokens=5 * 8 * 16), max_steps=50, ckpt_path="last"
    )
    assert trace.samples == {}
    assert again.tokens_seen == 640


@pytest.mark.parametrize(("tokens_per_step", "tokens"), [(None, 12 + 20), (24, 2 * 12)])
def test_ranks_with_rows_of_different_lengths_agree_on_the_tokens_of_a_step(monkeypatch, tokens_per_step, tokens):
    class Two(DataParallel):
        def sum(self, value):
            return value + torch.tensor([9, 20] if value.dim() else 9)  # the other rank: 9 units, 20 tokens

    info = DataInfo(data_parallel=Two(rank=0, size=2), tokens_per_step=tokens_per_step)
    monkeypatch.setattr(PretrainModule, "data_info", info)
    module = PretrainModule(overrides=SMALL)
    ids = torch.zeros(2, 6, dtype=torch.int64)
    assert module._count_step([{"input_ids": ids, "labels": ids}]) == 12 + 9
    assert module.tokens_seen == tokens


def test_a_resumed_run_logs_what_the_whole_run_logs(fit):
    """At 2, a checkpoint is saved where the sums are logged; at 5, between two entries of the log."""

    class Log(DummyLogger):
        def __init__(self):
            super().__init__()
            self.found = {}

        def log_metrics(self, metrics, step=None):
            if "train/loss" in metrics:
                assert step not in self.found
                self.found[step] = metrics["train/loss"]

    def losses(*stops):
        found = {}
        for stop in stops:
            log = Log()
            options = {"max_steps": stop, "log_every_n_steps": 2, "limit_val_batches": 0, "name": f"{stops}"}
            fit(logger=log, ckpt_path="last" if found else None, **options)
            found |= log.found
        return found

    assert losses(2, 5, 8) == losses(8)


def test_a_changed_learning_rate_wins_on_resume(fit):
    def module(lr, weight_decay):
        return PretrainModule(
            overrides=SMALL, optimizer=lambda groups: torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay)
        )

    fit(module=module(1e-3, 0.1), max_steps=3)
    resumed, trainer, trace = fit(module=module(5e-4, 0.2), max_steps=5, ckpt_path="last")
    assert set(trace.rates.values()) == {5e-4}
    decays = {group["name"]: group["weight_decay"] for group in trainer.optimizers[0].param_groups}
    assert decays["matrices"] == 0.2
    assert decays["vectors"] == 0.0


def test_another_model_is_refused_by_the_names_of_its_fields(fit):
    fit(max_steps=2)
    with pytest.raises(UserError, match="n_layer is 2 here and 1 in the checkpoint"):
        fit(module=PretrainModule(overrides={**SMALL, "n_layer": 2}), max_steps=4, ckpt_path="last")


def test_init_from_starts_from_weights_and_refuses_what_does_not_fit_them(tmp_path, fit):
    config = GPTConfig(**SMALL)
    model = GPT(config)
    bundle = save_bundle(tmp_path / "bundle", config, model.state_dict())
    module = PretrainModule(
        init_from=str(bundle), overrides={"dropout": 0.1}, optimizer=lambda g: torch.optim.SGD(g, lr=1e-9)
    )
    fit(module=module, max_steps=1)
    assert module.config.dropout == 0.1
    torch.testing.assert_close(module.model.wte.weight, model.wte.weight, atol=1e-6, rtol=0)
    with pytest.raises(UserError, match="n_layer"):
        PretrainModule(init_from=str(bundle), overrides={"n_layer": 2})
    with pytest.raises(UserError, match="block_size 32"):
        PretrainModule(init_from=str(bundle), block_size=32)


def test_an_optimizer_of_ones_own(fit):
    class Own(PretrainModule):
        def build_optimizer(self, groups):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    _, trainer, _ = fit(module=Own(overrides=SMALL), max_steps=2, log_every_n_steps=1)
    assert trainer.global_step == 2


def test_measuring_with_last_measures_the_trained_weights(fit, tmp_path, data):
    _, trainer, _ = fit(max_steps=4, val_check_interval=4)
    expected = trainer.callback_metrics["val/loss"].item()
    fresh = Trainer(default_root_dir=str(tmp_path / "runs"), name="run", accelerator="cpu", logger=False)
    for which in ("last", "best"):
        result = fresh.validate(PretrainModule(overrides=SMALL), datamodule=data(), ckpt_path=which)
        assert result[0]["val/loss"] == pytest.approx(expected, rel=1e-6)


def test_a_refused_run_leaves_no_folder(fit, tmp_path):
    module = PretrainModule(overrides=SMALL, optimizer=lambda groups: torch.optim.SGD(groups, lr=0.0))
    with pytest.raises(UserError, match="learning rate is 0"):
        fit(name="refused", module=module, max_steps=2, logger=None)
    assert not (tmp_path / "runs" / "refused").exists()


def test_a_second_run_does_not_fall_upon_the_first(fit):
    fit(max_steps=1)
    with pytest.raises(UserError, match="--ckpt_path last"):
        fit(max_steps=1)


def weights_of(path):
    return resolve_model(str(path)).load_state_dict()


class OwnLoss(PretrainModule):
    """As in PretrainModule's docstring."""

    def loss(self, batch):
        return self(batch, head_fn=partial(linear_cross_entropy, labels=batch["labels"]))


def test_blocks_ahead_are_built_only_where_they_are_trained(tmp_path, fit):
    assert PretrainModule(overrides=SMALL | {"multi_token": 1}).config.multi_token == 1
    with pytest.raises(UserError, match="multi_token is 1, but OwnLoss does not train"):
        OwnLoss(overrides=SMALL | {"multi_token": 1})

    class Further(OwnLoss):
        pass

    class Ahead(OwnLoss):
        trains_mtp = True

        def loss(self, batch):
            return PretrainModule.loss(self, batch)

    with pytest.raises(UserError, match="multi_token is 1, but Further"):
        Further(overrides=SMALL | {"multi_token": 1})
    assert Ahead(overrides=SMALL | {"multi_token": 1}).config.multi_token == 1

    fit("ahead", module=PretrainModule(overrides=SMALL | {"multi_token": 1}), max_steps=1)
    run = str(tmp_path / "runs" / "ahead")
    for module in (SFTModule(init_from=run), OwnLoss(init_from=run)):
        assert module.config.multi_token == 0
    module, *_ = fit("own", module=OwnLoss(init_from=run), max_steps=1)
    assert module.model.multi_token is None
    assert all(parameter.grad is not None for parameter in module.model.parameters())


def test_blocks_ahead_that_the_source_lacks_start_at_random(tmp_path, fit):
    def still(init_from, count):
        sgd = partial(torch.optim.SGD, lr=1e-12)
        return PretrainModule(init_from=init_from, overrides={"multi_token": count}, optimizer=sgd)

    fit("ahead", module=PretrainModule(overrides=SMALL | {"multi_token": 1}), max_steps=2)
    run = str(tmp_path / "runs" / "ahead")
    source = weights_of(run)
    longer, *_ = fit("longer", module=still(run, 2), max_steps=1)
    for name, parameter in longer.model.named_parameters():
        if not name.startswith("multi_token.1."):
            torch.testing.assert_close(parameter, source[name], atol=1e-6, rtol=0)
    fresh = GPT(longer.config)
    fresh.init_weights(0)
    torch.testing.assert_close(
        longer.model.multi_token[1].proj.weight, fresh.multi_token[1].proj.weight, atol=1e-6, rtol=0
    )

    config = GPTConfig(**SMALL)
    bundle = save_bundle(tmp_path / "bundle", config, GPT(config).state_dict())
    module, *_ = fit("first", module=still(str(bundle), 1), max_steps=1)
    assert len(module.model.multi_token) == 1
    assert resolve_model(str(tmp_path / "runs" / "first")).config.multi_token == 1


def test_a_model_that_cannot_be_exported_is_said_so_at_once():
    with pytest.warns(UserWarning, match=r"could not be exported.*family 'gemma3' cannot express embedding_scale 2.0"):
        PretrainModule(preset="gemma-3-270m", overrides={"embedding_scale": 2.0})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PretrainModule(preset="gemma-3-270m", overrides={"n_embd": 256, "n_layer": 2})


# ---- what people run into ----------------------------------------------------------------------------------------------


def test_accumulation_by_a_stock_trainer_is_refused(data, tmp_path):
    arguments = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "max_steps": 4}
    scheduler = pl.callbacks.GradientAccumulationScheduler({0: 1, 1: 2})
    for changed in ({"accumulate_grad_batches": 4}, {"callbacks": [scheduler], "max_epochs": 2, "max_steps": -1}):
        trainer = pl.Trainer(default_root_dir=str(tmp_path), enable_checkpointing=False, **arguments | changed)
        with pytest.raises(UserError, match="accumulate_grad_batches.*global_batch_size and micro_batch_size"):
            trainer.fit(PretrainModule(overrides=SMALL), datamodule=data())


def checkpointed(tmp_path, data, name, max_steps, ckpt_path=None, lr=1e-3):
    trainer = Trainer(
        name=name, default_root_dir=str(tmp_path / "runs"), accelerator="cpu", logger=False, enable_progress_bar=False,
        max_steps=max_steps, val_check_interval=4, callbacks=[RunCheckpoint(every_n_steps=4)],
    )  # fmt: skip
    module = PretrainModule(overrides=SMALL, optimizer=lambda groups: torch.optim.SGD(groups, lr=lr))
    trainer.fit(module, datamodule=data(), ckpt_path=ckpt_path)
    return trainer


def test_the_record_of_the_best_belongs_to_the_weights_that_are_there(tmp_path, data):
    first = checkpointed(tmp_path, data, "run", 12)
    run = tmp_path / "runs" / "run"
    assert read_best(run / "checkpoints")["step"] == 12
    best = first.callback_metrics["val/loss"].item()
    again = checkpointed(tmp_path, data, "run", 12, ckpt_path=str(run / "checkpoints" / "step-00000008.ckpt"), lr=30.0)
    ruined = again.callback_metrics["val/loss"].item()
    assert ruined > best + 0.1
    record = read_best(run / "checkpoints")
    assert record is None or record["step"] != 12 or record["value"] == pytest.approx(ruined)


def test_a_run_is_not_resumed_from_another_runs_checkpoint(tmp_path, data):
    for name in ("a", "b"):
        checkpointed(tmp_path, data, name, 4)
    other = tmp_path / "runs" / "a" / "checkpoints" / "step-00000004.ckpt"
    with pytest.raises(UserError, match="--trainer.name"):
        checkpointed(tmp_path, data, "b", 8, ckpt_path=str(other))
    assert [path.name for path in (tmp_path / "runs" / "b" / "checkpoints").glob("*.ckpt")] == ["step-00000004.ckpt"]
    assert checkpointed(tmp_path, data, "c", 8, ckpt_path=str(other)).global_step == 8, "a new run may start there"


def test_a_missing_metric_costs_no_trained_step(tmp_path, data):
    trainer = Trainer(
        name="run", default_root_dir=str(tmp_path), accelerator="cpu", logger=False, enable_progress_bar=False,
        max_steps=8, val_check_interval=4, callbacks=[RunCheckpoint(monitor="val/accuracy")], default_callbacks=False,
    )  # fmt: skip
    with pytest.raises(UserError, match="val/accuracy"):
        trainer.fit(PretrainModule(overrides=SMALL), datamodule=data())
    assert (tmp_path / "run" / "checkpoints" / "step-00000004.ckpt").is_dir()


def test_a_checkpoint_without_a_trainer(tmp_path, fit):
    fit(max_steps=2)
    checkpoint = tmp_path / "runs" / "run" / "checkpoints" / "step-00000002.ckpt"
    module = PretrainModule.load_from_checkpoint(checkpoint)
    source = resolve_model(str(checkpoint))
    assert module.config == source.config
    weights = source.load_state_dict()
    assert all(torch.equal(parameter, weights[name]) for name, parameter in module.model.named_parameters())
    logits = module.model(torch.arange(8)[None])
    assert logits.shape == (1, 8, 300)


def test_every_objective_opens_weights_without_a_trainer(tmp_path):
    config = GPTConfig(**SMALL)
    weights = GPT(config).state_dict()
    bundle = str(save_bundle(tmp_path / "bundle", config, weights))
    needed = {"ClassificationModule": {"classes": ["a", "b"]}, "DistillModule": {"teacher": bundle}}
    needed["GRPOModule"] = {"rewards": [lambda **_: 0.0]}
    for name in lit_gpt.modules.__all__:
        kind, arguments = getattr(lit_gpt.modules, name), needed.get(name, {})
        module = kind(init_from=bundle, **arguments)
        module.configure_model()
        for opened in (module, kind.load_from_checkpoint(bundle, map_location="cpu", **arguments)):
            assert torch.equal(opened.model.wte.weight, weights["wte.weight"]), name


def test_a_budget_that_is_used_up_says_so(fit, capsys):
    fit(module=PretrainModule(overrides=SMALL, max_tokens=128), max_steps=3)
    fit(module=PretrainModule(overrides=SMALL, max_tokens=128), max_steps=3, ckpt_path="last")
    assert "max_tokens is 128" in capsys.readouterr().out


def test_the_runs_root(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Trainer(name="x", default_root_dir="~/runs", logger=False).run_dir == tmp_path / "runs" / "x"
    with pytest.raises(UserError, match="s3://bucket"):
        Trainer(name="x", default_root_dir="s3://bucket/runs")


def test_default_callbacks_can_be_sent_to_another_process():
    pickle.dumps(ThroughputMonitor())
    callback = RunCheckpoint()
    callback.best_model_path = ""  # what a launcher hands back
    assert callback.run_dir == Path()
    callback.best_model_path = "runs/a/checkpoints/step-00000002.ckpt"
    assert callback.run_dir == Path("runs/a")


def test_other_trainer_settings(tmp_path, data):
    common = {"accelerator": "cpu", "default_root_dir": str(tmp_path / "runs"), "max_steps": 2}
    double = Trainer(name="double", precision="64-true", logger=False, enable_progress_bar=False, **common)
    double.fit(PretrainModule(overrides=SMALL), datamodule=data())
    assert double.global_step == 2
    bare = Trainer(name="bare", barebones=True, **common)
    bare.fit(PretrainModule(overrides=SMALL), datamodule=data())
    assert bare.global_step == 2
    bar = pl.callbacks.TQDMProgressBar(refresh_rate=0)
    with_bar = Trainer(name="bar", callbacks=[bar], logger=False, **common)
    with_bar.fit(PretrainModule(overrides=SMALL), datamodule=data())
    assert with_bar.progress_bar_callback is bar


@pytest.mark.parametrize("kind", [Trainer, pl.Trainer])
def test_processes_of_torchrun_that_would_each_train_the_run(kind, tmp_path, data, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", "2")
    arguments = {"default_root_dir": str(tmp_path), "logger": False, "devices": 1, "accelerator": "cpu"}
    with pytest.raises(UserError, match=r"trainer\.devices"):
        kind(plugins=[AtomicCheckpointIO()], **arguments).fit(PretrainModule(overrides=SMALL), datamodule=data())


def test_the_bar_of_a_stock_trainer_has_no_negative_number_of_epochs(tmp_path, data, capsys):
    bar = pl.callbacks.RichProgressBar()
    arguments = {"default_root_dir": str(tmp_path), "logger": False, "enable_checkpointing": False}
    trainer = pl.Trainer(max_steps=2, accelerator="cpu", callbacks=[bar], **arguments)
    trainer.fit(PretrainModule(overrides=SMALL), datamodule=data())
    assert "Epoch 0 " in capsys.readouterr().out
