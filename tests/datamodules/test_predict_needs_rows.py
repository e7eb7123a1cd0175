"""`predict` without a row to predict says so, instead of ending with nothing written."""

import pytest
from small_chats import alpaca_rows, tokenizer_folder, write_rows

from lit_gpt.datamodules import InstructionDataModule
from lit_gpt.errors import UserError


def test_predict_without_test_rows(tmp_path):
    data = InstructionDataModule(
        tokenizer=tokenizer_folder(tmp_path / "tokenizer"),
        chat_template="chatml",
        files=write_rows(tmp_path / "rows.jsonl", alpaca_rows(8)),
        cache_dir=str(tmp_path / "cache"),
    )
    data.prepare_data()
    with pytest.raises(UserError, match="no row fell into the test split; raise test_fraction, or name test_files"):
        data.setup("predict")
