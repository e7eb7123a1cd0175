"""Qwen3's mixtures of experts."""

SHAPE = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 48, "head_dim": 16}
SHAPE |= {"num_hidden_layers": 3, "intermediate_size": 80, "moe_intermediate_size": 24, "vocab_size": 101}
SHAPE |= {"max_position_embeddings": 64, "num_experts": 8, "num_experts_per_tok": 3, "norm_topk_prob": True}

VARIANTS = {
    "as published": {},
    "biases, raw weights, tied": {"attention_bias": True, "norm_topk_prob": False, "tie_word_embeddings": True},
    "every other layer": {"decoder_sparse_step": 2},
    "sliding, a dense first layer": {"use_sliding_window": True, "sliding_window": 9, "mlp_only_layers": [0]},
}
