"""Mistral."""

SHAPE = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 48, "head_dim": 16}
SHAPE |= {"num_hidden_layers": 2, "intermediate_size": 96, "vocab_size": 101, "max_position_embeddings": 64}
VARIANTS = {
    "every layer slides": {"sliding_window": 7},
    "no window": {"sliding_window": None, "tie_word_embeddings": True},
    "window as long as the context": {"sliding_window": 64, "num_key_value_heads": 4},
}
