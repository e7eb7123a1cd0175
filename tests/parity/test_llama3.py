import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


def their_config(**changes):
    shape = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 48, "head_dim": 12}
    shape |= {"num_hidden_layers": 2, "intermediate_size": 96, "vocab_size": 101, "max_position_embeddings": 64}
    return LlamaConfig(**shape | {"rms_norm_eps": 1e-5, "tie_word_embeddings": False} | changes)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}, id="grouped queries"),
        pytest.param({"rope_parameters": LLAMA3_ROPE}, id="llama3 scaling"),
        pytest.param(
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}}, id="linear scaling"
        ),
        pytest.param({"num_key_value_heads": 1, "head_dim": 20}, id="multi-query, wide heads"),
        pytest.param({"num_key_value_heads": 4, "tie_word_embeddings": True}, id="multi-head, tied"),
        pytest.param({"attention_bias": True, "mlp_bias": True}, id="biases"),
    ],
)
def test_llama(changes, check_parity):
    torch.manual_seed(0)
    ours = check_parity(LlamaForCausalLM(their_config(**changes)))
    rope = changes.get("rope_parameters", {})
    assert (ours.config.rope_scaling is not None) == (rope.get("rope_type", "default") != "default")
    assert ours.config.rope_theta == rope.get("rope_theta", 10000.0)


def test_llama3_scaling_bends_all_three_kinds_of_frequency():
    # The parity above would be hollow if every frequency of the small model fell into one branch of the rule.
    from lit_gpt.models import GPTConfig, RopeScaling
    from lit_gpt.models.positions import rope_frequencies

    plain = GPTConfig(n_embd=48, n_head=4, positions="rope")
    scaled = GPTConfig(n_embd=48, n_head=4, positions="rope", rope_scaling=RopeScaling("llama3", 4.0, 1.0, 4.0, 16))
    ratio = rope_frequencies(plain) / rope_frequencies(scaled)
    assert ratio[0] > 1
    assert (ratio > 3.99).any()
    assert ratio.max() <= 4.001
    real = GPTConfig.from_preset("llama-3.1-8b")
    published = rope_frequencies(GPTConfig.from_preset("llama-3.1-8b", rope_scaling=None)) / rope_frequencies(real)
    assert (published == 1).any()
    assert ((published > 1.01) & (published < 7.99)).any()
    assert (published > 7.999).any()
