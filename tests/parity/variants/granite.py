"""Granite 3."""

SHAPE = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 48, "intermediate_size": 80}
SHAPE |= {"num_hidden_layers": 2, "vocab_size": 101, "max_position_embeddings": 64, "tie_word_embeddings": True}
SCALES = {"embedding_multiplier": 12.0, "attention_multiplier": 0.25, "residual_multiplier": 0.22}
VARIANTS = {
    "as published": SCALES | {"logits_scaling": 8.0},
    "untied, biases": SCALES
    | {"logits_scaling": 0.49, "tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True},
}
