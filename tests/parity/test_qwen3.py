import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM


def their_config(**changes):
    shape = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 48, "head_dim": 16}
    shape |= {"num_hidden_layers": 3, "intermediate_size": 80, "vocab_size": 101, "max_position_embeddings": 64}
    return Qwen3Config(**shape | {"tie_word_embeddings": True} | changes)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="tied"),
        pytest.param({"tie_word_embeddings": False, "attention_bias": True}, id="untied, biases"),
        pytest.param(
            {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}, id="later layers slide"
        ),
        pytest.param(
            {
                "use_sliding_window": True,
                "sliding_window": 9,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            },
            id="chosen layers slide",
        ),
    ],
)
def test_qwen3(changes, check_parity):
    torch.manual_seed(0)
    ours = check_parity(Qwen3ForCausalLM(their_config(**changes)))
    slides = [ours.config.window(layer) is not None for layer in range(3)]
    assert slides == {5: [False, True, True], 9: [True, False, True]}.get(changes.get("sliding_window"), [False] * 3)
