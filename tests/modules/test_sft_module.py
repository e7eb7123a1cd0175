"""Supervised fine-tuning: the right mean, whatever the cut; new tokens; the measures."""

import json

import lightning.pytorch as pl
import pytest
import torch
from small_chats import alpaca_rows, small_tokenizer, tokenizer_folder, write_rows
from torch.nn import functional as F

from lit_gpt.checkpoints.bundle import save_bundle
from lit_gpt.data.bpe import train_bpe
from lit_gpt.data.rows.loader import RowEvaluationLoader
from lit_gpt.data_info import DataParallel
from lit_gpt.datamodules import InstructionDataModule
from lit_gpt.errors import UserError
from lit_gpt.models import GPT, GPTConfig
from lit_gpt.models.head import with_new_tokens
from lit_gpt.modules import PretrainModule, SFTModule
from lit_gpt.trainer import Trainer

SMALL = {"n_layer": 2, "n_head": 2, "n_embd": 32, "intermediate_size": 64, "block_size": 256}
ROWS = alpaca_rows(8, longest=30)
ROWS[0]["output"] = "two"
ROWS[1]["output"] = "stone river " * 30


class FirstGradients(pl.Callback):
    """Keeps the gradients that the optimizer gets."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.gradients = {name: p.grad.clone() for name, p in pl_module.model.named_parameters()}


@pytest.fixture
def make_data(tmp_path):
    def make(rows=ROWS, **arguments):
        defaults = {
            "tokenizer": tokenizer_folder(tmp_path / "tokenizer"),
            "chat_template": "chatml",
            "files": write_rows(tmp_path / "rows.json", rows),
            "block_size": 256,
            "global_batch_size": 8,
            "val_fraction": 0.0,
            "cache_dir": str(tmp_path / "cache"),
        }
        return InstructionDataModule(**(defaults | arguments))

    return make


def first_step(data, module=None, **arguments):
    """Gradients of the first optimizer step."""
    keep = FirstGradients()
    module = module or SFTModule(overrides=SMALL | {"vocab_size": data.vocab_size}, z_loss=1e-3)
    trainer = pl.Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[keep], limit_val_batches=0, **arguments,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return keep.gradients


def assert_same(one, other, tolerance=1e-6):
    assert one.keys() == other.keys()
    for name, gradient in one.items():
        assert torch.linalg.norm(other[name] - gradient) <= tolerance * torch.linalg.norm(gradient), name


@pytest.mark.parametrize("micro_batch_size", [1, 2, 4])
def test_one_times_eight_is_eight_times_one(make_data, micro_batch_size):
    whole = first_step(make_data(packing=False))
    assert_same(whole, first_step(make_data(packing=False, micro_batch_size=micro_batch_size)))


def test_packed_is_unpacked(make_data):
    data = make_data(packing=True, global_batch_size=4, block_size=256)
    data.prepare_data()
    data.setup("fit")
    bins = len(data.samples(data.store.split("train")))
    assert bins < len(ROWS)
    packed = first_step(make_data(packing=True, global_batch_size=bins))
    assert_same(first_step(make_data(packing=False)), packed, 2e-6)


def test_the_gradient_is_that_of_the_mean_over_the_answers_tokens(make_data):
    data = make_data(packing=False, micro_batch_size=2)
    actual = first_step(data)
    module = SFTModule(overrides=SMALL | {"vocab_size": data.vocab_size})
    model = module.build_model()
    model.init_weights(module.seed)
    losses = []
    z = []
    for row in ROWS:
        user = f"{row['instruction']}\n\n{row['input']}" if row["input"] else row["instruction"]
        tokenizer = data.chat_tokenizer
        start, end = (tokenizer.backend.token_to_id(token) for token in ("<|im_start|>", "<|im_end|>"))
        prompt = [start, *tokenizer.encode(f"user\n{user}").tolist(), end, *tokenizer.encode("\n").tolist(), start]
        prompt += tokenizer.encode("assistant\n").tolist()
        answer = [*tokenizer.encode(row["output"]).tolist(), end]
        ids = torch.tensor([[*prompt, *answer]])
        logits = model(ids)[0, len(prompt) - 1 : -1]
        losses.append(F.cross_entropy(logits, torch.tensor(answer), reduction="none"))
        z.append(logits.logsumexp(-1).square())
    loss = torch.cat(losses).mean() + 1e-3 * torch.cat(z).mean()
    expected = torch.autograd.grad(loss, list(model.parameters()))
    for (name, _), gradient in zip(model.named_parameters(), expected, strict=True):
        assert torch.linalg.norm(actual[name] - gradient) <= 1e-5 * torch.linalg.norm(gradient), name


def test_the_head_runs_on_the_answers_alone(make_data):
    data = make_data(packing=True)
    data.prepare_data()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))[0]
    module = SFTModule(overrides=SMALL | {"vocab_size": data.vocab_size})
    module.model = module.build_model()
    plain = {name: value for name, value in batch.items() if name != "target_index"}
    torch.testing.assert_close(module.loss(batch).loss, module.loss(plain).loss)
    pretrain = PretrainModule(overrides=SMALL | {"vocab_size": data.vocab_size})
    pretrain.model = module.model
    torch.testing.assert_close(module.loss(batch).loss, pretrain.loss(plain).loss)
    module.eval().evaluation_loss(batch)
    predictions = module.model(batch["input_ids"], batch["position_ids"], batch["document_ids"]).argmax(-1)
    answers = batch["labels"] != -100
    expected = (predictions == batch["labels"])[answers].float().mean().item()
    assert module._evaluation_sums.pop_means(DataParallel(), module.device) == {
        "token_accuracy": pytest.approx(expected)
    }


def test_new_tokens_get_sound_rows():
    weight = torch.randn(50, 8)
    grown = with_new_tokens(weight, 53, seed=1)
    assert torch.equal(grown[:50], weight)
    torch.testing.assert_close(grown[50:], weight.mean(0).expand(3, 8), atol=0.05, rtol=0)
    assert not torch.equal(grown[50], grown[51])
    assert with_new_tokens(weight, 40) is weight
    # Hewitt 2021: as rows of a head they take little probability from the old tokens.
    hidden = torch.randn(100, 8)
    before, after = (hidden @ weight.T).softmax(-1), (hidden @ grown.T).softmax(-1)[:, :50]
    assert (before / after).log().max() < torch.tensor(1 + 3 / 50).log() + 0.02


def test_from_a_base_with_a_smaller_vocabulary(make_data, tmp_path):
    config = GPTConfig.from_preset("tiny", **SMALL, vocab_size=small_tokenizer().vocab_size, tie_embeddings=False)
    base = GPT(config)
    save_bundle(tmp_path / "base", config, base.state_dict())
    data = make_data(rows=alpaca_rows(40), val_fraction=0.25)
    module = SFTModule(init_from=str(tmp_path / "base"), vocab_size=data.vocab_size, block_size=data.block_size)
    assert module.config.vocab_size == config.vocab_size + 2
    trainer = Trainer(
        default_root_dir=str(tmp_path / "runs"), max_steps=4, val_check_interval=2, accelerator="cpu", logger=False,
        enable_progress_bar=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    assert {"val/loss", "val/perplexity", "val/token_accuracy", "val/bits_per_byte"} <= trainer.callback_metrics.keys()
    assert 0 <= trainer.callback_metrics["val/token_accuracy"] <= 1
    old = base.state_dict()["wte.weight"]
    assert module.model.wte.weight.shape == (config.vocab_size + 2, 32)
    assert (module.model.wte.weight[: len(old)] - old).abs().max() < 0.1


def test_it_learns_to_answer_and_to_stop(make_data, tmp_path):
    """A tiny model learns eight answers by heart, and ends each of them by itself."""
    rows = [{"prompt": f"say {word}", "completion": f"{word} {word}"} for word in ("red", "blue", "two", "seven")]
    data = make_data(rows=rows * 2, packing=False, block_size=64)
    module = SFTModule(
        overrides=SMALL | {"vocab_size": data.vocab_size}, optimizer=lambda groups: torch.optim.AdamW(groups, lr=5e-3)
    )
    trainer = Trainer(
        default_root_dir=str(tmp_path / "runs"), max_steps=80, accelerator="cpu", logger=False,
        enable_progress_bar=False, enable_checkpointing=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    from lit_gpt.generation import generate

    for row in rows:
        ids = data.renderer([{"role": "user", "content": row["prompt"]}], add_generation_prompt=True).ids
        new = generate(module.model.eval(), torch.tensor([ids]), 30, temperature=0.0)[0, len(ids) :].tolist()
        stop = data.renderer.stop_ids[0]
        assert stop in new
        assert data.chat_tokenizer.decode(new[: new.index(stop)]) == row["completion"]


def test_another_tokenizer_than_the_bases_is_refused(make_data, tmp_path):
    config = GPTConfig.from_preset("tiny", **SMALL, vocab_size=300)
    train_bpe(("completely other words about weather and ships" for _ in range(9)), 290).save(tmp_path / "other")
    save_bundle(tmp_path / "base", config, GPT(config).state_dict(), tmp_path / "other")
    with pytest.raises(UserError, match="is not that of .*base: .* set data.init_args.tokenizer"):
        first_step(make_data(), SFTModule(init_from=str(tmp_path / "base"), vocab_size=302))


def test_an_exported_model_knows_its_stop_token(make_data, tmp_path):
    data = make_data()
    config = GPTConfig.from_preset("tiny", **SMALL, vocab_size=data.vocab_size)
    data.chat_tokenizer.save(tmp_path / "chat")
    folder = save_bundle(tmp_path / "bundle", config, GPT(config).state_dict(), tmp_path / "chat")
    ends = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    assert ends == [data.chat_tokenizer.backend.token_to_id("<|im_end|>"), data.chat_tokenizer.separator_id]


def test_a_batch_of_padding_alone_counts_nothing(make_data):
    """With several devices, the last batches of some hold no row at all."""
    data = make_data(val_fraction=0.5)
    data.prepare_data()
    data.setup("fit")
    module = SFTModule(overrides=SMALL | {"vocab_size": data.vocab_size})
    module.model = module.build_model()
    split = data.store.split("val")
    empty = RowEvaluationLoader(split, data.collator(), 4, rank=len(split), world_size=len(split) + 1)[0]
    assert module.num_units(empty) == 0
    assert float(module.evaluation_loss(empty).loss.detach()) == 0.0


def test_the_end_of_a_run_on_conversations_names_chat(make_data, tmp_path, capsys):
    data = make_data()
    module = SFTModule(overrides=SMALL | {"vocab_size": data.vocab_size})
    Trainer(
        default_root_dir=tmp_path / "runs", max_steps=1, accelerator="cpu", logger=False, limit_val_batches=0,
        enable_progress_bar=False,
    ).fit(module, datamodule=data)  # fmt: skip
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("try it")]
    assert line.split()[2:] == ["python", "-m", "lit_gpt", "chat", "--model", str(tmp_path / "runs" / "default")]
