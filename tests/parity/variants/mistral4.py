"""Mistral 4: latent attention, softmax routing, a shared expert, queries scaled by position."""

SHAPE = {"num_attention_heads": 4, "num_key_value_heads": 4, "hidden_size": 48, "intermediate_size": 80}
SHAPE |= {"num_hidden_layers": 2, "moe_intermediate_size": 24, "vocab_size": 101, "max_position_embeddings": 64}
SHAPE |= {"kv_lora_rank": 20, "q_lora_rank": 24, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 16}
SHAPE |= {"n_routed_experts": 8, "num_experts_per_tok": 3, "pad_token_id": 0}

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 10000.0}
YARN |= {"beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0}
VARIANTS = {
    "as published": {"rope_parameters": YARN | {"llama_4_scaling_beta": 0.1}},
    "groups, a plain layer, tied": {
        "rope_parameters": YARN | {"llama_4_scaling_beta": 0.5},
        "n_group": 4,
        "topk_group": 2,
        "first_k_dense_replace": 1,
        "tie_word_embeddings": True,
        "v_head_dim": 12,
    },
}
