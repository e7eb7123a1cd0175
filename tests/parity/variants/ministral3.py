"""Ministral 3: YaRN, queries scaled by position."""

SHAPE = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 48, "head_dim": 16}
SHAPE |= {
    "num_hidden_layers": 2,
    "intermediate_size": 96,
    "vocab_size": 101,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 1e6}
YARN |= {"beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0}
VARIANTS = {
    "as published": {"rope_parameters": YARN | {"llama_4_scaling_beta": 0.1}},
    "sliding, tied": {
        "rope_parameters": YARN | {"llama_4_scaling_beta": 0.5},
        "sliding_window": 9,
        "tie_word_embeddings": True,
    },
    "queries as they are": {"rope_parameters": YARN | {"llama_4_scaling_beta": 0.0}},
}
