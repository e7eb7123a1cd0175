"""Options that name a file or folder to write: `~` is the home folder, and an address is refused, not made a folder."""

import pytest

from lit_gpt.cache_dir import find_cache_dir
from lit_gpt.checkpoints.adapters import save_peft_folder
from lit_gpt.checkpoints.bundle import save_bundle
from lit_gpt.checkpoints.gguf import save_gguf
from lit_gpt.checkpoints.quantization import save_quantized_bundle
from lit_gpt.checkpoints.resolve import resolve_model
from lit_gpt.checkpoints.torch_program import save_torch_program
from lit_gpt.cli import main
from lit_gpt.data.pipeline.recipe import make_recipe
from lit_gpt.datamodules import TextDataModule
from lit_gpt.errors import UserError
from lit_gpt.models import GPT, GPTConfig
from lit_gpt.plugins import AtomicCheckpointIO

CONFIG = GPTConfig(n_layer=1, n_head=2, n_embd=8, block_size=8, vocab_size=11)
ADDRESS = "s3://bucket/folder"

CALLS = {
    "cache_dir of text": lambda path: TextDataModule(files=["a.txt"], global_batch_size=4, cache_dir=path),
    "cache_dir of find_cache_dir": find_cache_dir,
    "out of a bundle": lambda path: save_bundle(path, CONFIG, {}),
    "out of an adapter": lambda path: save_peft_folder(path, None),
    "out of GGUF": lambda path: save_gguf(f"{path}.gguf", CONFIG, {}),
    "out of a program": lambda path: save_torch_program(f"{path}.pt2", CONFIG, {}),
    "out of a quantized bundle": lambda path: save_quantized_bundle(path, CONFIG, {}, None, None, "x"),
    "out of a corpus": lambda path: make_recipe(path, [{"files": "a.txt"}]),
    "default_root_dir of a checkpoint": lambda path: AtomicCheckpointIO().save_checkpoint({}, path),
    "ckpt_path": lambda path: AtomicCheckpointIO().load_checkpoint(path),
    "model": resolve_model,
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_addresses_are_refused_by_the_option(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(UserError, match=rf"{name.split()[0]} is {ADDRESS}"):
        CALLS[name](ADDRESS)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_the_cache_of_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LIT_GPT_CACHE", "~/cache")
    assert find_cache_dir(None) == tmp_path / "cache"
    assert find_cache_dir("~/other") == tmp_path / "other"
    monkeypatch.setenv("LIT_GPT_CACHE", ADDRESS)
    with pytest.raises(UserError, match="LIT_GPT_CACHE"):
        find_cache_dir(None)


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    model = GPT(CONFIG)
    save_bundle("~/bundle", CONFIG, model.state_dict())
    assert resolve_model("~/bundle").config == CONFIG
    (tmp_path / "home" / "a.txt").write_text("some text " * 200)
    assert main(["tokenizer", "train", "--files", '["~/a.txt"]', "--vocab_size", "270", "--out", "~/tok"]) == 0
    assert (tmp_path / "home" / "tok").is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


@pytest.mark.parametrize(
    "words",
    [
        ["tokenizer", "train", "--files", '["a.txt"]', "--out"],
        ["prepare", "--sources", '[{"files": "a.txt"}]', "--out"],
        ["score", "--model", "nowhere", "--files", '["a.txt"]', "--out"],
        ["generate", "--model", "nowhere", "--out"],
    ],
    ids=lambda words: words[0],
)
def test_commands_refuse_addresses(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(SystemExit) as stop:
        raise SystemExit(main([*words, ADDRESS]))
    assert stop.value.code not in (0, None)
    assert f"out is {ADDRESS}" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
