"""A model after SFT ends its answers: the stop token is learned with the words."""

import pytest
import torch
from small_chats import alpaca_rows, small_tokenizer, tokenizer_folder, write_rows

from lit_gpt.checkpoints.bundle import save_bundle
from lit_gpt.data.chat import ChatRenderer
from lit_gpt.datamodules import InstructionDataModule
from lit_gpt.generation import Engine, SamplingParams
from lit_gpt.models import GPT, GPTConfig
from lit_gpt.modules import SFTModule
from lit_gpt.trainer import Trainer

SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 96, "intermediate_size": 192, "block_size": 160}


@pytest.mark.slow
@pytest.mark.parametrize("template", ["chatml", "alpaca"])
@pytest.mark.parametrize("packing", [True, False])
def test_answers_to_training_prompts_end(tmp_path, template, packing):
    """Of the answers that may be four times as long as the longest one learned, at least 95 % stop by themselves."""
    config = GPTConfig.from_preset("tiny", **SHAPE, vocab_size=small_tokenizer().vocab_size)
    model = GPT(config)
    model.init_weights(0)
    base = str(save_bundle(tmp_path / "base", config, model.state_dict(), tokenizer_folder(tmp_path / "tokenizer")))
    rows = alpaca_rows(60, longest=6)
    data = InstructionDataModule(
        tokenizer=base, chat_template=template, system_prompt="S", files=write_rows(tmp_path / "rows.json", rows),
        packing=packing, block_size=160, global_batch_size=4 if packing else 12, val_fraction=0.0,
        cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    module = SFTModule(
        init_from=base, vocab_size=data.vocab_size, optimizer=lambda groups: torch.optim.AdamW(groups, lr=4e-3)
    )
    trainer = Trainer(
        name="run", default_root_dir=str(tmp_path / "runs"), max_steps=200, accelerator="cpu", logger=False,
        enable_progress_bar=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    split = data.store.split("train")
    prompts, longest = [], 0
    for row in range(len(split)):
        ids, mask = split.sequence(row)
        first = int(mask.argmax())
        prompts.append(ids[:first].tolist())
        longest = max(longest, len(ids) - first)
    room = min(4 * longest, 160 - max(map(len, prompts)))
    assert room >= 2 * longest
    engine = Engine(module.model, data.chat_tokenizer, max_batch_size=20, max_length=160)
    params = SamplingParams(
        max_new_tokens=room, temperature=1.0, seed=1, stop_token_ids=ChatRenderer(data.chat_tokenizer).stop_ids
    )
    done = engine.generate(prompts, params)
    stopped = sum(completion.finish_reason == "stop" for completion in done) / len(done)
    assert stopped >= 0.95
