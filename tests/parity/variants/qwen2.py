"""Qwen2 and 2.5."""

SHAPE = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 48, "intermediate_size": 80}
SHAPE |= {"num_hidden_layers": 3, "vocab_size": 101, "max_position_embeddings": 64, "tie_word_embeddings": True}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 1e6}
VARIANTS = {
    "tied": {},
    "untied, yarn": {"tie_word_embeddings": False, "rope_parameters": YARN},
    "later layers slide": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
}
