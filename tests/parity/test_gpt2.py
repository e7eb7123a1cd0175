import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel


def their_config(**changes):
    return GPT2Config(n_layer=2, n_head=3, n_embd=48, n_positions=64, vocab_size=101, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="as published"),
        pytest.param({"tie_word_embeddings": False}, id="untied"),
        pytest.param({"n_inner": 80, "activation_function": "gelu"}, id="narrow exact gelu"),
        pytest.param({"activation_function": "relu2", "layer_norm_epsilon": 1e-3}, id="relu2"),
    ],
)
def test_gpt2(changes, check_parity, tmp_path):
    torch.manual_seed(0)
    ours = check_parity(GPT2LMHeadModel(their_config(**changes)))
    assert ours.config.tie_embeddings == changes.get("tie_word_embeddings", True)
    # A tied matrix is stored once.
    assert ("lm_head.weight" in load_file(tmp_path / "exported" / "model.safetensors")) == (
        not ours.config.tie_embeddings
    )
