"""Any architecture at a size that fits a laptop: for trying a family, comparing families, and testing them all."""

from typing import Any

from lit_gpt.models.config import GPTConfig


def shrink(
    config: GPTConfig,
    n_layer: int = 4,
    n_embd: int = 256,
    n_head: int = 8,
    block_size: int = 256,
    vocab_size: int = 8192,
    **overrides: Any,
) -> GPTConfig:
    """The same parts in small: grouped queries stay grouped, windows stay shorter than the context, experts stay many.

    Args:
        config: A preset, as published.
        n_layer: Blocks; the patterns of windows, positions and experts repeat over them as they do in the original.
        n_embd: Width.
        n_head: Query heads.
        block_size: Context in tokens; a window becomes a quarter of it.
        vocab_size: Rows of the embedding.
        **overrides: Further fields.

    Example:
        >>> shrink(get_preset("gemma-3-4b"), n_layer=6, n_embd=128)  # five sliding layers, then a full one
    """
    changes: dict[str, Any] = {
        "n_layer": n_layer,
        "n_embd": n_embd,
        "n_head": n_head,
        "n_kv_head": None if config.num_kv_heads == config.n_head else max(1, n_head // 4),
        "head_size": None,
        "block_size": block_size,
        "vocab_size": vocab_size,
    }
    if config.intermediate_size is not None:
        changes["intermediate_size"] = 11 * n_embd // 4 // 8 * 8
    if config.sliding_window is not None:
        changes["sliding_window"] = max(1, block_size // 4)
    if config.rope_scaling is not None and config.rope_scaling.kind in ("longrope", "dynamic"):
        changes["rope_scaling"] = None  # tables for another head size, or a threshold in tokens
    elif config.rope_scaling is not None:
        changes["rope_scaling"] = {"original_block_size": max(1, block_size // 2)}
    if config.logit_scale < 1:  # Granite's follows the width (muP, arXiv:2203.03466)
        changes["logit_scale"] = min(1.0, config.logit_scale * config.n_embd / n_embd)
    if config.attention_scale is not None and config.mla is None:
        changes["attention_scale"] = config.attention_scale * config.head_dim / (n_embd // n_head)
    if config.moe is not None:
        width = None if config.moe.intermediate_size is None else n_embd
        num_shared = -(-config.moe.shared_intermediate_size // config.expert_size)
        groups = {"n_group": 4, "topk_group": 2} if config.moe.n_group > 1 else {}
        changes["moe"] = {
            "num_experts": 16,
            "num_experts_per_tok": min(config.moe.num_experts_per_tok, 4),
            "intermediate_size": width,
            "shared_intermediate_size": num_shared * n_embd,
            "layers": None if config.moe.layers is None else (False, *[True] * max(1, n_layer - 1)),
            **groups,
        }
    if config.mla is not None:
        half = n_embd // n_head
        changes["mla"] = {
            "kv_lora_rank": n_embd // 4,
            "q_lora_rank": None if config.mla.q_lora_rank is None else 3 * n_embd // 8,
            "qk_nope_head_dim": half,
            "qk_rope_head_dim": max(2, half // 2),
            "v_head_dim": half,
        }
    return config.overridden(changes | overrides)
