import dataclasses
import json
import math
import pickle
import typing

import pytest

from lit_gpt.errors import UserError
from lit_gpt.models import GPTConfig, GPTConfigOverrides, MLAConfig, MoEConfig, RopeScaling

NESTED = {"rope_scaling": RopeScaling, "mla": MLAConfig, "moe": MoEConfig}


def nested_overrides(name):
    """The TypedDict of `moe`, say, from `MoEConfigOverrides | None`."""
    part, none = typing.get_args(typing.get_type_hints(GPTConfigOverrides)[name])
    assert none is type(None)
    return part


@pytest.mark.parametrize("name", [None, *NESTED])
def test_overrides_are_the_fields_of_the_config(name):
    config, overrides = (NESTED[name], nested_overrides(name)) if name else (GPTConfig, GPTConfigOverrides)
    fields, given = typing.get_type_hints(config), typing.get_type_hints(overrides)
    assert list(given) == [field.name for field in dataclasses.fields(config)]
    assert {key: kind for key, kind in given.items() if config is not GPTConfig or key not in NESTED} == {
        key: fields[key] for key in given if config is not GPTConfig or key not in NESTED
    }
    assert typing.is_typeddict(overrides)
    assert not overrides.__required_keys__


def test_overrides_can_be_pickled():
    assert pickle.loads(pickle.dumps(GPTConfigOverrides)) is GPTConfigOverrides


def test_an_override_of_a_nested_part_leaves_the_rest_of_it():
    config = GPTConfig(moe=MoEConfig(8, 3, scores="sigmoid"), positions="rope")
    changed = config.overridden({"moe": {"num_experts": 4}, "rope_scaling": {"kind": "linear"}})
    assert changed.moe == MoEConfig(4, 3, scores="sigmoid")
    assert changed.rope_scaling == RopeScaling("linear")
    assert changed.overridden({"moe": None}).moe is None


def test_patterns_repeat_over_the_layers():
    config = GPTConfig(
        n_layer=5,
        positions="rope",
        sliding_window=8,
        layer_windows=(True, False),
        rope_layers=(True, True, False),
        moe=MoEConfig(layers=(False, True, True, True, True, True, True)),
    )
    assert [config.slides(layer) for layer in range(5)] == [True, False, True, False, True]
    assert [config.rotates(layer) for layer in range(5)] == [True, True, False, True, True]
    assert [config.is_moe(layer) for layer in range(5)] == [False, True, True, True, True]


def test_dict_survives_json(small_config):
    assert GPTConfig.from_dict(json.loads(json.dumps(small_config.to_dict()))) == small_config


def test_overriding_one_size_moves_what_depends_on_it():
    config = GPTConfig.from_preset("gpt2", n_embd=384, n_head=6)
    assert (config.head_dim, config.mlp_size, config.num_kv_heads) == (64, 1536, 6)
    config = GPTConfig.from_preset("gpt2", bias=False)
    assert not config.has_attention_bias
    assert not config.has_mlp_bias


def test_gemmas_multiplier_follows_its_width():
    config = GPTConfig.from_preset("gemma-3-1b")
    assert config.embedding_multiplier == 1152**0.5
    narrow = config.overridden({"n_embd": 256})
    assert narrow.embedding_multiplier == 16.0
    assert narrow.overridden({"embedding_scale": 2.0}).embedding_multiplier == 2.0
    assert GPTConfig().embedding_multiplier == 1.0


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
        ({"positions": "relative"}, "learned, sinusoidal, rope"),
        ({"family": "bert"}, "gemma2, gemma3, gpt2"),
        ({"norm_eps": 0.0}, "norm_eps is 0.0"),
        ({"positions": "rope", "n_embd": 36, "n_head": 12}, "must be even"),
        ({"rope_scaling": RopeScaling()}, "needs positions: rope"),
        ({"rope_scaling": {"factor": 2.0}}, "GPTConfig.from_dict"),
        ({"layer_windows": (True,) * 12}, "sliding_window is null"),
        ({"sliding_window": 4, "layer_windows": ()}, "layer_windows is an empty pattern"),
        ({"sliding_window": 2000}, "sliding_window 2000 is longer than block_size 1024"),
        ({"chunked_window": True}, "chunked_window needs sliding_window"),
        ({"rope_layers": (True,)}, "rope_layers needs positions: rope"),
        ({"positions": "rope", "rope_fraction": 0.0}, "rope_fraction is 0"),
        ({"positions": "rope", "rope_local_theta": 1e4}, "sliding_window is null"),
        ({"qk_norm": "all"}, "head, projection"),
        ({"norm_offset": True}, "norm_offset .*norm: rmsnorm"),
        ({"parallel_residual": True, "norm_placement": "sandwich"}, "norm_placement: pre"),
        ({"attention_softcap": 0.0}, "attention_softcap is 0"),
        ({"embedding_scale": -1.0}, "embedding_scale is -1"),
        ({"embedding_scale": "sqrt"}, "a finite number or sqrt_width"),
        ({"multi_token": -1}, "multi_token is -1"),
        ({"mla": MLAConfig()}, "mla .*qk_rope_head_dim"),
        ({"mla": MLAConfig(), "positions": "rope", "qk_norm": "head"}, "which has no qk_norm"),
        ({"moe": {"num_experts": 4}}, "a MoEConfig"),
        ({"moe": MoEConfig(layers=(False,) * 12 + (True,))}, "none of the 12 layers a mixture"),
        ({"n_layer": 2.5}, "n_layer is 2.5, it must be a whole number"),
        ({"n_layer": "2"}, "n_layer is '2', it must be a whole number"),
        ({"n_layer": True}, "n_layer is True, it must be a whole number"),
        ({"n_embd": None}, "n_embd is None"),
        ({"bias": 1}, "bias is 1, it must be true or false"),
        ({"dropout": "0.1"}, "dropout is '0.1', it must be a finite number"),
        ({"norm": ["rmsnorm"]}, "layernorm, rmsnorm"),
        ({"rope_theta": math.inf}, "rope_theta is inf"),
        ({"norm_eps": math.nan}, "norm_eps is nan"),
        ({"sliding_window": 4, "layer_windows": "TF"}, "layer_windows is 'TF'"),
        ({"positions": "rope", "rope_layers": (1, 0)}, "rope_layers is .1, 0., it must be a list of true or false"),
        ({"rope_fraction": 0.5}, "rope_fraction 0.5 needs positions: rope"),
    ],
)
def test_refused(fields, message):
    with pytest.raises(UserError, match=message):
        GPTConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"factor": math.inf}, r"rope_scaling\.factor is inf"),
        ({"factor": "8"}, r"rope_scaling\.factor is '8'"),
        ({"original_block_size": 4096.5}, "4096.5, it must be a whole number"),
        ({"kind": "yarn", "attention_factor": -1.0}, "attention_factor is -1.0, it must be greater than 0"),
        ({"kind": "yarn", "mscale": -1.0}, "mscale is -1.0, it must be at least 0"),
        ({"kind": "llama3", "mscale": 3.0}, "mscale 3.0 belongs to kind yarn, got kind: llama3"),
        ({"kind": "linear", "short_factors": (1.0,)}, "belongs to kind longrope"),
        ({"kind": "longrope", "short_factors": (0.0,), "long_factors": (1.0,)}, "each must be greater than 0"),
        ({"kind": "longrope", "short_factors": (1.0,), "long_factors": "12"}, "a list of finite numbers"),
    ],
)
def test_refused_fields_of_a_scaling(fields, message):
    with pytest.raises(UserError, match=message):
        RopeScaling(**fields)


def test_another_kind_of_scaling_leaves_the_fields_of_the_old_one():
    yarn = RopeScaling("yarn", 16.0, 4096, beta_fast=8.0, mscale=1.0, attention_factor=1.5)
    config = GPTConfig(positions="rope", rope_scaling=yarn)
    assert config.overridden({"rope_scaling": {"kind": "linear"}}).rope_scaling == RopeScaling("linear", 16.0, 4096)
    longrope = {"kind": "longrope", "short_factors": [1.0] * 32, "long_factors": [2.0] * 32}
    assert config.overridden({"rope_scaling": longrope}).rope_scaling.attention_factor == 1.5
    assert config.overridden({"rope_scaling": {"factor": 2.0}}).rope_scaling.beta_fast == 8.0


def test_refused_latent_sizes():
    with pytest.raises(UserError, match=r"mla\.kv_lora_rank is '512'"):
        MLAConfig(kv_lora_rank="512")


def test_refused_scaling():
    with pytest.raises(UserError, match="at least 1"):
        RopeScaling(factor=0.5)
    with pytest.raises(UserError, match="low_freq_factor < high_freq_factor"):
        RopeScaling(low_freq_factor=4.0, high_freq_factor=4.0)
    with pytest.raises(UserError, match=r"rope_scaling\.kind is 'ntk'"):
        RopeScaling(kind="ntk")
    with pytest.raises(UserError, match="short_factors and long_factors"):
        RopeScaling(kind="longrope")
    longrope = RopeScaling("longrope", 4.0, short_factors=(1.0,) * 3, long_factors=(2.0,) * 32)
    with pytest.raises(UserError, match="short_factors has 3 numbers.* 32 rotated pairs"):
        GPTConfig(positions="rope", rope_scaling=longrope)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_experts": 2, "num_experts_per_tok": 3}, "3 is more than the num_experts 2"),
        ({"num_experts": 6, "n_group": 4}, "not divisible by n_group 4"),
        ({"num_experts": 8, "n_group": 4, "topk_group": 1, "num_experts_per_tok": 3}, "cannot give 3 experts"),
        ({"num_experts": 8, "n_group": 8, "topk_group": 8}, "at least 2"),
        ({"bias_update_rate": 0.1}, "selection_bias: true"),
        ({"scores": "tanh"}, "softmax, sigmoid"),
        ({"balance_loss_weight": -1.0}, "balance_loss_weight is -1"),
        ({"routed_scaling_factor": -1.0}, "routed_scaling_factor is -1.0, it must be greater than 0"),
        ({"num_experts": 4.0}, r"moe\.num_experts is 4.0, it must be a whole number"),
        ({"layers": "TF"}, "layers is 'TF'"),
    ],
)
def test_refused_experts(fields, message):
    with pytest.raises(UserError, match=message):
        MoEConfig(**fields)


def test_misspelt_field_names_the_nearest():
    with pytest.raises(UserError, match=r"no field 'n_layers'; nearest: n_layer"):
        GPTConfig.from_preset("gpt2", n_layers=3)
    with pytest.raises(UserError, match=r"RopeScaling has no field 'facto'; nearest: factor"):
        GPTConfig.from_dict({"rope_scaling": {"facto": 3}})
