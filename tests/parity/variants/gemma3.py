"""Gemma 3's language models."""

SHAPE = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 48, "head_dim": 16}
SHAPE |= {"num_hidden_layers": 3, "intermediate_size": 80, "vocab_size": 101, "max_position_embeddings": 64}
SHAPE |= {
    "sliding_window": 6,
    "query_pre_attn_scalar": 16,
    "layer_types": ["sliding_attention"] * 2 + ["full_attention"],
}
LOCAL = {"rope_type": "default", "rope_theta": 100.0}
VARIANTS = {
    "as published": {},
    "linear scaling in full layers": {
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": LOCAL,
        },
        "query_pre_attn_scalar": 21,
    },
    "window as long as the context": {"sliding_window": 64, "final_logit_softcapping": 3.0},
    "one base, untied": {
        "rope_parameters": {"full_attention": LOCAL, "sliding_attention": LOCAL},
        "tie_word_embeddings": False,
    },
}
