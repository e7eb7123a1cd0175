"""Llama 2 and 3, SmolLM2; and every RoPE scaling, beyond the original context of 16."""

SHAPE = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 48, "head_dim": 12}
SHAPE |= {"num_hidden_layers": 2, "intermediate_size": 96, "vocab_size": 101, "max_position_embeddings": 64}
SHAPE |= {"rms_norm_eps": 1e-5, "tie_word_embeddings": False}

ORIGINAL = {"original_max_position_embeddings": 16}
FREQUENCIES = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
FACTORS = {
    "short_factor": [1.0, 1.01, 1.02, 1.05, 1.1, 1.3],
    "long_factor": [1.0, 1.2, 1.7, 2.5, 3.6, 4.5],
}
VARIANTS = {
    "grouped queries": {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
    "multi-query, wide heads": {"num_key_value_heads": 1, "head_dim": 20},
    "multi-head, tied": {"num_key_value_heads": 4, "tie_word_embeddings": True},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "linear": {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}},
    "dynamic": {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0}, "max_position_embeddings": 16},
    "llama3": {"rope_parameters": {"rope_type": "llama3", **FREQUENCIES, **ORIGINAL}},
    "yarn": {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, **ORIGINAL, "beta_fast": 4.0}},
    "yarn, DeepSeek's temperatures": {
        "rope_parameters": {"rope_type": "yarn", "factor": 4.0, **ORIGINAL, "mscale": 0.7, "mscale_all_dim": 1.0}
    },
    "yarn, not truncated": {
        "rope_parameters": {
            "rope_type": "yarn",
            "factor": 4.0,
            **ORIGINAL,
            "beta_fast": 3.0,
            "truncate": False,
            "attention_factor": 1.5,
        }
    },
    "longrope": {"rope_parameters": {"rope_type": "longrope", "factor": 4.0, **ORIGINAL, **FACTORS}},
}
