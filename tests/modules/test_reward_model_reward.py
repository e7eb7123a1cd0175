"""A trained `RewardModule` as the reward of a `GRPOModule`: the same numbers, and the policy moves to what it likes."""

import json

import pytest
import torch
from small_chats import alpaca_rows, small_tokenizer, tokenizer_folder

from lit_gpt.checkpoints.bundle import save_bundle
from lit_gpt.datamodules import PreferenceDataModule, PromptDataModule
from lit_gpt.models import GPT, GPTConfig
from lit_gpt.modules import GRPOModule, RewardModule
from lit_gpt.rewards import RewardModel, Sample
from lit_gpt.trainer import Trainer

SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 32, "intermediate_size": 64, "block_size": 96}
QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}


@pytest.fixture
def base(tmp_path):
    config = GPTConfig.from_preset("tiny", **SHAPE, vocab_size=small_tokenizer().vocab_size)
    model = GPT(config)
    model.init_weights(0)
    return str(save_bundle(tmp_path / "base", config, model.state_dict(), tokenizer_folder(tmp_path / "tokenizer")))


@pytest.fixture
def reward_run(tmp_path, base):
    """It prefers answers with many s."""
    rows = [
        {"prompt": row["instruction"], "chosen": "s " * (2 + n % 5), "rejected": row["output"]}
        for n, row in enumerate(alpaca_rows(48, longest=5))
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = PreferenceDataModule(
        tokenizer=base, chat_template="chatml", files=str(tmp_path / "pairs.jsonl"), block_size=96,
        global_batch_size=8, val_fraction=0.2, cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    module = RewardModule(
        init_from=base, vocab_size=data.vocab_size, optimizer=lambda groups: torch.optim.AdamW(groups, lr=3e-3)
    )
    trainer = Trainer(
        name="reward", default_root_dir=str(tmp_path / "runs"), max_steps=25, val_check_interval=25, **QUIET
    )
    trainer.fit(module, datamodule=data)
    assert trainer.callback_metrics["val/accuracy"] > 0.9
    return str(tmp_path / "runs" / "reward"), module, data


def sample_of(prompt, completion):
    return Sample([{"role": "user", "content": prompt}], completion, {}, 3, True, "rows.jsonl:1")


def test_it_gives_the_scores_of_its_module(reward_run):
    path, module, data = reward_run
    (batch,) = list(data.val_dataloader())[:1]
    with torch.no_grad():
        chosen, rejected = module.eval().scores(batch).squeeze(1).chunk(2)
    assert (chosen > rejected).float().mean() > 0.9
    reward = RewardModel(path, device="cpu", batch_size=2, empty=-5.0)
    low, high, empty = reward.rate([sample_of("blue", text) for text in ("river stone", "s s s s", " ")])
    assert high > low
    assert empty == -5.0
    renderer = data.renderer
    (rated,) = renderer.learned([*sample_of("blue", "").prompt, {"role": "assistant", "content": "s s s s"}])
    ids, mask = rated.ids, rated.mask
    end = max(place for place, mine in enumerate(mask) if mine)  # the stop token; it is predicted one before
    batch = {"input_ids": torch.tensor([ids[:end]]), "labels": torch.tensor([[-100] * (end - 1) + [ids[end]]])}
    with torch.no_grad():
        assert high == pytest.approx(float(module.scores(batch)), abs=1e-5)


def test_a_policy_follows_it(tmp_path, base, reward_run):
    path, *_ = reward_run
    rows = alpaca_rows(24, seed=3, longest=4)
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = PromptDataModule(
        tokenizer=base, chat_template="chatml", files=str(tmp_path / "prompts.jsonl"), block_size=96,
        max_prompt_tokens=80, global_batch_size=4, val_fraction=0.25, cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    module = GRPOModule(
        rewards=[RewardModel(path, device="cpu")], group_size=8, max_new_tokens=6, init_from=base,
        vocab_size=data.vocab_size, optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-2),
    )  # fmt: skip
    trainer = Trainer(
        name="policy", default_root_dir=str(tmp_path / "runs"), max_steps=40, val_check_interval=40, **QUIET
    )
    trainer.validate(module, datamodule=data, verbose=False)
    before = float(trainer.callback_metrics["val/reward"])
    assert trainer.callback_metrics["val/reward_reward_model"] == before
    trainer.fit(module, datamodule=data)
    assert float(trainer.callback_metrics["val/reward"]) > before + 0.2
