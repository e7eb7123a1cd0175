"""Granite with sliding layers and sinks."""

SHAPE = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 48, "intermediate_size": 80}
SHAPE |= {"num_hidden_layers": 4, "vocab_size": 101, "max_position_embeddings": 64, "sliding_window": 6}
SHAPE |= {"embedding_multiplier": 6.0, "attention_multiplier": 0.25, "residual_multiplier": 0.3, "logits_scaling": 0.5}
SHAPE |= {"bos_token_id": 1, "eos_token_id": 2}
VARIANTS = {
    "as published": {},
    "two bases": {"layer_rope_theta": [500000.0, 100.0, 100.0, 100.0], "tie_word_embeddings": False},
    "full layers do not rotate": {"layer_rope_theta": [0.0, 10000.0, 10000.0, 10000.0]},
}
