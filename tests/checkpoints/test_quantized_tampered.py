"""A quantised bundle from a stranger, whose hashes are right: whatever does not fit the model is one sentence."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_chats import tokenizer_folder

from lit_gpt.checkpoints.provenance import write_manifest
from lit_gpt.checkpoints.quantization import Quantization, save_quantized_bundle
from lit_gpt.errors import UserError
from lit_gpt.generation.loading import load_for_generation
from lit_gpt.models import GPT, GPTConfig

CONFIG = GPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=48, vocab_size=304)
CPU = torch.device("cpu")
Q = "blocks.0.attn.q_proj.weight"


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound")
    tokenizer = tokenizer_folder(folder / "tokenizer")
    scheme = Quantization("int4", 16)
    save_quantized_bundle(folder / "small", CONFIG, GPT(CONFIG).state_dict(), scheme, CPU, "x", tokenizer, {})
    return folder / "small"


@pytest.fixture
def bundle(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "small")


def refused(bundle, message):
    write_manifest(bundle)
    with pytest.raises(UserError, match=message):
        load_for_generation(str(bundle), "cpu")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("wte.weight", lambda t: t[:100], r"wte.weight as torch.float32 \(100, 32\)"),
        ("wte.weight", lambda t: t.long(), "wte.weight as torch.int64"),
        ("wte.weight", lambda t: t.double(), "wte.weight as torch.float64"),
        ("wte.weight", lambda t: t.half(), "wte.weight as torch.float16"),
        ("ln_f.weight", lambda t: None, "1 tensors are missing: ln_f.weight"),
        ("further.weight", lambda t: torch.zeros(3), "1 tensors are left over: further.weight"),
        (f"{Q}.qdata", lambda t: None, f"1 tensors are missing: {Q}.qdata"),
        (f"{Q}.qdata", lambda t: t.flatten(), f"{Q} is torch.uint8"),
        (f"{Q}.qdata", lambda t: t.float(), f"{Q} is torch.float32"),
        (f"{Q}.qdata", lambda t: t.long(), f"{Q} is torch.int64"),
        (f"{Q}.scale", lambda t: t.int(), "scales torch.int32"),
        (f"{Q}.scale", lambda t: t.double(), "scales torch.float64"),
        (f"{Q}.scale", lambda t: t.bfloat16(), "scales torch.bfloat16"),
        (f"{Q}.scale", lambda t: t[:5], r"scales torch.float32 \(5, 2\)"),
    ],
)
def test_weights(bundle, name, change, message):
    path = bundle / "quantized.safetensors"
    tensors = load_file(path)
    changed = change(tensors.pop(name, None))
    save_file(tensors | ({} if changed is None else {name: changed.contiguous()}), path)
    refused(bundle, message)


@pytest.mark.parametrize("keep", [-1000, 3, 0])
def test_a_file_that_is_cut_off(bundle, keep):
    path = bundle / "quantized.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    refused(bundle, "quantized.safetensors is damaged or missing")


@pytest.mark.parametrize("name", ["quantized.safetensors", "lit_gpt.json", "generation_config.json"])
def test_a_file_that_the_manifest_does_not_name(bundle, name):
    (bundle / name).unlink()
    refused(bundle, f"{name} is .*missing")


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("quantization.json", {"group_size": 24}, "damaged.*24 does not divide the 32 inputs"),
        ("quantization.json", {"group_size": 10**9}, "damaged.*does not divide"),
        ("quantization.json", {"dtype": "bfloat16"}, "the model has .*scales torch.bfloat16"),
        ("quantization.json", {"token_ids": 3}, "damaged"),
        ("lit_gpt.json", {"n_layer": 1}, "left over: blocks.1"),
        ("lit_gpt.json", {"n_layer": 3}, "missing: blocks.2"),
        ("lit_gpt.json", {"vocab_size": 320}, r"wte.weight as .*the model has .*\(320, 32\)"),
        ("lit_gpt.json", {"tie_embeddings": False}, "missing: lm_head.weight"),
        ("lit_gpt.json", {"n_layer": "2"}, "n_layer is '2'"),
    ],
)
def test_descriptions(bundle, file, change, message):
    path = bundle / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    refused(bundle, message)


@pytest.mark.parametrize("file", ["lit_gpt.json", "lineage.json", "quantization.json", "generation_config.json"])
@pytest.mark.parametrize(("text", "message"), [("{", "is not JSON"), ("[1]", "JSON object")])
def test_files_of_json_that_are_none(bundle, file, text, message):
    (bundle / file).write_text(text)
    refused(bundle, message)


def test_layers_of_several_types_are_refused_before_anything_is_written(tmp_path):
    weights = GPT(CONFIG).state_dict()
    weights[Q] = weights[Q].bfloat16()
    with pytest.raises(UserError, match="bfloat16 and torch.float32; choose one with --dtype"):
        save_quantized_bundle(tmp_path / "small", CONFIG, weights, Quantization(), CPU, "x")
    assert list(tmp_path.iterdir()) == []
    save_quantized_bundle(tmp_path / "small", CONFIG, weights, Quantization(), CPU, "x", dtype="float32")
