"""OLMo 2."""

SHAPE = {"num_attention_heads": 4, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2}
SHAPE |= {"vocab_size": 101, "max_position_embeddings": 64}
VARIANTS = {
    "as published": {},
    "grouped queries, tied": {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "biases": {"attention_bias": True, "rms_norm_eps": 1e-4},
}
