"""OLMo 3."""

SHAPE = {"num_attention_heads": 4, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 4}
SHAPE |= {"vocab_size": 101, "max_position_embeddings": 64, "sliding_window": 6}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 500000.0}
VARIANTS = {
    "as published": {},
    "yarn in full layers": {
        "rope_parameters": {
            "full_attention": YARN | {"attention_factor": 1.2079441541679836},
            "sliding_attention": {"rope_type": "default", "rope_theta": 500000.0},
        },
        "num_key_value_heads": 2,
    },
    "window as long as the context": {"sliding_window": 64, "tie_word_embeddings": True},
}
