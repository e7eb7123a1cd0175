"""Ministral (2024): Mistral with chosen layers that slide."""

SHAPE = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 48, "head_dim": 16}
SHAPE |= {"num_hidden_layers": 3, "intermediate_size": 96, "vocab_size": 101, "max_position_embeddings": 64}
VARIANTS = {
    "some layers slide": {
        "sliding_window": 7,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "every layer slides, tied": {"sliding_window": 7, "tie_word_embeddings": True},
    "no layer slides": {"layer_types": ["full_attention"] * 3},
}
