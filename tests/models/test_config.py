import dataclasses
import json
import typing

import pytest

from lit_gpt.errors import UserError
from lit_gpt.models import GPTConfig, GPTConfigOverrides, RopeScaling


def test_overrides_are_the_fields_of_the_config():
    fields = typing.get_type_hints(GPTConfig)
    assert typing.get_type_hints(GPTConfigOverrides) == {f.name: fields[f.name] for f in dataclasses.fields(GPTConfig)}
    assert not GPTConfigOverrides.__required_keys__


def test_dict_survives_json(small_config):
    assert GPTConfig.from_dict(json.loads(json.dumps(small_config.to_dict()))) == small_config


def test_overriding_one_size_moves_what_depends_on_it():
    config = GPTConfig.from_preset("gpt2", n_embd=384, n_head=6)
    assert (config.head_dim, config.mlp_size, config.num_kv_heads) == (64, 1536, 6)
    config = GPTConfig.from_preset("gpt2", bias=False)
    assert not config.has_attention_bias
    assert not config.has_mlp_bias


def test_nested_scaling_comes_as_a_dict_from_yaml():
    config = GPTConfig.from_preset("llama-3-8b", rope_scaling={"kind": "linear", "factor": 2.0})
    assert config.rope_scaling == RopeScaling("linear", 2.0)


def test_window_of_a_layer():
    assert [GPTConfig(n_layer=2).window(layer) for layer in range(2)] == [None, None]
    assert [GPTConfig(n_layer=2, sliding_window=8).window(layer) for layer in range(2)] == [8, 8]
    some = GPTConfig(n_layer=2, sliding_window=8, layer_windows=(False, True))
    assert [some.window(layer) for layer in range(2)] == [None, 8]


def test_config_is_a_value():
    assert hash(GPTConfig()) == hash(GPTConfig())
    with pytest.raises(dataclasses.FrozenInstanceError):
        GPTConfig().n_layer = 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_embd": 100, "n_head": 12}, "n_embd 100 is not divisible by n_head 12"),
        ({"n_kv_head": 5}, "n_head 12 is not divisible by n_kv_head 5"),
        ({"n_layer": 0}, "n_layer is 0"),
        ({"vocab_size": -1}, "vocab_size is -1"),
        ({"head_size": 0}, "head_size is 0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"norm": "batchnorm"}, "layernorm, rmsnorm"),
        ({"mlp": "selu"}, "gelu, gelu_tanh, relu2, swiglu"),
        ({"positions": "alibi"}, "learned, rope"),
        ({"family": "bert"}, "gpt2, llama, qwen3"),
        ({"norm_eps": 0.0}, "norm_eps is 0.0"),
        ({"positions": "rope", "n_embd": 36, "n_head": 12}, "must be even"),
        ({"rope_scaling": RopeScaling()}, "needs positions: rope"),
        ({"rope_scaling": {"factor": 2.0}}, "GPTConfig.from_dict"),
        ({"layer_windows": (True,) * 12}, "sliding_window is null"),
        ({"sliding_window": 4, "layer_windows": (True,)}, "1 entries for n_layer 12"),
    ],
)
def test_refused(fields, message):
    with pytest.raises(UserError, match=message):
        GPTConfig(**fields)


def test_refused_scaling():
    with pytest.raises(UserError, match="at least 1"):
        RopeScaling(factor=0.5)
    with pytest.raises(UserError, match="low_freq_factor < high_freq_factor"):
        RopeScaling(low_freq_factor=4.0, high_freq_factor=4.0)
    with pytest.raises(UserError, match=r"rope_scaling\.kind is 'yarn'"):
        RopeScaling(kind="yarn")


def test_misspelt_field_names_the_nearest():
    with pytest.raises(UserError, match=r"no field 'n_layers'; nearest: n_layer"):
        GPTConfig.from_preset("gpt2", n_layers=3)
    with pytest.raises(UserError, match=r"RopeScaling has no field 'facto'; nearest: factor"):
        GPTConfig.from_dict({"rope_scaling": {"facto": 3}})
