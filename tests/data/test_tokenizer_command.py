from pathlib import Path

import pytest
from small_texts import make_texts

from lit_gpt.commands.tokenizer import train
from lit_gpt.data.tokenizers import load_tokenizer
from lit_gpt.errors import UserError


def test_it_trains_writes_and_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("\n".join(make_texts(100)), encoding="utf-8")
    train([str(tmp_path / "a.txt")], str(tmp_path / "tok"), vocab_size=320, special_tokens=["<|user|>"], pattern="gpt4")
    told = capsys.readouterr().out
    assert "trained 320 entries" in told
    assert "bytes per token" in told
    assert str(tmp_path / "tok") in told
    loaded = load_tokenizer(tmp_path / "tok")
    assert (loaded.vocab_size, loaded.backend.token_to_id("<|user|>")) == (320, 1)
    with pytest.raises(UserError, match="--out"):
        train([str(tmp_path / "a.txt")], str(tmp_path / "tok"))


def test_small_texts_and_bad_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("ab ab")
    train([str(tmp_path / "a.txt")], str(tmp_path / "tok"))
    assert "for 4096 entries" in capsys.readouterr().out
    (tmp_path / "b.txt").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"b\.txt: it is not valid UTF-8"):
        train([str(tmp_path / "b.txt")], str(tmp_path / "other"))
    (tmp_path / "c.txt").touch()
    with pytest.raises(UserError, match="no text"):
        train([str(tmp_path / "c.txt")], str(tmp_path / "other"))
    assert not (tmp_path / "other").exists()
