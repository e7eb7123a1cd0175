"""The whole registry on the meta device: instant, without memory, and against what others have counted."""

import json

import pytest
import torch

from lit_gpt.errors import UserError
from lit_gpt.models import GPT, GPTConfig, get_preset, preset_names
from lit_gpt.models.families import published_sizes

PUBLISHED = published_sizes()

LADDER = {"20m": 20e6, "50m": 50e6, "124m": 124e6, "350m": 350e6, "760m": 760e6, "1.5b": 1.5e9}


@pytest.mark.parametrize("name", preset_names())
def test_counted_parameters_are_the_built_models(name):
    config = get_preset(name)
    with torch.device("meta"):
        model = GPT(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == config.num_parameters()
    looked_up = 0 if config.tie_embeddings else model.wte.weight.numel()
    looked_up += 0 if model.wpe is None else model.wpe.weight.numel()
    assert config.num_parameters(embeddings=False) == config.num_parameters() - looked_up


def test_sizes_are_the_published_ones():
    assert {name: get_preset(name).num_parameters() for name in PUBLISHED} == PUBLISHED
    for name, size in LADDER.items():
        assert get_preset(name).num_parameters() == pytest.approx(size, rel=0.03), name
    assert set(preset_names()) == {*PUBLISHED, *LADDER, "tiny"}


def test_every_preset_is_a_value_of_its_own_that_survives_json():
    for name in preset_names():
        config = get_preset(name)
        assert GPTConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config, name


@pytest.mark.slow
@pytest.mark.parametrize("name", preset_names())
def test_transformers_counts_the_same(name):
    import transformers

    from lit_gpt.checkpoints.huggingface import config_to_hf

    values = config_to_hf(get_preset(name))
    config = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
    with torch.device("meta"):
        theirs = getattr(transformers, values["architectures"][0])(config)
    assert sum(parameter.numel() for parameter in theirs.parameters()) == get_preset(name).num_parameters()


def test_small_rungs_run():
    model = GPT(GPTConfig.from_preset("tiny", n_layer=1))
    logits = model(torch.zeros(1, 4, dtype=torch.int64))
    assert logits.shape == (1, 4, 4096)


def test_unknown_name_gives_the_nearest():
    with pytest.raises(UserError, match=r"unknown preset 'gpt2-mediun'; nearest: gpt2-medium"):
        GPTConfig.from_preset("gpt2-mediun")
    with pytest.raises(UserError, match=r"unknown preset 'qwen3-0\.5b'; nearest: .*qwen3-0\.6b"):
        get_preset("qwen3-0.5b")
