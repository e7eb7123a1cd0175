"""KTO: the first loss by hand, the reference point of the whole step, exact resume, and rows without a label."""

import json

import lightning.pytorch as pl
import pytest
import torch
from small_chats import alpaca_rows, small_tokenizer, tokenizer_folder

from lit_gpt.checkpoints.bundle import save_bundle
from lit_gpt.datamodules import FeedbackDataModule
from lit_gpt.errors import UserError
from lit_gpt.models import GPT, GPTConfig
from lit_gpt.modules import KTOModule
from lit_gpt.trainer import Trainer

SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 32, "intermediate_size": 64, "block_size": 128}
ROWS = [
    {"prompt": row["instruction"], "completion": row["output"] if n % 3 else "stone stone", "label": bool(n % 3)}
    for n, row in enumerate(alpaca_rows(32, longest=25))
]


class Record(pl.Callback):
    def __init__(self):
        self.losses, self.gradients = [], []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.gradients.append({n: p.grad.clone() for n, p in pl_module.model.named_parameters()})

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))


@pytest.fixture
def fit(tmp_path):
    config = GPTConfig.from_preset("tiny", **SHAPE, vocab_size=small_tokenizer().vocab_size)
    base = save_bundle(tmp_path / "base", config, GPT(config).state_dict(), tokenizer_folder(tmp_path / "tokenizer"))

    def run(
        name="run", max_steps=3, rows=ROWS, micro_batch_size="auto", ckpt_path=None, data_arguments=None, **arguments
    ):
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        data = FeedbackDataModule(
            tokenizer=str(base), chat_template="chatml", files=str(tmp_path / "rows.jsonl"), block_size=128,
            global_batch_size=8, micro_batch_size=micro_batch_size, val_fraction=0.25, cache_dir=str(tmp_path / "cache"),
            **(data_arguments or {}),
        )  # fmt: skip
        module = KTOModule(
            init_from=str(base),
            vocab_size=data.vocab_size,
            optimizer=lambda g: torch.optim.AdamW(g, lr=1e-2),
            **arguments,
        )
        record = Record()
        trainer = Trainer(
            name=name, default_root_dir=str(tmp_path / "runs"), max_steps=max_steps, val_check_interval=max_steps,
            accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[record],
        )  # fmt: skip
        trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
        return module, trainer, record, data

    return run


def test_first_loss_is_a_half_and_rewards_part(fit):
    _, trainer, record, data = fit(max_steps=12)
    assert record.losses[0] == pytest.approx(0.5), "policy = reference, so every sigmoid is at 0"
    assert trainer.callback_metrics["val/desirable_reward"] > trainer.callback_metrics["val/undesirable_reward"]
    (batch,) = next(iter(data.train_dataloader()))
    assert batch["desirable"].tolist() == [
        data.store.split("train").number("desirable")[n] > 0 for n in batch["sample_ids"]
    ]
    for row in range(8):
        prompt = int((batch["labels"][row] != -100).int().argmax()) + 1
        assert torch.equal(batch["input_ids"][row, :prompt], batch["mismatched"]["input_ids"][row, :prompt])


@pytest.mark.parametrize("micro_batch_size", [1, 2])
def test_one_times_eight_is_eight_times_one(fit, micro_batch_size):
    whole = fit("whole", max_steps=3)[2].gradients
    cut = fit("cut", max_steps=3, micro_batch_size=micro_batch_size)[2].gradients
    for one, other in zip(whole, cut, strict=True):  # later steps have a reference point other than 0
        for name, gradient in one.items():
            assert torch.linalg.norm(other[name] - gradient) <= 1e-4 * torch.linalg.norm(gradient), name


def test_resume_is_exact(fit):
    whole = fit("whole", max_steps=4)[0]
    fit("cut", max_steps=2)
    resumed = fit("cut", max_steps=4, ckpt_path="last")[0]
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_frozen_and_precomputed_references_are_the_same(fit, tmp_path):
    frozen, _, one, _ = fit("frozen", max_steps=4)
    computed, trainer, other, data = fit("computed", max_steps=4, reference="precomputed")
    assert one.losses == pytest.approx(other.losses, rel=1e-5)
    for a, b in zip(frozen.model.parameters(), computed.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert computed.reference.model is None, "no second model in memory"
    kept = tmp_path / "runs" / "computed" / "reference" / "train.safetensors"
    before = kept.stat().st_mtime_ns
    resumed = fit("computed", max_steps=5, ckpt_path="last", reference="precomputed")[0]
    assert kept.stat().st_mtime_ns == before, "a resume reads it"
    whole = fit("whole", max_steps=5)[0]
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    trainer.validate(computed, datamodule=data, verbose=False)


def test_mistakes(fit):
    with pytest.raises(UserError, match=r"rows\.jsonl:1: its label is None"):
        fit(rows=[{"prompt": "a", "completion": "b"}])
    with pytest.raises(UserError, match="desirable_weight"):
        KTOModule(desirable_weight=0.0)
    fit(
        rows=[{**row, "ok": str(row["label"])} | {"label": 5} for row in ROWS],
        data_arguments={"columns": {"label": "ok"}, "ignore_fields": ["label"]},
    )
