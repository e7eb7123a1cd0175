"""Phi-3, Phi-4, Phi-4-mini."""

SHAPE = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 64, "intermediate_size": 96}
SHAPE |= {"num_hidden_layers": 2, "vocab_size": 101, "max_position_embeddings": 64, "pad_token_id": 0}
VARIANTS = {
    "grouped queries": {"rope_parameters": {"rope_type": "default", "rope_theta": 250000.0}},
    "multi-head, sliding": {"num_key_value_heads": 4, "sliding_window": 7},
    "longrope, partly rotated, tied": {
        "original_max_position_embeddings": 16,
        "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "longrope",
            "partial_rotary_factor": 0.75,
            "short_factor": [1.0, 1.01, 1.02, 1.05, 1.1, 1.3],
            "long_factor": [1.0, 1.2, 1.7, 2.5, 3.6, 4.5],
        },
    },
}
