"""Mixtral."""

SHAPE = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 48, "intermediate_size": 32}
SHAPE |= {"num_hidden_layers": 2, "vocab_size": 101, "max_position_embeddings": 64}
SHAPE |= {"num_local_experts": 6, "num_experts_per_tok": 2}

VARIANTS = {
    "as published": {},
    "sliding, tied, three experts a token": {
        "sliding_window": 9,
        "tie_word_embeddings": True,
        "num_experts_per_tok": 3,
        "router_aux_loss_coef": 0.02,
        "head_dim": 16,
    },
}
