"""SmolLM3."""

SHAPE = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 48, "intermediate_size": 80}
SHAPE |= {"num_hidden_layers": 4, "vocab_size": 101, "max_position_embeddings": 64, "pad_token_id": 0}
VARIANTS = {
    "as published": {},
    "untied, biases": {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True},
    "layers that do not rotate slide": {"use_sliding_window": True, "sliding_window": 6, "no_rope_layer_interval": 2},
    "all rotate": {"no_rope_layers": [1, 1, 1, 1]},
}
