"""Qwen3's dense models."""

SHAPE = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 48, "head_dim": 16}
SHAPE |= {"num_hidden_layers": 3, "intermediate_size": 80, "vocab_size": 101, "max_position_embeddings": 64}
SHAPE |= {"tie_word_embeddings": True}
VARIANTS = {
    "tied": {},
    "untied, biases": {"tie_word_embeddings": False, "attention_bias": True},
    "later layers slide": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    "chosen layers slide": {
        "use_sliding_window": True,
        "sliding_window": 9,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
}
