"""GPT-2."""

SHAPE = {"n_layer": 2, "n_head": 3, "n_embd": 48, "n_positions": 64, "vocab_size": 101}
VARIANTS = {
    "as published": {},
    "untied": {"tie_word_embeddings": False},
    "narrow exact gelu": {"n_inner": 80, "activation_function": "gelu"},
    "relu2": {"activation_function": "relu2", "layer_norm_epsilon": 1e-3},
}
