"""Pairs: their forms, the shared prompt, the batch's two halves, and rows that are none."""

import json
import re

import pytest
import torch
from small_chats import alpaca_rows, tokenizer_folder

from lit_gpt.data.instructions import preference_of
from lit_gpt.data.instructions.stdlib import StdlibPreferences
from lit_gpt.data.records import BadInput, Record
from lit_gpt.datamodules import FeedbackDataModule, PreferenceDataModule
from lit_gpt.datamodules.preference import FeedbackEncoder
from lit_gpt.errors import UserError

U, A, B = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}, {"role": "assistant", "content": "B"}
HH = "\n\nHuman: Q\n\nAssistant: first\n\nHuman: more\n\nAssistant: "


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Q", "chosen": "A", "rejected": "B"},
        {"prompt": [U], "chosen": [A], "rejected": [B]},
        {"prompt": "Q", "chosen": [U, A], "rejected": [U, B], "score_chosen": 3.0},
        {"instruction": "Q", "input": "", "output": "A", "chosen": "A", "rejected": "B"},
        {"chosen": "\n\nHuman: Q\n\nAssistant: A", "rejected": "\n\nHuman: Q\n\nAssistant: B"},
    ],
)
def test_forms(row):
    assert preference_of(row)[:3] == ([U], [A], [B])


def test_earlier_turns_are_shared():
    prompt, chosen, rejected = preference_of({"chosen": HH + "A", "rejected": HH + "B"})[:3]
    assert [m["content"] for m in prompt] == ["Q", "first", "more"]
    assert (chosen, rejected) == ([A], [B])
    assert preference_of({"prompt": "Q", "chosen": "A", "rejected": "B"}, system_prompt="S").prompt[0]["content"] == "S"


BAD = [
    ({"prompt": "Q", "chosen": "A"}, "no field 'rejected'"),
    ({"prompt": "Q", "chosen": "A", "rejected": "A"}, "equal"),
    ({"prompt": "Q", "chosen": "A", "rejected": ""}, "empty answer"),
    ({"chosen": "A", "rejected": "B"}, "no prompt"),
    ({"chosen": [U, A], "rejected": [{"role": "user", "content": "P"}, B]}, "different prompts"),
    ({"chosen": [U, A, U, A], "rejected": [U, A, {"role": "user", "content": "P"}, B]}, "not an answer"),
    ({"chosen": [A], "rejected": [A, U]}, "out of order|no prompt"),
    ({"prompt": 3, "chosen": "A", "rejected": "B"}, "int"),
]


@pytest.mark.parametrize(("row", "message"), BAD)
def test_rows_that_are_no_pairs(row, message):
    with pytest.raises(UserError, match=message):
        preference_of(row)


@pytest.fixture
def make(tmp_path):
    def make(rows=None, **arguments):
        pairs = [
            {"prompt": row["instruction"], "chosen": row["output"], "rejected": f"{row['output']} no"}
            for row in alpaca_rows(30)
        ]
        (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows or pairs))
        defaults = {
            "tokenizer": tokenizer_folder(tmp_path / "tokenizer"), "chat_template": "chatml", "block_size": 128,
            "files": str(tmp_path / "pairs.jsonl"), "global_batch_size": 4, "val_fraction": 0.2,
            "cache_dir": str(tmp_path / "cache"),
        }  # fmt: skip
        data = PreferenceDataModule(**(defaults | arguments))
        data.prepare_data()
        data.setup("fit")
        return data

    return make


def test_a_batch_is_chosen_then_rejected(make):
    data = make(val_fraction=0.0)
    for step in data.train_dataloader():
        (batch,) = step
        assert len(batch["labels"]) == 8
        assert torch.equal(*batch["sample_ids"].chunk(2))
        texts = [data.chat_tokenizer.decode(row[row != -100].tolist()) for row in batch["labels"]]
        for chosen, rejected in zip(texts[:4], texts[4:], strict=True):
            assert rejected == chosen.replace("<|im_end|>", " no<|im_end|>")


def test_bad_pairs_are_named(make):
    rows = [{"prompt": "Q", "chosen": "A", "rejected": "B"}] * 2 + [row for row, _ in BAD]
    with pytest.raises(UserError, match=r"pairs\.jsonl:3: no field 'rejected'"):
        make(rows)
    data = make(rows, on_bad_input="skip", val_fraction=0.0, global_batch_size=2)
    assert data.store.manifest["num_skipped"] == len(BAD)
    equal_when_cut = [{"prompt": "Q", "chosen": "red " * 200 + "x", "rejected": "red " * 200 + "y"}]
    with pytest.raises(UserError, match="within the context"):
        make(equal_when_cut)


def test_all_pairs_are_scored_once(make):
    data = make()
    numbers = [
        n for batch in data.scoring_batches("train") for n in batch["sample_ids"][: len(batch["labels"]) // 2].tolist()
    ]
    assert sorted(numbers) == list(range(len(data.store.split("train"))))


def test_pairs_of_the_standard_library():
    source = StdlibPreferences(max_lines=8)
    source.files = source.files[:40]
    rows = list(source.records(BadInput()))
    assert len(rows) > 30
    longer = 0
    for row in rows:
        preference = preference_of(row.values)
        chosen, rejected = preference.chosen[0]["content"], preference.rejected[0]["content"]
        compile(rejected, "x", "exec", dont_inherit=True)
        assert chosen.splitlines()[0] == rejected.splitlines()[0]
        longer += len(rejected) > len(chosen)
    assert 0.3 < longer / len(rows) < 0.95


def test_answers_of_one_kind_alone_are_mentioned(tmp_path, capsys):
    for label, said in ((True, "2 good, 0 bad; .* bad ones"), (False, "0 good, 2 bad; .* good ones")):
        rows = [{"prompt": "Q", "completion": text, "label": label} for text in "AB"]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        FeedbackDataModule(
            tokenizer=tokenizer_folder(tmp_path / "tokenizer"), chat_template="chatml", val_fraction=0.0,
            files=str(tmp_path / "rows.jsonl"), cache_dir=str(tmp_path / "cache"), block_size=64, global_batch_size=2,
        ).prepare_data()  # fmt: skip
        assert re.search(said, capsys.readouterr().err)


def test_of_several_answers_the_last_is_judged(tmp_path):
    history = [U, A, {"role": "user", "content": "more"}, B]
    renderer = PreferenceDataModule(
        tokenizer=tokenizer_folder(tmp_path / "tokenizer"), chat_template="chatml", block_size=64
    ).renderer
    encoded = FeedbackEncoder(renderer, 64)(Record({"messages": history, "label": True}, "rows"))
    ids, mask = encoded.sequences[0]
    assert renderer.tokenizer.decode([i for i, mine in zip(ids, mask, strict=True) if mine]) == "B<|im_end|>"
