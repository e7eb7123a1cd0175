"""`import` on the command line: every mistake is one line that names value, bound and remedy, and leaves nothing."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lit_gpt.checkpoints.huggingface import export_hf
from lit_gpt.cli import main
from lit_gpt.models import GPT, get_preset
from lit_gpt.models.families.ladder import shrink

SIZES = {"n_layer": 2, "n_embd": 32, "n_head": 4, "vocab_size": 61, "block_size": 32}


def edit(folder, **values):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def unknown_type(folder):
    edit(folder, model_type="gema2")


def quantised(folder):
    edit(folder, quantization_config={"quant_method": "gptq", "bits": 4})


def no_config(folder):
    (folder / "config.json").unlink()


def config_is_no_json(folder):
    (folder / "config.json").write_text("<html>not found</html>")


def no_weights(folder):
    (folder / "model.safetensors").unlink()


def truncated(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def shard_missing(folder):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def index_without_map(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text("{}")


def other_shape(folder):
    edit(folder, intermediate_size=40)


def other_heads(folder):
    edit(folder, num_key_value_heads=4)


def tensor_missing(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors")


def tensor_left_over(folder):
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"model.layers.2.mlp.stray": torch.zeros(1)}, folder / "model.safetensors")


def rope_of_another_kind(folder):
    edit(folder, rope_parameters={"rope_type": "spiral", "rope_theta": 1e4})


def layers_of_another_kind(folder):
    edit(folder, layer_types=["chunked_attention", "full_attention"])


class Payload:
    def __reduce__(self):
        return print, ("this must never be printed",)


def pickle_with_code(folder):
    (folder / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Payload()}, folder / "pytorch_model.bin")


MISTAKES = {
    unknown_type: "model_type 'gema2' cannot be imported; nearest: gemma2",
    quantised: "quantization_config of method 'gptq'",
    no_config: "no model: neither",
    config_is_no_json: "config.json is not JSON",
    no_weights: "has no weights: neither model.safetensors nor pytorch_model.bin",
    truncated: "model.safetensors is damaged",
    shard_missing: "lists model-00002-of-00002.safetensors",
    index_without_map: "has no weight_map",
    other_shape: "blocks.1.mlp.down_proj.weight the shape (32, 88), not (32, 40)",
    other_heads: "model.layers.0.self_attn.k_proj.weight (8, 32) gives blocks.0.attn.k_proj.weight",
    tensor_missing: "1 tensors are missing: model.norm.weight",
    tensor_left_over: "1 tensors are left over: model.layers.2.mlp.stray",
    rope_of_another_kind: "RoPE scaling of type 'spiral'; lit_gpt supports default, linear, dynamic, yarn",
    layers_of_another_kind: "layer_types chunked_attention",
    pickle_with_code: "pytorch_model.bin is damaged",
}


@pytest.mark.parametrize("spoil", MISTAKES, ids=lambda spoil: spoil.__name__)
def test_a_folder_that_cannot_be_imported(spoil, tmp_path, capsys):
    config = shrink(get_preset("gemma-2-2b"), **SIZES)
    export_hf(config, GPT(config).state_dict(), tmp_path / "hub")
    spoil(tmp_path / "hub")
    assert main(["import", "--model", str(tmp_path / "hub"), "--out", str(tmp_path / "out")]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("lit_gpt import: error: ")
    assert err.count("\n") == 1
    assert MISTAKES[spoil] in err
    assert "never" not in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hub"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sliding_window": 5000, "block_size": 4096}, "sliding_window 5000 is longer than block_size 4096"),
        ({"n_kv_head": 3}, "n_head 8 is not divisible by n_kv_head 3"),
        ({"rope_fraction": 0.0}, "rope_fraction is 0.0"),
        ({"layer_windows": [True], "sliding_window": None}, "rope_local_theta|layer_windows"),
        ({"famly": "x"}, "no field 'famly'; nearest: family"),
    ],
)
def test_a_preset_whose_fields_contradict_each_other(changes, message):
    with pytest.raises(ValueError, match=message):
        get_preset("gemma-2-2b").overridden(changes)
