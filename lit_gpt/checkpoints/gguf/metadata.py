"""The settings of a model as GGUF's key-value pairs: `qwen3.attention.head_count` and its kin.

A Python int is written as uint32, a float as float32.
"""

from typing import Any

from lit_gpt.checkpoints.gguf.architecture import Architecture
from lit_gpt.models import GPTConfig

Value = str | int | float | bool | list[Any]


def hyperparameters(config: GPTConfig, architecture: Architecture) -> dict[str, Value]:
    """Return the pairs that make llama.cpp build the model."""
    values: dict[str, Value] = {
        "vocab_size": config.vocab_size,
        "context_length": config.block_size,
        "embedding_length": config.n_embd,
        "block_count": config.n_layer,
        "feed_forward_length": config.mlp_size,
        "attention.head_count": config.n_head,
        "attention.head_count_kv": config.num_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        f"attention.layer_norm{'_rms' if config.norm == 'rmsnorm' else ''}_epsilon": float(config.norm_eps),
        **_rope(config),
        **_windows(config, architecture),
        **_mixture(config),
    }
    if config.family == "gpt_neox":
        values["use_parallel_residual"] = config.parallel_residual
    if config.family == "granite":
        values |= {
            "attention.scale": float(config.score_scale),
            "embedding_scale": float(config.embedding_multiplier),
            "residual_scale": float(config.residual_scale),
            "logit_scale": 1.0 / config.logit_scale,
        }
    if config.attention_softcap is not None:
        values["attn_logit_softcapping"] = float(config.attention_softcap)
    if config.logit_softcap is not None:
        values["final_logit_softcapping"] = float(config.logit_softcap)
    return {f"{architecture.name}.{key}": value for key, value in values.items()}


def _rope(config: GPTConfig) -> dict[str, Value]:
    if config.positions != "rope":
        return {}
    values: dict[str, Value] = {
        "rope.dimension_count": config.rope_size,
        "rope.freq_base": float(config.rope_theta),
    }
    if config.rope_local_theta is not None:
        values["rope.freq_base_swa"] = float(config.rope_local_theta)
    scaling = config.rope_scaling
    if config.family == "phi3":  # it looks for the original context in any case
        original = config.block_size if scaling is None else scaling.original_block_size
        values["rope.scaling.original_context_length"] = original
    if scaling is None or scaling.kind == "llama3":  # llama3's is a tensor
        return values
    values["rope.scaling.type"] = scaling.kind
    if scaling.kind == "longrope":
        return {**values, "rope.scaling.attn_factor": float(scaling.rotation_scale)}
    values["rope.scaling.factor"] = float(scaling.factor)
    if scaling.kind == "yarn":
        values |= {
            "rope.scaling.original_context_length": scaling.original_block_size,
            "rope.scaling.yarn_beta_fast": float(scaling.beta_fast),
            "rope.scaling.yarn_beta_slow": float(scaling.beta_slow),
            # llama.cpp has the paper's temperature built in and multiplies by this
            "rope.scaling.attn_factor": scaling.rotation_scale / scaling.temperature(1.0),
        }
    return values


def _windows(config: GPTConfig, architecture: Architecture) -> dict[str, Value]:
    if config.sliding_window is None:
        # Gemma 2 would take 4096 for granted; Phi-3 tells by a 0 that there is none.
        default = {"gemma2": config.block_size, "phi3": 0}.get(config.family)
        return {} if default is None else {"attention.sliding_window": default}
    values: dict[str, Value] = {"attention.sliding_window": config.sliding_window}
    if architecture.full_every is None:
        pattern = [config.slides(layer) for layer in range(config.n_layer)]
        values["attention.sliding_window_pattern"] = pattern
    return values


def _mixture(config: GPTConfig) -> dict[str, Value]:
    if config.moe is None:
        return {}
    return {
        "expert_count": config.moe.num_experts,
        "expert_used_count": config.moe.num_experts_per_tok,
        "expert_feed_forward_length": config.expert_size,
    }
