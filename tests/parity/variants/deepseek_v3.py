"""DeepSeek-V3: latent attention, groups of experts, selection biases, a shared expert."""

SHAPE = {"num_attention_heads": 4, "num_key_value_heads": 4, "hidden_size": 48, "intermediate_size": 80}
SHAPE |= {"num_hidden_layers": 3, "moe_intermediate_size": 24, "vocab_size": 101, "max_position_embeddings": 64}
SHAPE |= {"kv_lora_rank": 20, "q_lora_rank": 24, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 10}
SHAPE |= {"n_routed_experts": 8, "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2, "first_k_dense_replace": 1}

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 10000.0}
YARN |= {"beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0}
VARIANTS = {
    "as published": {"rope_parameters": YARN},
    "another temperature": {"rope_parameters": YARN | {"mscale": 0.707, "mscale_all_dim": 0.4}},
    "whole queries, no groups, two shared experts": {  # Moonlight
        "q_lora_rank": None,
        "n_group": 1,
        "topk_group": 1,
        "n_shared_experts": 2,
        "rms_norm_eps": 1e-5,
        "routed_scaling_factor": 2.446,
    },
    "biases, tied, experts everywhere": {
        "attention_bias": True,
        "tie_word_embeddings": True,
        "first_k_dense_replace": 0,
        "norm_topk_prob": False,
    },
}
