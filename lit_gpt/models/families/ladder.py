"""Project-defined presets, which train in minutes on a laptop to days on a node, and `shrink`, for any preset.

The presets use Qwen3's components (arXiv:2505.09388), so that each exports to a widely supported Hugging Face class:
RMSNorm, RoPE, QK-norm, SwiGLU, no biases. Widths follow GPT-3's table 2.1 (arXiv:2005.14165), with heads of 64 (128
from 760m) and an MLP of 8/3 the width rounded up to 128 (so SwiGLU's three matrices cost as much as two of 4x in a GELU
MLP; arXiv:2002.05202). The depth is chosen so that the parameter count matches the preset's name at the given
vocabulary size: GPT-2's, padded to a multiple of 64 as in nanoGPT, and smaller for the small presets, where the
embedding would otherwise dominate the count. All embeddings are tied. The vocabulary size is usually replaced by that
of the tokenizer. RoPE's base is RoFormer's 10000, enough for 2048 tokens.
"""

from dataclasses import replace
from typing import Any

from lit_gpt.models.config import GPTConfig
from lit_gpt.models.families.family import Family

_LADDER = GPTConfig(
    vocab_size=50304,
    block_size=1024,
    bias=False,
    norm="rmsnorm",
    norm_eps=1e-6,
    positions="rope",
    rope_theta=10000.0,
    mlp="swiglu",
    qk_norm="head",
    tie_embeddings=True,
    family="qwen3",
)
_TINY = replace(_LADDER, vocab_size=4096, block_size=256)
_20M = replace(_LADDER, vocab_size=16384, block_size=512)
_LONG = replace(_LADDER, block_size=2048)

PRESETS: dict[str, GPTConfig] = {
    "tiny": replace(_TINY, n_layer=6, n_head=4, n_embd=256, intermediate_size=768),
    "20m": replace(_20M, n_layer=8, n_head=6, n_embd=384, intermediate_size=1024),
    "50m": replace(_LADDER, n_layer=8, n_head=8, n_embd=512, intermediate_size=1408),
    "124m": replace(_LADDER, n_layer=12, n_head=12, n_embd=768, intermediate_size=2048),
    "350m": replace(_LONG, n_layer=24, n_head=16, n_embd=1024, intermediate_size=2816),
    "760m": replace(_LONG, n_layer=24, n_head=12, n_embd=1536, intermediate_size=4096),
    "1.5b": replace(_LONG, n_layer=28, n_head=16, n_embd=2048, intermediate_size=5504),
}


FAMILIES: tuple[Family, ...] = ()
PUBLISHED: dict[str, int] = {}


def shrink(
    config: GPTConfig,
    n_layer: int = 4,
    n_embd: int = 256,
    n_head: int = 8,
    block_size: int = 256,
    vocab_size: int = 8192,
    **overrides: Any,
) -> GPTConfig:
    """Return an architecture scaled down to laptop size, for trying it out, comparing families and testing.

    Architectural features are preserved: grouped-query attention, windows shorter than the context, multiple experts.

    Args:
        config: A preset, as published.
        n_layer: Number of blocks; patterns of windows, positions and experts repeat over them as in the original.
        n_embd: Width of the residual stream.
        n_head: Number of query heads.
        block_size: Context length in tokens; windows become a quarter of it.
        vocab_size: Number of rows of the embedding.
        **overrides: Further fields.

    Example:
        >>> shrink(get_preset("gemma-3-4b"), n_layer=6, n_embd=128)  # five sliding-window layers, then a full one
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
        changes["rope_scaling"] = None  # depends on the original head size or context
    elif config.rope_scaling is not None:
        changes["rope_scaling"] = {"original_block_size": max(1, block_size // 2)}
    if config.logit_scale < 1:  # Granite scales it with the width (muP, arXiv:2203.03466)
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
