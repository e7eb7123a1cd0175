import pytest
import torch

from lit_gpt.errors import UserError
from lit_gpt.models import GPT, GPTConfig, get_preset, preset_names

# The "model size" that huggingface.co shows for each checkpoint, less the tied head that some store twice.
PUBLISHED = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.3-70b": 70_553_706_496,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
}
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


def test_small_rungs_run():
    model = GPT(GPTConfig.from_preset("tiny", n_layer=1))
    logits = model(torch.zeros(1, 4, dtype=torch.int64))
    assert logits.shape == (1, 4, 4096)


def test_unknown_name_gives_the_nearest():
    with pytest.raises(UserError, match=r"unknown preset 'gpt2-mediun'; nearest: gpt2-medium"):
        GPTConfig.from_preset("gpt2-mediun")
    with pytest.raises(UserError, match=r"unknown preset 'qwen3-0\.5b'; nearest: qwen3-0\.6b"):
        get_preset("qwen3-0.5b")
