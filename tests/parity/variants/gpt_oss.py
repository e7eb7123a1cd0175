"""GPT-OSS: sinks, alternating windows, biases everywhere, clamped gates."""

SHAPE = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 48, "head_dim": 16}
SHAPE |= {"num_hidden_layers": 4, "intermediate_size": 32, "vocab_size": 101, "max_position_embeddings": 64}
SHAPE |= {"num_local_experts": 6, "num_experts_per_tok": 3, "sliding_window": 9, "pad_token_id": 0}

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 150000.0}
YARN |= {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": False}
VARIANTS = {
    "as published": {"rope_parameters": YARN},
    "plain rope, full attention in one layer": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
        "attention_bias": False,
        "tie_word_embeddings": True,
    },
}
