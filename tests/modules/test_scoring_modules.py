"""Reward models and classifiers: oracles, the mean over a step, what is logged, and starting from a base."""

import json
import math

import lightning.pytorch as pl
import pytest
import torch
from small_chats import alpaca_rows, small_tokenizer, tokenizer_folder
from torch.nn import functional as F

from lit_gpt.adapters import AdapterConfig
from lit_gpt.checkpoints.bundle import save_bundle
from lit_gpt.cli import build_parser
from lit_gpt.commands.export import export
from lit_gpt.commands.score import score
from lit_gpt.data.classification import StdlibOrigins
from lit_gpt.data.records import BadInput
from lit_gpt.data.rows.loader import RowEvaluationLoader
from lit_gpt.datamodules import ClassificationDataModule, PreferenceDataModule
from lit_gpt.errors import UserError
from lit_gpt.generation.scorer import load_scorer
from lit_gpt.models import GPT, GPTConfig
from lit_gpt.modules import ClassificationModule, PretrainModule, RewardModule
from lit_gpt.trainer import Trainer

SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 32, "intermediate_size": 64, "block_size": 128, "tie_embeddings": False}


class FirstGradients(pl.Callback):
    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if trainer.global_step == 0:
            self.gradients = {n: p.grad.clone() for n, p in pl_module.model.named_parameters() if p.grad is not None}


@pytest.fixture
def base(tmp_path):
    config = GPTConfig.from_preset("tiny", **SHAPE, vocab_size=small_tokenizer().vocab_size)
    return str(
        save_bundle(tmp_path / "base", config, GPT(config).state_dict(), tokenizer_folder(tmp_path / "tokenizer"))
    )


@pytest.fixture
def fit(tmp_path, base):
    def run(kind, name="run", max_steps=3, ckpt_path=None, micro_batch_size="auto", lr=3e-3, rows=None, **arguments):
        path = tmp_path / f"{kind}.jsonl"
        common = {
            "tokenizer": base, "block_size": 128, "global_batch_size": 8, "micro_batch_size": micro_batch_size,
            "val_fraction": 0.25, "cache_dir": str(tmp_path / "cache"), "files": str(path),
        }  # fmt: skip
        own = {"init_from": base, "block_size": 128, "optimizer": lambda groups: torch.optim.AdamW(groups, lr=lr)}
        if kind == "reward":
            rows = rows or [
                {"prompt": row["instruction"], "chosen": row["output"], "rejected": "stone " * (1 + n % 9)}
                for n, row in enumerate(alpaca_rows(24, longest=25))
            ]
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            data = PreferenceDataModule(chat_template="chatml", **common)
            module = RewardModule(vocab_size=data.vocab_size, **own, **arguments)
        else:
            rows = rows or [
                {"text": f"{row['output']} {'red' if n % 2 else 'blue'}", "label": "warm" if n % 2 else "cold"}
                for n, row in enumerate(alpaca_rows(60, longest=20))
            ]
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            data = ClassificationDataModule(classes=["warm", "cold"], **common)
            module = ClassificationModule(classes=data.classes, vocab_size=data.vocab_size, **own, **arguments)
        keep = FirstGradients()
        trainer = Trainer(
            name=name, default_root_dir=str(tmp_path / "runs"), max_steps=max_steps, val_check_interval=max_steps,
            accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[keep],
        )  # fmt: skip
        trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
        return module, trainer, keep, data

    return run


@pytest.mark.parametrize("kind", ["reward", "classify"])
@pytest.mark.parametrize("micro_batch_size", [1, 2])
def test_one_times_eight_is_eight_times_one(fit, kind, micro_batch_size):
    whole = fit(kind, "whole", max_steps=1)[2].gradients
    cut = fit(kind, "cut", max_steps=1, micro_batch_size=micro_batch_size)[2].gradients
    assert whole.keys() == cut.keys()
    assert "score.weight" in whole
    assert "lm_head.weight" not in whole
    for name, gradient in whole.items():
        assert torch.linalg.norm(cut[name] - gradient) <= 2e-6 * torch.linalg.norm(gradient), name


def test_reward_is_bradley_terry_on_the_last_state(fit):
    module, trainer, _, data = fit("reward", max_steps=1)
    (batch,) = next(iter(data.train_dataloader()))
    module.train()
    scores = []
    for row in range(len(batch["labels"])):
        last = int(torch.nonzero(batch["labels"][row] != -100)[-1])
        hidden = module.model(batch["input_ids"][row : row + 1, : last + 1], head_fn=lambda hidden, *_: hidden)
        scores.append(float(module.model.score(hidden[0, -1])))
    expected = sum(-math.log(1 / (1 + math.exp(r - c))) for c, r in zip(scores[:8], scores[8:], strict=True))
    assert float(module.loss(batch).loss) == pytest.approx(expected, rel=1e-5)
    assert {"val/loss", "val/accuracy", "val/margin", "val/calibration_error"} <= trainer.callback_metrics.keys()
    assert "val/perplexity" not in trainer.callback_metrics
    module.center = 0.5
    centred = expected + 0.5 * sum((c + r) ** 2 for c, r in zip(scores[:8], scores[8:], strict=True))
    assert float(module.loss(batch).loss) == pytest.approx(centred, rel=1e-5)
    assert float(module.loss(batch).cross_entropy) == pytest.approx(expected, rel=1e-5)


def test_a_classifier_learns_and_predicts(fit):
    module, trainer, _, data = fit("classify", max_steps=40)
    assert trainer.callback_metrics["val/accuracy"] > 0.9
    assert trainer.callback_metrics["val/f1"] > 0.9
    assert module.confusion.sum() == len(data.store.split("val"))
    batch = next(iter(data.val_dataloader()))
    module.eval()
    predicted = module.predict_step(batch, 0)
    logits = module.scores(batch)
    torch.testing.assert_close(predicted["probabilities"], logits.softmax(1))
    expected = F.cross_entropy(logits, batch["classes"], reduction="sum")
    torch.testing.assert_close(module.loss(batch).loss, expected)


@pytest.mark.parametrize("kind", ["reward", "classify"])
@pytest.mark.parametrize("adapter", [None, AdapterConfig(rank=4)], ids=["full", "adapter"])
def test_resume_is_exact(fit, kind, adapter):
    whole = fit(kind, "whole", max_steps=4, adapter=adapter)[0]
    fit(kind, "cut", max_steps=2, adapter=adapter)
    resumed = fit(kind, "cut", max_steps=4, ckpt_path="last", adapter=adapter)[0]
    assert whole.model.score.weight.requires_grad
    for (name, one), (_, other) in zip(whole.model.named_parameters(), resumed.model.named_parameters(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "x"}, "no field 'label'"),
        ({"text": "x", "label": None}, "label is null"),
        ({"text": "", "label": "warm"}, "empty"),
        ({"text": 3, "label": "warm"}, "int"),
        ({"text": "x", "label": "hot"}, "classes are warm, cold"),
    ],
)
def test_bad_labelled_rows(fit, row, message):
    with pytest.raises(UserError, match=rf"classify\.jsonl:1: .*{message}"):
        fit("classify", rows=[row])


def test_mistakes():
    with pytest.raises(UserError, match="two names"):
        ClassificationModule()
    with pytest.raises(UserError, match="center"):
        RewardModule(center=-1.0)
    with pytest.raises(UserError, match="two different"):
        ClassificationDataModule(classes=["a", "a"], tokenizer="x")


def test_origins_of_functions():
    source = StdlibOrigins(["email", "unittest"], max_lines=5)
    rows = list(source.records(BadInput()))
    assert {row.values["label"] for row in rows} == {"email", "unittest"}
    assert not any(row.values["text"].startswith("def ") for row in rows)


@pytest.mark.parametrize("kind", ["reward", "classify"])
def test_a_batch_of_padding_alone_counts_nothing(fit, kind):
    """With several devices, the last batches of some hold no row at all."""
    module, _, _, data = fit(kind, max_steps=1)
    split = data.store.split("val")
    module.eval()
    empty = RowEvaluationLoader(split, data.collator(), 4, rank=len(split), world_size=len(split) + 1)[0]
    assert module.num_units(empty) == 0
    assert float(module.evaluation_loss(empty).loss) == 0.0


def test_a_reward_model_rates_from_the_command_line(fit, tmp_path):
    module, trainer, _, data = fit("reward", max_steps=2)
    rows = [{"prompt": row["instruction"], "completion": row["output"]} for row in alpaca_rows(9, seed=4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    last = str(trainer.run_dir / "checkpoints" / "step-00000002.ckpt")
    score(model=last, files=[str(tmp_path / "rows.jsonl")], out=str(tmp_path / "out.jsonl"), batch_size=4, device="cpu")
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    for row, line in zip(rows, written, strict=True):
        assert line["prompt"] == row["prompt"]
        chat = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
        ids = data.renderer(chat).ids[:-1]  # without the template's line feed after the stop token
        hidden = module.model(torch.tensor([ids[:-1]]), head_fn=lambda hidden, *_: hidden)[0, -1]
        assert line["reward"] == pytest.approx(float(module.model.score(hidden)), abs=1e-5)
    with pytest.raises(UserError, match="reward model or a classifier"):
        export(model=last, out=str(tmp_path / "bundle"))
    with pytest.raises(UserError, match="not a reward model"):
        load_scorer(data.tokenizer)


@pytest.mark.parametrize("module", [PretrainModule, RewardModule])
def test_the_command_to_try_is_one_that_the_parser_takes(module):
    words = module.try_it.replace("answers.jsonl", '["answers.jsonl"]').format(run="runs/mine", prompt="def").split()
    assert build_parser().parse_args(words)[words[0]].model == "runs/mine"


def test_a_classifier_is_tried_by_predicting():
    assert ClassificationModule.try_it.format(run="runs/mine", prompt="") == (
        "predict --config runs/mine/config.yaml --ckpt_path best"
    )
