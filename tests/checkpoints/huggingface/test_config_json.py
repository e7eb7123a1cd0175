"""config.json with keys left out, and with values of the wrong kind, for every family of the registry."""

import contextlib

import pytest
import transformers

from lit_gpt.checkpoints.huggingface import config_from_hf, config_to_hf
from lit_gpt.errors import UserError
from lit_gpt.models.families import family_names, get_family, model_types

HOSTILE = ("abc", -1, 0, 1.5, True, None, [], [1], {}, float("inf"), float("nan"))
WHOLE = {"num_hidden_layers", "num_attention_heads", "hidden_size", "vocab_size", "n_layer", "n_embd", "n_positions"}
WHOLE |= {
    "num_key_value_heads",
    "intermediate_size",
    "first_k_dense_replace",
    "decoder_sparse_step",
    "n_routed_experts",
}
OF_ROPE = ("rope_type", "rope_theta", "factor", "partial_rotary_factor", "original_max_position_embeddings")


def full(model_type):
    """Everything that the class writes by default."""
    return transformers.CONFIG_MAPPING[model_type]().to_dict()


def read(values):
    try:
        return config_from_hf(values)
    except UserError as error:
        return error


@pytest.mark.parametrize("model_type", sorted(model_types()))
def test_a_key_left_out_is_the_default_of_the_class_or_missed(model_type):
    values = full(model_type)
    assert not isinstance(read(values), UserError)
    for key in values.keys() - {"model_type"}:
        rest = {name: value for name, value in values.items() if name != key}
        found = read(rest)
        if isinstance(found, UserError):
            assert f"no value for {key!r}" in str(found) or key.startswith("num_local_experts"), key
            continue
        arguments = {name: value for name, value in rest.items() if name != "model_type"}
        assert found == read(transformers.CONFIG_MAPPING[model_type](**arguments).to_dict()), key


@pytest.mark.parametrize("model_type", sorted(model_types()))
def test_values_of_the_wrong_kind_are_refused_in_a_sentence(model_type):
    values = full(model_type)
    reference = config_from_hf(values)
    for key in values:
        for value in HOSTILE:
            found = read(values | {key: value})  # any other exception fails the test
            if key in WHOLE and value in ("abc", -1, 1.5):
                assert isinstance(found, UserError) or found == reference, (key, value)
    for key in OF_ROPE:
        for value in HOSTILE:
            read(values | {"rope_parameters": dict(values.get("rope_parameters") or {}) | {key: value}})


@pytest.mark.parametrize(
    "values",
    [
        {"model_type": "gemma3", "text_config": [1]},
        {"model_type": "gemma3", "text_config": "abc"},
        {"model_type": ["llama"]},
        {"quantization_config": "fp8"},
    ],
)
def test_parts_of_the_wrong_kind(values):
    with pytest.raises(UserError, match="model_type"):
        config_from_hf(full("llama") | values)


def test_the_cause_stays_in_the_chain():
    with pytest.raises(UserError, match="AttributeError") as raised:
        config_from_hf(full("llama") | {"rope_parameters": "yarn"})
    assert isinstance(raised.value.__cause__, AttributeError)


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "olmo2", "olmo3", "gemma2", "gemma3_text"])
@pytest.mark.parametrize("nested", [True, False])
def test_a_part_of_the_head_where_the_class_rotates_all_of_it(model_type, nested):
    values = full(model_type)
    if nested:
        parameters = dict(values["rope_parameters"])
        places = [parameters["full_attention"]] if "full_attention" in parameters else [parameters]
        places[0]["partial_rotary_factor"] = 0.5
        values["rope_parameters"] = parameters
    else:
        values["partial_rotary_factor"] = 0.5
    with pytest.raises(UserError, match=r"partial_rotary_factor: 0\.5"):
        config_from_hf(values)


@pytest.mark.parametrize("model_type", ["phi3", "gpt_neox"])
def test_a_part_of_the_head_where_the_class_knows_it(model_type):
    values = full(model_type)
    values["rope_parameters"] = values["rope_parameters"] | {"partial_rotary_factor": 0.5}
    assert config_from_hf(values).rope_fraction == 0.5


@pytest.mark.parametrize("family", sorted(family_names()))
def test_a_config_is_written_or_refused_by_every_family(small_config, family):
    config = small_config.overridden({"family": family})
    with contextlib.suppress(UserError):  # any other exception fails the test
        assert config_to_hf(config)["model_type"] == get_family(family).model_type
