"""A published model goes on reading texts as its publisher says, whichever command its copy came from."""

import json
from pathlib import Path

import pytest
from small_chats import tokenizer_folder
from tokenizers import Tokenizer, processors

from lit_gpt.checkpoints.bundle import Carried
from lit_gpt.checkpoints.huggingface import export_hf
from lit_gpt.checkpoints.resolve import resolve_model
from lit_gpt.cli import main
from lit_gpt.errors import UserError
from lit_gpt.generation.loading import source_tokenizer
from lit_gpt.models import GPT, GPTConfig

CONFIG = GPTConfig(
    n_layer=1, n_head=2, n_embd=32, vocab_size=304, block_size=48, family="llama", norm="rmsnorm", bias=False,
    positions="rope", mlp="swiglu", intermediate_size=64,
)  # fmt: skip


@pytest.fixture
def published(tmp_path):
    """A Hugging Face folder whose tokenizer puts token 7 before each text, and whose texts end with token 5."""
    folder = Path(tokenizer_folder(tmp_path / "published"))
    export_hf(CONFIG, GPT(CONFIG).state_dict(), folder, eos_token_id=5)
    rules = Tokenizer.from_file(str(folder / "tokenizer.json"))
    opening = rules.id_to_token(7)
    rules.post_processor = processors.TemplateProcessing(single=f"{opening} $0", special_tokens=[(opening, 7)])
    rules.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("command", [["quantize", "--measure", "false"], ["export", "--check", "false"], ["import"]])
def test_a_copy_opens_and_ends_texts_alike(published, tmp_path, command):
    out = tmp_path / "copy"
    assert main([*command, "--model", str(published), "--out", str(out)]) == 0
    for folder in (published, out):
        tokenizer = source_tokenizer(resolve_model(folder))
        assert tokenizer.opening_ids == (7,)
        assert tokenizer.stop_ids == (0, 5)
    lineage = json.loads((out / "lineage.json").read_text())
    assert lineage["imported_from"] == "published"  # and no path of this machine
    assert "from `published`" in (out / "README.md").read_text()


@pytest.mark.parametrize("ids", ["abc", {"a": 1}, [1, "x"], [True], 1.5])
def test_ends_that_are_no_numbers(ids):
    with pytest.raises(UserError, match="eos_token_id is .*; it must be a number or a list of them"):
        _ = Carried(generation_config={"eos_token_id": ids}).eos_token_ids
