"""What is not a weight of DeepSeek-V3's files: selection biases stay float32, and its block ahead is left out."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lit_gpt.checkpoints.bundle import save_bundle
from lit_gpt.checkpoints.huggingface import export_hf, import_hf, open_hf
from lit_gpt.errors import UserError
from lit_gpt.models import GPT, get_preset
from lit_gpt.models.families.ladder import shrink

CONFIG = shrink(get_preset("deepseek-v3"), n_layer=5, n_embd=32, n_head=2, block_size=32, vocab_size=64)
BIAS = "blocks.1.mlp.router.selection_bias"


@pytest.fixture
def model():
    model = GPT(CONFIG)
    for buffer in model.buffers():
        buffer.normal_(mean=5.0, std=0.1)
    return model


def test_a_dtype_asked_for_leaves_selection_biases_wide(model, tmp_path):
    state = model.state_dict()
    export_hf(CONFIG, state, tmp_path / "hf")
    _, imported = import_hf(tmp_path / "hf", torch.bfloat16)
    export_hf(CONFIG, state, tmp_path / "half", dtype=torch.bfloat16)
    save_bundle(tmp_path / "bundle", CONFIG, open_hf(tmp_path / "hf", torch.bfloat16)[1], dtype="bfloat16")
    theirs = "model.layers.1.mlp.gate.e_score_correction_bias"
    exports = [load_file(tmp_path / name / "model.safetensors") for name in ("half", "bundle")]
    for bias, weight in [
        (imported[BIAS], imported["wte.weight"]),
        *((tensors[theirs], tensors["model.embed_tokens.weight"]) for tensors in exports),
    ]:
        assert weight.dtype == torch.bfloat16
        assert torch.equal(bias, state[BIAS])


def test_biases_that_a_file_has_rounded_come_back_wide(model, tmp_path):
    export_hf(CONFIG, {name: tensor.bfloat16() for name, tensor in model.state_dict().items()}, tmp_path)
    _, state = import_hf(tmp_path)
    assert state[BIAS].dtype == torch.float32
    assert state["wte.weight"].dtype == torch.bfloat16


def edited(folder, tensors=None, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))
    if tensors:
        save_file(load_file(folder / "model.safetensors") | tensors, folder / "model.safetensors")


@pytest.mark.parametrize("num_ahead", [0, 1, 3])
def test_layers_of_the_model_are_never_left_out(model, tmp_path, num_ahead):
    export_hf(CONFIG, model.state_dict(), tmp_path)
    edited(tmp_path, num_hidden_layers=2, num_nextn_predict_layers=num_ahead)
    with pytest.raises(UserError, match=r"left over: .*model\.layers\.2\."):
        import_hf(tmp_path)


def test_only_as_many_blocks_ahead_as_config_json_says_are_left_out(model, tmp_path):
    export_hf(CONFIG, model.state_dict(), tmp_path)
    ahead = {f"model.layers.{layer}.eh_proj.weight": torch.zeros(32, 64) for layer in (5, 6)}
    edited(tmp_path, ahead, num_nextn_predict_layers=2)
    _, weights = open_hf(tmp_path)
    assert weights.left_out == tuple(ahead)
    edited(tmp_path, num_nextn_predict_layers=1)
    with pytest.raises(UserError, match=r"left over: model\.layers\.6\.eh_proj\.weight"):
        open_hf(tmp_path)
