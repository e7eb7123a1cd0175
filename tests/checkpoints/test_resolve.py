"""Every way to name a model finds it, and a damaged checkpoint is named and passed over."""

import json
import os
import shutil

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file

from lit_gpt.checkpoints.bundle import save_bundle
from lit_gpt.checkpoints.huggingface import export_hf
from lit_gpt.checkpoints.resolve import find_best, find_last_complete, resolve_adapter, resolve_model
from lit_gpt.checkpoints.step import checkpoint_name, write_checkpoint
from lit_gpt.errors import UserError
from lit_gpt.models import GPT, GPTConfig

CONFIG = GPTConfig(n_layer=1, n_head=2, n_embd=8, block_size=8, vocab_size=11)


def weights_of(step):
    torch.manual_seed(step)
    return GPT(CONFIG).state_dict()


def save(run, step):
    weights = {f"model.{name}": value for name, value in weights_of(step).items()} | {"other.x": torch.zeros(1)}
    folder = run / "checkpoints" / checkpoint_name(step)
    write_checkpoint({"state_dict": weights, "lit_gpt": {"config": CONFIG.to_dict()}}, folder)
    return folder


def damage(folder, name="model.safetensors"):
    with open(folder / name, "r+b") as file:
        file.truncate(os.path.getsize(folder / name) - 3)


@pytest.fixture
def run(tmp_path):
    run = tmp_path / "run"
    for step in (10, 20, 30):
        save(run, step)
    (run / "tokenizer").mkdir()
    (run / "tokenizer" / "tokenizer.json").write_text("{}")
    (run / "lineage.json").write_text('{"corpus_sha256": "abc"}')
    return run


def is_step(source, step):
    state = source.load_state_dict()
    return state.keys() == weights_of(step).keys() and all(state[k].equal(v) for k, v in weights_of(step).items())


def test_last_is_the_newest_whole_one_and_the_damaged_are_named(run):
    checkpoints = run / "checkpoints"
    assert find_last_complete(run) == (checkpoints / checkpoint_name(30), [])
    damage(checkpoints / checkpoint_name(30), "state.pt")
    path, damaged = find_last_complete(run)
    assert path.name == checkpoint_name(20)
    assert len(damaged) == 1
    assert "step-00000030.ckpt/state.pt has" in damaged[0]
    (checkpoints / checkpoint_name(20) / "manifest.json").unlink()
    path, damaged = find_last_complete(run)
    assert path.name == checkpoint_name(10)
    assert len(damaged) == 2
    damage(path)
    with pytest.raises(UserError, match="damaged"):
        find_last_complete(run)
    with pytest.raises(UserError, match="--ckpt_path"):
        find_last_complete(run / "nothing")


def test_after_a_resume_from_an_earlier_one_the_last_is_the_last_saved(run):
    save(run, 15)
    assert find_last_complete(run)[0].name == checkpoint_name(15)


def test_half_written_folders_are_not_checkpoints(run):
    shutil.copytree(run / "checkpoints" / checkpoint_name(30), run / "checkpoints" / ".tmp-step-00000040.ckpt-1")
    assert find_last_complete(run)[0].name == checkpoint_name(30)


def test_a_run_stands_for_its_best_or_else_its_newest(run):
    source = resolve_model(run)
    assert source.path.name == checkpoint_name(30)
    assert source.kind == "checkpoint"
    assert source.config == CONFIG
    assert source.tokenizer_path == run / "tokenizer"
    assert source.lineage == {"corpus_sha256": "abc"}
    assert is_step(source, 30)
    record = {"checkpoint": checkpoint_name(20), "step": 20, "monitor": "val/loss", "value": 1.0}
    (run / "checkpoints" / "best.json").write_text(json.dumps(record))
    assert is_step(resolve_model(str(run)), 20)
    assert find_best(run).name == checkpoint_name(20)
    damage(run / "checkpoints" / checkpoint_name(20))
    source = resolve_model(run)
    assert is_step(source, 30)
    assert "step-00000020.ckpt/model.safetensors" in source.damaged[0]


def test_best_needs_a_validation(run):
    with pytest.raises(UserError, match="--ckpt_path last"):
        find_best(run)


def test_a_checkpoint_of_its_own(run, tmp_path):
    source = resolve_model(run / "checkpoints" / checkpoint_name(10))
    assert is_step(source, 10)
    assert source.tokenizer_path == run / "tokenizer"
    moved = tmp_path / "moved"
    shutil.copytree(run / "checkpoints" / checkpoint_name(10), moved)
    source = resolve_model(moved)
    assert is_step(source, 10)
    assert source.tokenizer_path is None
    damage(moved)
    with pytest.raises(UserError, match=r"model\.safetensors"):
        resolve_model(moved)


def test_a_checkpoint_of_another_module_is_refused(tmp_path):
    folder = tmp_path / checkpoint_name(1)
    write_checkpoint({"state_dict": {"w": torch.zeros(1)}}, folder)
    with pytest.raises(UserError, match="configuration"):
        resolve_model(folder)


def test_bundles_and_hugging_face_folders(tmp_path):
    bundle = save_bundle(tmp_path / "bundle", CONFIG, weights_of(1), lineage={"a": 1})
    source = resolve_model(bundle)
    assert (source.kind, source.config, source.lineage) == ("bundle", CONFIG, {"a": 1})
    assert source.load_state_dict()["wte.weight"].equal(weights_of(1)["wte.weight"])
    damage(bundle)
    with pytest.raises(UserError, match=r"model\.safetensors"):
        resolve_model(bundle)

    folder = tmp_path / "hugging_face"
    export_hf(CONFIG, weights_of(2), folder)
    source = resolve_model(folder)
    assert (source.kind, source.config.n_embd) == ("hugging_face", 8)
    assert source.load_state_dict()["wte.weight"].equal(weights_of(2)["wte.weight"])


def test_a_hub_name_is_downloaded_as_data_alone(tmp_path, monkeypatch):
    export_hf(CONFIG, weights_of(2), tmp_path / "cached")
    asked = {}

    def snapshot_download(name, **kwargs):
        asked[name] = kwargs
        return str(tmp_path / "cached")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert resolve_model("org/name").config.n_embd == 8
    assert not any(pattern.endswith((".bin", ".py", ".pt")) for pattern in asked["org/name"]["allow_patterns"])

    def unreachable(*_, **__):
        raise OSError("no network\nmore")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(UserError, match="no network$"):
        resolve_model("org/name")


def test_an_old_hub_model_has_pickles_alone(tmp_path, monkeypatch):
    folder = tmp_path / "cached"
    export_hf(CONFIG, weights_of(2), folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    asked = []

    def snapshot_download(name, **kwargs):
        asked.append(kwargs["allow_patterns"])
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    source = resolve_model("org/old")
    assert source.load_state_dict()["wte.weight"].equal(weights_of(2)["wte.weight"])
    first, second = asked
    assert not any(pattern.endswith(".bin") for pattern in first)
    assert "pytorch_model*.bin" in second
    assert not any(pattern.endswith((".py", ".pt", ".pkl")) for pattern in first + second)


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "a/b/c", "file.txt/x/y", "~/nowhere/at/all"])
def test_what_does_not_exist(name):
    with pytest.raises(UserError, match="does not exist"):
        resolve_model(name)


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(UserError, match="checkpoints/.*config.json"):
        resolve_model(tmp_path)
    with pytest.raises(UserError, match="checkpoint"):
        (tmp_path / "checkpoints").mkdir()
        resolve_model(tmp_path)


@pytest.mark.parametrize(("name", "remedy"), [("model.bin", "gguf"), ("model.txt", "folder")])
def test_a_file_is_refused_as_a_file(tmp_path, name, remedy):
    (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(UserError, match=rf"{name} is a file.*{remedy}"):
        resolve_model(tmp_path / name)


def test_a_model_that_is_missing_is_answered_with_what_is_here(tmp_path, monkeypatch):
    """Near runs first, without asking the hub where only a folder can be meant; a YAML whose run is missing is named."""
    (tmp_path / "runs" / "sft_chat" / "checkpoints").mkdir(parents=True)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "first.yaml").write_text("trainer:\n  name: pretrained # a comment\n")
    monkeypatch.chdir(tmp_path)

    class TransportError(Exception):
        """Of httpx, httpx2 or whatever the Hub's library connects with."""

    def unreachable(*_, **__):
        raise TransportError("[Errno -2] Name or service not known")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    for name, expected in (
        ("sft_chat", "runs/sft_chat"),
        ("runs/sft_chatt", "runs/sft_chat"),
        ("sft_chats", "(?i)hub.*runs/sft_chat"),
        ("runs/pretrained", "fit --config configs/first.yaml"),
        ("org/name", "(?i)hub"),
    ):
        with pytest.raises(UserError, match=expected) as refused:
            resolve_model(name)
        assert "Errno" not in str(refused.value)
    with pytest.raises(UserError, match="runs/sft_chat"):
        resolve_adapter("runs/sft_chatt")
