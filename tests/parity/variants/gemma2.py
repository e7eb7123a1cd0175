"""Gemma 2."""

SHAPE = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 48, "head_dim": 16}
SHAPE |= {"num_hidden_layers": 3, "intermediate_size": 80, "vocab_size": 101, "max_position_embeddings": 64}
SHAPE |= {"sliding_window": 6, "query_pre_attn_scalar": 16}
VARIANTS = {
    "as published": {},
    "tight caps, another scale": {
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
        "query_pre_attn_scalar": 9,
    },
    "no caps, untied, biases": {
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "tie_word_embeddings": False,
        "attention_bias": True,
    },
    "no window": {"sliding_window": 64},
}
