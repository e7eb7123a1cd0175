"""Parameters and FLOPs of a `GPTConfig`, computed without building the model.

Shape letters: V vocabulary, C model width, H query heads, K key/value heads, D head size, F MLP width, E experts.
"""

from typing import TYPE_CHECKING

import torch

from lit_gpt.models.choices import GATED
from lit_gpt.models.mixers import mixer_kind

if TYPE_CHECKING:
    from lit_gpt.models.config import GPTConfig


def num_parameters(config: "GPTConfig", embeddings: bool = True, active: bool = False) -> int:
    """Return the number of parameters of the model; see `GPTConfig.num_parameters`."""
    V, C, T = config.vocab_size, config.n_embd, config.block_size
    token_embedding = V * C
    positions = T * C if config.positions == "learned" else 0
    head = 0 if config.tie_embeddings else V * C
    blocks = sum(_block(config, layer, active) for layer in range(config.n_layer))
    total = token_embedding + positions + blocks + _norm(config, C) + head
    if not active:  # used only in training
        total += config.multi_token * _multi_token_block(config)
    if embeddings:
        return total
    return total - positions - (0 if config.tie_embeddings else token_embedding)


def flops_per_token(config: "GPTConfig", context: int, causal: bool = False) -> int:
    """Return the training FLOPs per token: 6 N + 12 · layers · width · context.

    N excludes lookup-only parameters (the head counts, tied or not, because it is a matrix product) and experts that
    the token is not routed to; 6 = 2 for multiply and add, times forward 1 + backward 2. The second term is attention's
    two matrix products, with a layer's window instead of the context if that is shorter. Source: PaLM,
    arXiv:2204.02311, appendix B. Multi-token-prediction blocks (`multi_token`) count in full: each is one more block
    and one more pass through the head.
    """
    kinds = [mixer_kind(config.token_mixer(layer)).build for layer in range(config.n_layer)]
    attention = sum(kind.flops_per_token(config, layer, context) for layer, kind in enumerate(kinds))
    last = config.n_layer - 1
    attention += config.multi_token * kinds[last].flops_per_token(config, last, context)
    products = num_parameters(config, embeddings=False, active=True)
    products += config.multi_token * (_multi_token_block(config, active=True) + config.vocab_size * config.n_embd)
    return 6 * products + (attention // 2 if causal else attention)


def layer_flops(config: "GPTConfig", layer: int, context: int, causal: bool = False) -> int:
    """Return the training FLOPs per token of one block; arguments as for `flops_per_token`."""
    attention = mixer_kind(config.token_mixer(layer)).build.flops_per_token(config, layer, context)
    return 6 * _block(config, layer, active=True) + (attention // 2 if causal else attention)


def head_flops(config: "GPTConfig") -> int:
    """Return the training FLOPs per token of the final norm and the LM head."""
    return 6 * (_norm(config, config.n_embd) + config.vocab_size * config.n_embd)


def multi_token_flops(config: "GPTConfig", context: int, causal: bool = False) -> int:
    """Return the training FLOPs per token of all multi-token-prediction blocks and their passes through the head."""
    block = layer_flops(config, config.n_layer - 1, context, causal) - 6 * _block(config, config.n_layer - 1, True)
    products = _multi_token_block(config, active=True) + config.vocab_size * config.n_embd
    return config.multi_token * (6 * products + block)


def _norm(config: "GPTConfig", width: int) -> int:
    return 2 * width if config.norm == "layernorm" and config.bias else width


def _linear(inputs: int, outputs: int, bias: bool) -> int:
    return inputs * outputs + (outputs if bias else 0)


def _block(config: "GPTConfig", layer: int, active: bool) -> int:
    attention = _token_mixer(config, layer)
    mlp = _experts(config, active) if config.is_moe(layer) else _mlp(config, config.mlp_size)
    norms = 4 if config.norm_placement == "sandwich" else 2
    return attention + mlp + norms * _norm(config, config.n_embd)


def _token_mixer(config: "GPTConfig", layer: int) -> int:
    kind = config.token_mixer(layer)
    if kind in ("attention", "sliding"):
        return _attention(config)
    if kind == "latent":
        return _latent_attention(config)
    with torch.device("meta"):  # no memory is allocated
        return sum(parameter.numel() for parameter in mixer_kind(kind).build(config, layer).parameters())


def _attention(config: "GPTConfig") -> int:
    C, D = config.n_embd, config.head_dim
    HD, KD = config.n_head * D, config.num_kv_heads * D
    bias = config.has_attention_bias
    total = _linear(C, HD, bias) + 2 * _linear(C, KD, bias) + _linear(HD, C, config.has_attention_out_bias)
    if config.qk_norm == "head":
        total += 2 * _norm(config, D)
    elif config.qk_norm == "projection":
        total += _norm(config, HD) + _norm(config, KD)
    return total + (config.n_head if config.attention_sinks else 0)


def _latent_attention(config: "GPTConfig") -> int:
    mla, C, H, bias = config.mla, config.n_embd, config.n_head, config.has_attention_bias
    assert mla is not None
    if mla.q_lora_rank is None:
        queries = _linear(C, H * mla.qk_head_dim, False)
    else:
        queries = _linear(C, mla.q_lora_rank, bias) + _norm(config, mla.q_lora_rank)
        queries += _linear(mla.q_lora_rank, H * mla.qk_head_dim, False)
    latent = _linear(C, mla.kv_lora_rank + mla.qk_rope_head_dim, bias) + _norm(config, mla.kv_lora_rank)
    kv_up_proj = _linear(mla.kv_lora_rank, H * (mla.qk_nope_head_dim + mla.v_head_dim), False)
    return queries + latent + kv_up_proj + _linear(H * mla.v_head_dim, C, config.has_attention_out_bias)


def _mlp(config: "GPTConfig", width: int) -> int:
    C, bias = config.n_embd, config.has_mlp_bias
    return (2 if config.mlp in GATED else 1) * _linear(C, width, bias) + _linear(width, C, bias)


def _experts(config: "GPTConfig", active: bool) -> int:
    moe = config.moe
    assert moe is not None
    router = _linear(config.n_embd, moe.num_experts, moe.router_bias)
    chosen = moe.num_experts_per_tok if active else moe.num_experts
    shared = _mlp(config, moe.shared_intermediate_size) if moe.shared_intermediate_size else 0
    return router + chosen * _mlp(config, config.expert_size) + shared


def _multi_token_block(config: "GPTConfig", active: bool = False) -> int:
    """Count a multi-token-prediction block: two norms, a projection from twice the width, a block and a norm."""
    C = config.n_embd
    return 3 * _norm(config, C) + 2 * C * C + _block(config, config.n_layer - 1, active)
