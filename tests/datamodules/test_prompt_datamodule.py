"""Prompts end where an answer begins, bring their rows along, and come in an order that nothing disturbs."""

import json

import lightning.pytorch as pl
import pytest
from small_chats import alpaca_rows, tokenizer_folder

from lit_gpt.datamodules import PromptDataModule
from lit_gpt.errors import UserError


@pytest.fixture
def prompts(tmp_path):
    tokenizer = tokenizer_folder(tmp_path / "tokenizer")

    def prompts(rows=None, **arguments):
        rows = alpaca_rows(30) if rows is None else rows
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        data = PromptDataModule(
            tokenizer=tokenizer, chat_template="chatml", files=str(tmp_path / "rows.jsonl"),
            cache_dir=str(tmp_path / "cache"), **{"block_size": 256, "val_fraction": 0.2, "global_batch_size": 4, **arguments},
        )  # fmt: skip
        data.prepare_data()
        data.setup("fit")
        return data

    return prompts


def numbers(step):
    return [[prompt["number"] for prompt in group] for group in step[0]["prompts"]]


def test_prompts_and_their_rows(prompts):
    rows = alpaca_rows(30)
    data = prompts(rows)
    seen = {}
    for batch in [step[0] for step in data.train_dataloader()] + list(data.val_dataloader()):
        for (prompt,) in batch["prompts"]:
            row = rows[int(prompt["where"].split(":")[1]) - 1]
            seen[prompt["where"]] = prompt
            assert prompt["row"] == row, "the answer goes to the rewards"
            text = data.chat_tokenizer.decode(prompt["ids"])
            content = f"{row['instruction']}\n\n{row['input']}" if row["input"] else row["instruction"]
            assert text == f"<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n"
            assert prompt["messages"] == [{"role": "user", "content": content}]
    assert len(seen) >= 24


@pytest.mark.parametrize(
    "row",
    [
        {"question": "2 + 2?", "answer": "#### 4"},
        {"prompt": "2 + 2?"},
        {"prompt": [{"role": "user", "content": "2 + 2?"}], "solution": 4},
        {"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]},
    ],
)
def test_forms(prompts, row):
    data = prompts([row], val_fraction=0.0, global_batch_size=1)
    ((batch,),) = list(data.train_dataloader())
    assert batch["prompts"][0][0]["messages"] == [{"role": "user", "content": "2 + 2?"}]


def test_order_depends_on_seed_and_step_alone(prompts):
    loader = prompts().train_dataloader()
    first = [numbers(step) for step in loader]
    second = [numbers(step) for step in loader]
    assert first != second
    again = prompts().train_dataloader()
    again.load_state_dict({**loader.state_dict(), "position": 4 * 4})
    assert [numbers(step) for step in again] == (first[4:] + second)[: len(first)]


def test_candidates_and_updates(prompts):
    data = prompts(candidates=2, updates_per_rollout=3)
    steps = list(data.train_dataloader())
    assert len(steps) % 3 == 0
    for start in range(0, len(steps), 3):
        assert numbers(steps[start]) == numbers(steps[start + 2])
        assert [(step[0]["rollout"], step[0]["update"]) for step in steps[start : start + 3]] == [
            (start // 3, update) for update in range(3)
        ]
    assert all(len(group) == 2 for group in numbers(steps[0]))
    used = [number for step in steps[::3] for group in numbers(step) for number in group]
    assert len(set(used)) == len(used)


def test_overfitting_repeats_whole_rollouts(prompts):
    data = prompts(updates_per_rollout=2)
    data.trainer = pl.Trainer(accelerator="cpu", devices=1, logger=False, overfit_batches=1)
    loader = data.train_dataloader()
    steps = [next(iter(loader))[0] for _ in range(4)]
    assert [(step["rollout"], step["update"]) for step in steps] == [(0, 0), (0, 1)] * 2


def test_bad_rows(prompts):
    rows = [{"prompt": "a"}, {"prompt": "word " * 300}]
    data = prompts(rows, val_fraction=0.0, global_batch_size=1)
    assert data.store.manifest["notes"] == {"left out as longer than max_prompt_tokens": 1}
    with pytest.raises(UserError, match=r"rows\.jsonl:2: its prompt has \d+ tokens, more than max_prompt_tokens 128"):
        prompts(rows, long_rows="error")
    for bad, problem in [
        ({"text": "a"}, "set columns"),
        ({"prompt": "  "}, "is empty"),
        ({"messages": [{"role": "system", "content": "a"}]}, "nothing to answer"),
        ({"prompt": 3}, "not text or messages"),
    ]:
        with pytest.raises(UserError, match=rf"rows\.jsonl:2: .*{problem}"):
            prompts([{"prompt": "a"}, bad])
        assert prompts([{"prompt": "a"}, bad], on_bad_input="skip", val_fraction=0.0).store.manifest["num_skipped"] == 1
    with pytest.raises(UserError, match="drop or error"):
        prompts(long_rows="cut")
    with pytest.raises(UserError, match="max_prompt_tokens is 256"):
        prompts(max_prompt_tokens=256)
