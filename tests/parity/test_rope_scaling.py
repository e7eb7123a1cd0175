"""Every kind of RoPE scaling at published sizes, frequency by frequency, against transformers' tables."""

import pytest
import torch
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from lit_gpt.checkpoints.huggingface import config_to_hf
from lit_gpt.models import GPTConfig, get_preset
from lit_gpt.models.positions import rope_frequencies

LLAMA = GPTConfig.from_preset("llama-3-8b", block_size=16384)
CONFIGS = {
    "llama3": get_preset("llama-3.1-8b"),
    "linear, full layers alone": get_preset("gemma-3-4b"),
    "yarn, full layers alone": get_preset("olmo-3-7b"),
    "yarn with DeepSeek's temperatures": get_preset("ministral-3-3b"),
    "longrope": get_preset("phi-3.5-mini"),
    "longrope of a part": get_preset("phi-4-mini"),
    "dynamic": LLAMA.overridden({"rope_scaling": {"kind": "dynamic", "factor": 2.0, "original_block_size": 8192}}),
}


def theirs_of(config, length):
    values = config_to_hf(config)
    theirs = AutoConfig.for_model(values.pop("model_type"), **values)
    layer_type = None if "rope_type" in theirs.rope_parameters else "full_attention"
    kind = config.rope_scaling.kind
    return ROPE_INIT_FUNCTIONS[kind](theirs, torch.device("cpu"), seq_len=length, layer_type=layer_type)


@pytest.mark.parametrize("beyond", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_published_tables(name, beyond):
    config = CONFIGS[name]
    length = config.rope_scaling.original_block_size * (2 if beyond else 1)
    expected, factor = theirs_of(config, length)
    frequencies = rope_frequencies(config, torch.tensor([length - 1]))
    torch.testing.assert_close(frequencies, expected, rtol=2e-6, atol=0)
    assert config.rope_scaling.rotation_scale == pytest.approx(factor)


@pytest.mark.parametrize("name", [name for name in CONFIGS if "linear" not in name])
def test_the_comparison_is_not_hollow(name):
    # It would be if every frequency fell into one branch of the rule.
    config = CONFIGS[name]
    length = 2 * config.rope_scaling.original_block_size
    plain = rope_frequencies(config.overridden({"rope_scaling": None}))
    ratio = plain / rope_frequencies(config, torch.tensor([length - 1]))
    assert ratio.max() > 1.5
    assert ratio.min() < 1.1
    assert len(ratio.unique()) > 2


def test_local_base_is_not_stretched():
    config = get_preset("gemma-3-4b")
    local = rope_frequencies(config, local=True)
    torch.testing.assert_close(local, 1 / 10000 ** (torch.arange(0, 256, 2) / 256))
