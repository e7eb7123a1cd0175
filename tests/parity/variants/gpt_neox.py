"""GPT-NeoX, Pythia."""

SHAPE = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64, "intermediate_size": 96}
SHAPE |= {"max_position_embeddings": 64, "vocab_size": 101}
VARIANTS = {
    "as published": {"rotary_pct": 0.25},
    "one after the other": {"use_parallel_residual": False, "hidden_act": "gelu_fast"},
    "half rotated, no attention bias": {"rotary_pct": 0.5, "attention_bias": False, "rotary_emb_base": 500.0},
    "all rotated, tied": {"rotary_pct": 1.0, "tie_word_embeddings": True},
    "linear scaling": {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}},
}
