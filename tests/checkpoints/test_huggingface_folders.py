"""What a Hugging Face folder may look like, and what is refused, with the names in the message."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lit_gpt.checkpoints.huggingface import config_from_hf, config_to_hf, export_hf, import_hf
from lit_gpt.errors import UserError
from lit_gpt.models import GPT, GPTConfig, get_preset, preset_names

TINY = GPTConfig(n_layer=2, n_head=2, n_embd=16, block_size=16, vocab_size=31, mlp="gelu_tanh")
TINY_LLAMA = GPTConfig.from_preset(
    "llama-3-8b", n_layer=2, n_head=2, n_kv_head=1, n_embd=16, intermediate_size=32, vocab_size=31
)


@pytest.fixture
def exported(tmp_path):
    """A folder that transformers could have written, and the model in it."""
    model = GPT(TINY)
    export_hf(TINY, model.state_dict(), tmp_path / "hf")
    return tmp_path / "hf", model


def rewrite(folder, change):
    """Change the tensors of a folder in place."""
    tensors = load_file(folder / "model.safetensors")
    tensors = change(tensors) or tensors
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")


def edit_config(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def assert_same(state, model):
    ours = dict(model.named_parameters())
    assert set(state) == set(ours)
    for name, tensor in state.items():
        assert torch.equal(tensor, ours[name]), name


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_survives_config_json(name):
    preset = get_preset(name)
    again = config_from_hf(json.loads(json.dumps(config_to_hf(preset))))
    assert again.num_parameters() == preset.num_parameters()
    properties = ("num_kv_heads", "head_dim", "mlp_size", "has_attention_bias", "has_mlp_bias")
    fields = set(preset.to_dict()) - {"n_kv_head", "head_size", "intermediate_size", "attention_bias", "mlp_bias"}
    for field in (*properties, *fields):
        assert getattr(again, field) == getattr(preset, field), field


def test_sharded_folder(tmp_path):
    model = GPT(TINY_LLAMA)
    export_hf(TINY_LLAMA, model.state_dict(), tmp_path, max_shard_size=4000)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert not (tmp_path / "model.safetensors").exists()
    assert_same(import_hf(tmp_path)[1], model)
    next(tmp_path.glob("model-00002*")).unlink()
    with pytest.raises(UserError, match=r"model-00002.* not there"):
        import_hf(tmp_path)


def test_index_may_not_point_outside_its_folder(tmp_path):
    export_hf(TINY_LLAMA, GPT(TINY_LLAMA).state_dict(), tmp_path, max_shard_size=4000)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"lm_head.weight": "../elsewhere.safetensors"}}))
    with pytest.raises(UserError, match="outside its folder"):
        import_hf(tmp_path)


def test_bin_file_is_read_as_weights_alone(exported):
    folder, model = exported
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    assert_same(import_hf(folder)[1], model)


class Payload:
    def __reduce__(self):
        return print, ("this must never be printed",)


def test_bin_file_cannot_run_code(exported, capsys):
    folder, _ = exported
    (folder / "model.safetensors").unlink()
    torch.save({"wte.weight": Payload()}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="will not be run"):
        import_hf(folder)
    assert "never" not in capsys.readouterr().out


def test_file_saved_without_head_and_with_mask_buffers(exported):
    folder, model = exported

    def as_on_the_hub(tensors):
        bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
        return bare | {"h.0.attn.bias": torch.ones(1, 1, 16, 16).tril(), "h.1.attn.masked_bias": torch.tensor(-1e4)}

    rewrite(folder, as_on_the_hub)
    assert_same(import_hf(folder)[1], model)


def test_tied_head_stored_twice(exported):
    folder, model = exported
    rewrite(folder, lambda tensors: tensors | {"lm_head.weight": tensors["transformer.wte.weight"].clone()})
    assert_same(import_hf(folder)[1], model)
    rewrite(folder, lambda tensors: tensors | {"lm_head.weight": tensors["transformer.wte.weight"] + 1})
    with pytest.raises(UserError, match="differ"):
        import_hf(folder)


def test_import_keeps_the_dtype_of_the_file(tmp_path):
    model = GPT(TINY).to(torch.bfloat16)
    export_hf(TINY, model.state_dict(), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    assert_same(import_hf(tmp_path)[1], model)


def test_missing_and_leftover_tensors_are_listed(exported):
    folder, _ = exported

    def damage(tensors):
        del tensors["transformer.ln_f.bias"]
        return tensors | {"transformer.h.7.extra": torch.zeros(2)}

    rewrite(folder, damage)
    with pytest.raises(UserError, match=r"missing: transformer\.ln_f\.bias.*left over: transformer\.h\.7\.extra"):
        import_hf(folder)
    state = GPT(TINY).state_dict()
    state["stray"] = state.pop("wpe.weight")
    with pytest.raises(UserError, match=r"missing: wpe\.weight.*left over: stray"):
        export_hf(TINY, state, folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "qwen33"}, "qwen33.*nearest: qwen3"),
        ({"model_type": None}, "nearest: gpt2, llama, qwen3"),
        ({"vocab_size": 32}, r"wte\.weight the shape \(31, 16\).*\(32, 16\)"),
        ({"n_layer": None}, "no value for 'n_layer'"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ({"activation_function": "mish"}, "mish.*gelu_new"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ],
)
def test_config_that_is_refused(exported, values, message):
    folder, _ = exported
    edit_config(folder, **values)
    with pytest.raises(UserError, match=message):
        import_hf(folder)


def test_unknown_rope_scaling_is_refused():
    values = config_to_hf(TINY_LLAMA) | {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}
    with pytest.raises(UserError, match="'yarn'"):
        config_from_hf(values)
    with pytest.raises(UserError, match="no value for 'factor'"):
        config_from_hf(values | {"rope_parameters": {"rope_type": "linear"}})


def test_older_spelling_of_rope():
    long = config_to_hf(GPTConfig.from_preset("llama-3.1-8b"))
    del long["rope_parameters"]
    assert config_from_hf(long).rope_scaling == GPTConfig.from_preset("llama-3.1-8b").rope_scaling
    assert config_from_hf(long).rope_theta == 500000.0


def test_truncated_and_absent_files(exported, tmp_path):
    folder, _ = exported
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        import_hf(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="has no weights"):
        import_hf(folder)
    (folder / "config.json").write_text("{not json")
    with pytest.raises(UserError, match=r"config\.json is not JSON"):
        import_hf(folder)
    with pytest.raises(UserError, match=r"config\.json is missing"):
        import_hf(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("preset", "changes", "message"),
    [
        ("gpt2", {"positions": "rope"}, "positions 'rope'"),
        ("gpt2", {"bias": False}, "bias False"),
        ("gpt2", {"n_kv_head": 4}, "num_kv_heads 4"),
        ("gpt2", {"mlp": "swiglu"}, "swiglu"),
        ("llama-3-8b", {"qk_norm": True}, "qk_norm True"),
        ("qwen3-8b", {"mlp_bias": True}, "has_mlp_bias True"),
        ("tiny", {"norm": "layernorm"}, "norm 'layernorm'"),
    ],
)
def test_config_that_its_family_cannot_express(preset, changes, message):
    with pytest.raises(UserError, match=message):
        config_to_hf(GPTConfig.from_preset(preset, **changes))


def test_extra_keys_of_config_json(tmp_path):
    export_hf(TINY, GPT(TINY).state_dict(), tmp_path, eos_token_id=3)
    values = json.loads((tmp_path / "config.json").read_text())
    assert values["eos_token_id"] == 3
    assert values["bos_token_id"] is None  # not GPT2Config's own 50256
