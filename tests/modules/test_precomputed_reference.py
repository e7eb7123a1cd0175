"""`reference: precomputed` is the frozen reference wherever there are no tables: in `validate`, and on a resume."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from small_chats import alpaca_rows, small_tokenizer, tokenizer_folder

from lit_gpt.checkpoints.bundle import save_bundle
from lit_gpt.datamodules import FeedbackDataModule, PreferenceDataModule
from lit_gpt.models import GPT, GPTConfig
from lit_gpt.modules import DPOModule, KTOModule
from lit_gpt.trainer import Trainer

SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 32, "intermediate_size": 64, "block_size": 128}
KINDS = {"dpo": (DPOModule, PreferenceDataModule), "kto": (KTOModule, FeedbackDataModule)}


@pytest.fixture
def parts(tmp_path):
    """A trainer, a module and its data, of a kind and a reference."""
    config = GPTConfig.from_preset("tiny", **SHAPE, vocab_size=small_tokenizer().vocab_size)
    base = save_bundle(tmp_path / "base", config, GPT(config).state_dict(), tokenizer_folder(tmp_path / "tokenizer"))
    rows = alpaca_rows(24, longest=25)
    pairs = [{"prompt": r["instruction"], "chosen": r["output"], "rejected": "stone " * (1 + n % 9)}
             for n, r in enumerate(rows)]  # fmt: skip
    judged = [{"prompt": r["instruction"], "completion": "stone " * (1 + n % 9) if n % 2 else r["output"],
               "label": n % 2 == 0} for n, r in enumerate(rows)]  # fmt: skip
    for name, each in (("dpo", pairs), ("kto", judged)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in each))

    def parts(kind, reference, name, max_steps=10):
        module_class, data_class = KINDS[kind]
        data = data_class(
            tokenizer=str(base), chat_template="chatml", files=str(tmp_path / f"{kind}.jsonl"), block_size=128,
            global_batch_size=8, val_fraction=0.25, cache_dir=str(tmp_path / "cache"),
        )  # fmt: skip
        module = module_class(
            init_from=str(base), vocab_size=data.vocab_size, block_size=128, reference=reference,
            optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-2),
        )  # fmt: skip
        trainer = Trainer(
            name=name, default_root_dir=str(tmp_path / "runs"), max_steps=max_steps, val_check_interval=5,
            accelerator="cpu", logger=False, enable_progress_bar=False,
        )  # fmt: skip
        return trainer, module, data

    return parts


@pytest.mark.parametrize("kind", KINDS)
def test_validate_compares_with_the_first_weights(parts, kind):
    trainer, module, data = parts(kind, "precomputed", "run")
    trainer.fit(module, datamodule=data)
    in_fit = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
    checkpoint = trainer.checkpoint_callback.last_model_path
    found = {}
    for reference in ("frozen", "precomputed"):
        again, fresh, same_data = parts(kind, reference, f"again {reference}")
        (found[reference],) = again.validate(fresh, datamodule=same_data, ckpt_path=checkpoint, verbose=False)
    assert found["precomputed"] == pytest.approx(found["frozen"], rel=1e-6)
    assert found["precomputed"]["val/loss"] == pytest.approx(in_fit["val/loss"], rel=1e-5)
    measure = {"dpo": "val/margin", "kto": "val/desirable_reward"}[kind]
    assert found["precomputed"][measure] > 0.1, "the policy is not measured against itself"
    (right_after,) = trainer.validate(module, datamodule=data, verbose=False)
    for measured in (right_after, found["frozen"]):
        measured.pop("step", None)  # a checkpoint alone does not set it
    assert right_after == pytest.approx(found["frozen"], rel=1e-5)


def test_a_resume_without_its_tables_computes_the_same(parts, tmp_path):
    trainer, module, data = parts("dpo", "precomputed", "cut", max_steps=5)
    trainer.fit(module, datamodule=data)
    folder = tmp_path / "runs" / "cut" / "reference"
    before = {path.name: load_file(path)["log_probs"] for path in folder.iterdir()}
    shutil.rmtree(folder)
    trainer, module, data = parts("dpo", "precomputed", "cut", max_steps=6)
    trainer.fit(module, datamodule=data, ckpt_path="last")
    after = {path.name: load_file(path)["log_probs"] for path in folder.iterdir()}
    assert before.keys() == after.keys()
    for name, table in before.items():
        assert torch.equal(table, after[name]), name
