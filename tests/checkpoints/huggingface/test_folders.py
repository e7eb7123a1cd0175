"""What a Hugging Face folder may look like, and what is refused, with the names in the message."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lit_gpt.checkpoints.huggingface import LazyWeights, config_from_hf, config_to_hf, export_hf, import_hf, open_hf
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


# What a config.json of Hugging Face's does not say: how we initialise, route and predict ahead in training.
OF_TRAINING = {"scale_residual_init", "multi_token"}
DERIVED = {
    "n_kv_head": "num_kv_heads",
    "head_size": "head_dim",
    "intermediate_size": "mlp_size",
    "attention_bias": "has_attention_bias",
    "attention_out_bias": "has_attention_out_bias",
    "mlp_bias": "has_mlp_bias",
    "attention_scale": "score_scale",
    "bias": "has_mlp_bias",
}


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_survives_config_json(name):
    preset = get_preset(name)
    again = config_from_hf(json.loads(json.dumps(config_to_hf(preset))))
    assert again.num_parameters() == preset.num_parameters()
    for layer in range(preset.n_layer):
        for method in ("window", "rotates", "is_moe"):
            assert getattr(again, method)(layer) == getattr(preset, method)(layer), (method, layer)
    for field in set(preset.to_dict()) - OF_TRAINING - {"layer_windows", "rope_layers", "moe"}:
        field = DERIVED.get(field, field)
        assert getattr(again, field) == getattr(preset, field), field


def test_sharded_folder(tmp_path):
    model = GPT(TINY_LLAMA)
    export_hf(TINY_LLAMA, model.state_dict(), tmp_path, max_shard_size=4000)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert not (tmp_path / "model.safetensors").exists()
    assert_same(import_hf(tmp_path)[1], model)
    next(tmp_path.glob("model-00002*")).unlink()
    with pytest.raises(UserError, match=r"model-00002.* missing"):
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
    with pytest.raises(UserError, match="contains code"):
        import_hf(folder)
    assert "never" not in capsys.readouterr().out


def test_bin_files_of_other_kinds(exported):
    folder, model = exported
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    file = folder / "pytorch_model.bin"
    torch.save(tensors, file, _use_new_zipfile_serialization=False)  # as torch wrote before 1.6
    assert_same(import_hf(folder)[1], model)
    for content, message in (({"a": tensors, "b": 3}, "more than weights: a, b"), ([1], "dict of tensors, got a list")):
        torch.save(content, file)
        with pytest.raises(UserError, match=message):
            import_hf(folder)
    file.write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(UserError, match=r"pytorch_model\.bin is damaged"):
        import_hf(folder)


def test_every_tensor_of_another_shape_is_listed(exported):
    folder, _ = exported

    def reshape(tensors):
        tensors["transformer.h.0.attn.c_attn.weight"] = torch.zeros(16, 40)
        tensors["transformer.h.1.ln_1.bias"] = torch.zeros(3)

    rewrite(folder, reshape)
    with pytest.raises(UserError) as error:
        import_hf(folder)
    assert "transformer.h.0.attn.c_attn.weight (16, 40) cannot become blocks.0.attn.q_proj.weight (16, 16)" in str(
        error.value
    )
    assert "transformer.h.1.ln_1.bias (3,) gives blocks.1.ln1.bias the shape (3,), not (16,)" in str(error.value)


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


@pytest.mark.parametrize("lazy", [False, True])
def test_dtype_is_converted_by_flag_and_mixed_dtypes_stay_aligned(tmp_path, lazy):
    model = GPT(TINY)
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    state["ln_f.bias"] = state["ln_f.bias"].double()
    state["wte.weight"] = state["wte.weight"].bfloat16()
    state["blocks.0.mlp.up_proj.bias"] = state["blocks.0.mlp.up_proj.bias"].half()
    export_hf(TINY, state, tmp_path / "mixed")
    tensors = load_file(tmp_path / "mixed" / "model.safetensors")
    assert tensors["transformer.wte.weight"].equal(state["wte.weight"])
    assert tensors["transformer.ln_f.bias"].dtype == torch.float64
    source = open_hf(tmp_path / "mixed")[1] if lazy else import_hf(tmp_path / "mixed")[1]
    export_hf(TINY, source, tmp_path / "half", dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in load_file(tmp_path / "half" / "model.safetensors").values()} == {torch.bfloat16}
    read = import_hf(tmp_path / "mixed", dtype=torch.float32)[1]
    assert {tensor.dtype for tensor in read.values()} == {torch.float32}
    assert read["ln_f.bias"].equal(state["ln_f.bias"].float())


def test_lazy_weights_are_read_when_asked_for(exported):
    folder, model = exported
    _, weights = open_hf(folder)
    assert isinstance(weights, LazyWeights)
    assert set(weights) == set(dict(model.named_parameters()))
    assert "wte.weight" in weights
    assert "lm_head.weight" not in weights
    for _ in range(2):  # a second time too
        for name in ("blocks.0.attn.k_proj.weight", "blocks.0.attn.q_proj.weight", "ln_f.bias"):
            tensor = weights[name]
            assert tensor.equal(dict(model.named_parameters())[name])
            assert tensor.is_contiguous()
            assert tensor.untyped_storage().nbytes() == tensor.nbytes  # and not a window into a larger one
    with pytest.raises(KeyError):
        weights["stray"]
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-8])  # cut off under the reader
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        weights.to_dict()


def test_what_only_training_needs_is_left_out(tmp_path):
    state = GPT(TINY).state_dict() | {"multi_token.0.proj.weight": torch.zeros(2)}
    export_hf(TINY, state, tmp_path)
    assert not any("multi_token" in name for name in load_file(tmp_path / "model.safetensors"))


@pytest.mark.parametrize("size", ["5 apples", "", "-3", "0GB"])
def test_shard_sizes_that_are_none(tmp_path, size):
    with pytest.raises(UserError, match="max_shard_size is"):
        export_hf(TINY, GPT(TINY).state_dict(), tmp_path, max_shard_size=size)


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
        ({"model_type": None}, "nearest: .*gemma2, .*gpt2, .*llama.*qwen3"),
        ({"model_type": "mistrall"}, "nearest: mistral"),
        ({"vocab_size": 32}, r"wte\.weight the shape \(31, 16\), not \(32, 16\)"),
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
    values = config_to_hf(TINY_LLAMA) | {"rope_parameters": {"rope_type": "axial", "factor": 4.0}}
    with pytest.raises(UserError, match="'axial'"):
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
    (folder / "model.safetensors").write_bytes(b"")
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
        ("llama-3-8b", {"qk_norm": "head"}, "qk_norm 'head'"),
        ("qwen3-8b", {"mlp_bias": True}, "has_mlp_bias True"),
        ("tiny", {"norm": "layernorm"}, "norm 'layernorm'"),
        ("llama-3-8b", {"sliding_window": 64}, "sliding_window 64"),
        ("llama-3-8b", {"attention_scale": 0.5}, "attention_scale 0.5"),
        ("llama-3-8b", {"logit_softcap": 3.0}, "logit_softcap 3.0"),
        ("mistral-7b-v0.1", {"layer_windows": [True, False]}, "layer_windows"),
        ("gemma-2-2b", {"embedding_scale": 48.5}, "embedding_scale 48.5 .only 'sqrt_width'"),
        ("gemma-2-2b", {"attention_scale": 0.3}, "attention_scale 0.3"),
        ("phi-4", {"rope_scaling": {"kind": "yarn"}}, "kind 'yarn' .only 'longrope'"),
        ("ministral-3-3b", {"rope_scaling": None}, "family: mistral"),
        ("ministral-3-3b", {"family": "mistral"}, "query_scale_beta 0.1"),
        ("olmo-3-7b", {"rope_local_theta": None}, "rope_local_theta"),
        ("pythia-70m", {"mlp": "swiglu"}, "mlp 'swiglu'"),
        ("llama-3-8b", {"rope_scaling": {"kind": "dynamic", "factor": 2.0}}, "block_size is 8192"),
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
