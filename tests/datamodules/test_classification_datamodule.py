"""Labelled texts: numbers as classes, and fields that nothing reads."""

import json

import pytest
import yaml
from small_chats import tokenizer_folder

from lit_gpt.datamodules.inspection import open_datamodule
from lit_gpt.errors import UserError

ROWS = [{"text": f"red {n}", "label": n % 2, "id": n} for n in range(8)]


@pytest.fixture
def opened(tmp_path):
    """Opens the DataModule that a YAML describes."""

    def opened(rows, **arguments):
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        init_args = {
            "tokenizer": tokenizer_folder(tmp_path / "tokenizer"), "files": str(tmp_path / "rows.jsonl"),
            "cache_dir": str(tmp_path / "cache"), "block_size": 32, "global_batch_size": 4, "val_fraction": 0.0,
            "classes": [0, 1],
        }  # fmt: skip
        data = {"class_path": "ClassificationDataModule", "init_args": init_args | arguments}
        (tmp_path / "run.yaml").write_text(yaml.safe_dump({"data": data}))
        return open_datamodule(tmp_path / "run.yaml", "fit")

    return opened


def test_numbers_are_classes(opened):
    data = opened(ROWS)
    assert data.data_info.classes == ["0", "1"]
    ((batch,), *_) = data.train_dataloader()
    texts = [data.chat_tokenizer.decode(row) for row in batch["input_ids"].tolist()]
    assert [int(text.split("red ")[1][0]) % 2 for text in texts] == batch["classes"].tolist()
    assert data.store.manifest["fields_left_out"] == {"id": 8}


def test_fields_that_nothing_reads(opened):
    rows = [row | {"body": "the rest"} for row in ROWS]
    with pytest.raises(UserError, match=r"rows\.jsonl:1: nothing reads its fields 'body'.*ignore_fields: \[body\]"):
        opened(rows)
    assert opened(rows, ignore_fields=["body"]).store.manifest["fields_left_out"] == {"body": 8, "id": 8}
