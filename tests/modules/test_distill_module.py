"""Distillation: nothing to learn from oneself, the teacher's words from a teacher, another tokenizer refused."""

import lightning.pytorch as pl
import pytest
import torch
from small_chats import alpaca_rows, small_tokenizer, tokenizer_folder, write_rows

from lit_gpt.checkpoints.bundle import save_bundle
from lit_gpt.data.bpe import train_bpe
from lit_gpt.datamodules import InstructionDataModule
from lit_gpt.errors import UserError
from lit_gpt.models import GPT, GPTConfig
from lit_gpt.modules import DistillModule
from lit_gpt.trainer import Trainer

SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 32, "intermediate_size": 64, "block_size": 160}


class Record(pl.Callback):
    def __init__(self):
        self.losses = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if trainer.global_step == 0:
            self.gradients = {n: p.grad.clone() for n, p in pl_module.model.named_parameters() if p.grad is not None}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))


@pytest.fixture
def teacher(tmp_path):
    config = GPTConfig.from_preset("tiny", **SHAPE | {"n_embd": 48}, vocab_size=small_tokenizer().vocab_size)
    return str(save_bundle(tmp_path / "teacher", config, GPT(config).state_dict(), tokenizer_folder(tmp_path / "tok")))


@pytest.fixture
def fit(tmp_path, teacher):
    def run(name="run", max_steps=2, micro_batch_size="auto", ckpt_path=None, tokenizer=None, **arguments):
        data = InstructionDataModule(
            tokenizer=tokenizer or teacher, chat_template="alpaca", system_prompt="S",
            files=write_rows(tmp_path / "rows.json", alpaca_rows(40)), packing=False, block_size=160,
            global_batch_size=8, micro_batch_size=micro_batch_size, val_fraction=0.2, cache_dir=str(tmp_path / "cache"),
        )  # fmt: skip
        defaults = {"overrides": SHAPE, "vocab_size": data.vocab_size} if "init_from" not in arguments else {}
        module = DistillModule(
            **{"teacher": teacher, "optimizer": lambda g: torch.optim.AdamW(g, lr=1e-2)} | defaults | arguments
        )
        record = Record()
        trainer = Trainer(
            name=name, default_root_dir=str(tmp_path / "runs"), max_steps=max_steps, val_check_interval=max_steps,
            accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[record],
        )  # fmt: skip
        trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
        return module, trainer, record

    return run


@pytest.mark.parametrize("divergence", ["forward", "reverse", "jsd"])
def test_into_itself_is_zero(fit, teacher, divergence):
    *_, record = fit(init_from=teacher, hard_weight=0.0, divergence=divergence, max_steps=1)
    assert record.losses[0] == pytest.approx(0.0, abs=1e-6)
    assert all(gradient.abs().max() < 1e-5 for gradient in record.gradients.values())


def test_the_student_comes_nearer(fit):
    _, trainer, record = fit(max_steps=25, hard_weight=0.0, temperature=2.0)
    assert record.losses[-1] < 0.5 * record.losses[0]
    assert {"val/divergence", "val/loss", "val/token_accuracy"} <= trainer.callback_metrics.keys()


@pytest.mark.parametrize("micro_batch_size", [1, 2])
def test_one_times_eight_is_eight_times_one(fit, micro_batch_size):
    whole = fit("whole", max_steps=1)[2].gradients
    cut = fit("cut", max_steps=1, micro_batch_size=micro_batch_size)[2].gradients
    for name, gradient in whole.items():
        assert torch.linalg.norm(cut[name] - gradient) <= 2e-6 * torch.linalg.norm(gradient), name


def test_resume_is_exact_and_without_the_teacher_in_the_checkpoint(fit, tmp_path):
    whole = fit("whole", max_steps=4)[0]
    fit("cut", max_steps=2)
    resumed = fit("cut", max_steps=4, ckpt_path="last")[0]
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert not any("teacher" in name for name in whole.state_dict())


def test_another_tokenizer_is_refused(fit, tmp_path):
    train_bpe(("completely other words about weather and ships" for _ in range(9)), 290).save(tmp_path / "other")
    with pytest.raises(UserError, match="is not that of the teacher"):
        fit(tokenizer=str(tmp_path / "other"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"divergence": "tv"}, "tv"),
        ({"temperature": 0.0}, "temperature"),
        ({"hard_weight": 2.0}, "hard_weight"),
        ({"beta": 1.0}, "beta"),
    ],
)
def test_mistakes(teacher, fields, message):
    with pytest.raises(UserError, match=message):
        DistillModule(teacher=teacher, overrides=SHAPE, **fields)
