"""Preference optimisation under a Trainer: the three references agree, cuts and kills change nothing."""

import json
import math

import lightning.pytorch as pl
import pytest
import torch
from small_chats import alpaca_rows, small_tokenizer, tokenizer_folder

from lit_gpt.adapters import AdapterConfig
from lit_gpt.checkpoints.bundle import save_bundle
from lit_gpt.datamodules import PreferenceDataModule
from lit_gpt.errors import UserError
from lit_gpt.models import GPT, GPTConfig
from lit_gpt.modules import DPOModule
from lit_gpt.trainer import Trainer

SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 32, "intermediate_size": 64, "block_size": 128}


class Record(pl.Callback):
    """First gradients, and each step's loss."""

    def __init__(self):
        self.losses = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if trainer.global_step == 0:
            self.gradients = {n: p.grad.clone() for n, p in pl_module.model.named_parameters() if p.grad is not None}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))


@pytest.fixture
def run(tmp_path):
    config = GPTConfig.from_preset("tiny", **SHAPE, vocab_size=small_tokenizer().vocab_size)
    base = save_bundle(tmp_path / "base", config, GPT(config).state_dict(), tokenizer_folder(tmp_path / "tokenizer"))
    pairs = [
        {"prompt": row["instruction"], "chosen": row["output"], "rejected": "stone " * (1 + n % 9)}
        for n, row in enumerate(alpaca_rows(24, longest=25))
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))

    def run(name="run", max_steps=3, ckpt_path=None, micro_batch_size="auto", lr=1e-3, **arguments):
        data = PreferenceDataModule(
            tokenizer=str(base), chat_template="chatml", files=str(tmp_path / "pairs.jsonl"), block_size=128,
            global_batch_size=8, micro_batch_size=micro_batch_size, val_fraction=0.25, cache_dir=str(tmp_path / "cache"),
        )  # fmt: skip
        module = DPOModule(
            init_from=str(base), vocab_size=data.vocab_size, block_size=128,
            optimizer=lambda groups: torch.optim.AdamW(groups, lr=lr), **arguments,
        )  # fmt: skip
        record = Record()
        trainer = Trainer(
            name=name, default_root_dir=str(tmp_path / "runs"), max_steps=max_steps, val_check_interval=2,
            accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[record], log_every_n_steps=1,
        )  # fmt: skip
        trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
        return module, trainer, record

    return run


def test_first_loss_is_ln_2_and_measures_are_logged(run):
    _, trainer, record = run(max_steps=4)
    assert record.losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert record.losses[-1] < record.losses[0]
    names = {
        "loss",
        "chosen_reward",
        "rejected_reward",
        "margin",
        "accuracy",
        "kl",
        "chosen_log_prob",
        "rejected_log_prob",
    }
    logged = {name.removeprefix("val/") for name in trainer.callback_metrics if name.startswith("val/")}
    assert logged == names, "and no perplexity of what is no language model's loss"
    assert trainer.callback_metrics["val/margin"] > 0


def test_frozen_and_precomputed_references_are_the_same(run, tmp_path):
    frozen, _, one = run("frozen", reference="frozen")
    computed, _, other = run("computed", reference="precomputed")
    assert one.losses == pytest.approx(other.losses, rel=1e-5)
    for a, b in zip(frozen.model.parameters(), computed.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert computed.reference.model is None, "no second model in memory"
    assert (tmp_path / "runs" / "computed" / "reference" / "train.safetensors").exists()


def test_a_disabled_adapter_is_the_frozen_base(run):
    adapter = AdapterConfig(rank=4, train_embeddings=True)
    disabled, _, one = run("disabled", adapter=adapter, lr=1e-2)
    assert disabled.reference.kind == "disabled_adapter"
    _, _, other = run("frozen", adapter=adapter, reference="frozen", lr=1e-2)
    assert one.losses == pytest.approx(other.losses, rel=1e-5)
    assert one.losses[-1] < 0.69


@pytest.mark.parametrize("loss_type", ["sigmoid", "orpo"])
@pytest.mark.parametrize("micro_batch_size", [1, 2])
def test_one_times_eight_is_eight_times_one(run, loss_type, micro_batch_size):
    *_, whole = run("whole", max_steps=1, loss_type=loss_type)
    *_, cut = run("cut", max_steps=1, loss_type=loss_type, micro_batch_size=micro_batch_size)
    assert whole.gradients.keys() == cut.gradients.keys()
    for name, gradient in whole.gradients.items():
        assert torch.linalg.norm(cut.gradients[name] - gradient) <= 2e-6 * torch.linalg.norm(gradient), name


@pytest.mark.parametrize("loss_type", ["ipo", "hinge", "robust", "simpo"])
def test_every_loss_trains(run, loss_type):
    extra = {"robust": {"label_smoothing": 0.1}, "simpo": {"beta": 2.0}}.get(loss_type, {})
    _, trainer, record = run(loss_type, max_steps=4, loss_type=loss_type, **extra)
    assert all(map(math.isfinite, record.losses))
    assert (trainer.lightning_module.reference.model is None) == (loss_type == "simpo")


@pytest.mark.parametrize("reference", ["frozen", "precomputed", "disabled_adapter"])
def test_resume_is_exact(run, reference):
    adapter = AdapterConfig(rank=4, dropout=0.1) if reference == "disabled_adapter" else None
    whole, *_ = run("whole", max_steps=5, reference=reference, adapter=adapter)
    run("cut", max_steps=2, reference=reference, adapter=adapter)
    resumed, *_ = run("cut", max_steps=5, ckpt_path="last", reference=reference, adapter=adapter)
    for (name, one), (_, other) in zip(whole.model.named_parameters(), resumed.model.named_parameters(), strict=True):
        assert torch.equal(one, other), name


def test_mistakes(run):
    with pytest.raises(UserError, match="there is no adapter"):
        DPOModule(reference="disabled_adapter")
    with pytest.raises(UserError, match="beta"):
        DPOModule(beta=-1.0)
