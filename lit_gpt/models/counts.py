"""Parameters and FLOPs of a `GPTConfig`, counted without building the model.

Shape letters: V vocabulary, C model width, H query heads, K key/value heads, D head size, F MLP width.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lit_gpt.models.config import GPTConfig


def num_parameters(config: "GPTConfig", embeddings: bool = True) -> int:
    """Parameters of the model; see `GPTConfig.num_parameters`."""
    V, C, T = config.vocab_size, config.n_embd, config.block_size
    token_embedding = V * C
    positions = T * C if config.positions == "learned" else 0
    head = 0 if config.tie_embeddings else V * C
    total = token_embedding + positions + config.n_layer * _block(config) + _norm(config, C) + head
    if embeddings:
        return total
    return total - positions - (0 if config.tie_embeddings else token_embedding)


def flops_per_token(config: "GPTConfig", context: int, causal: bool = False) -> int:
    """Training FLOPs of one token: 6 N + 12 · layers · width · context.

    N leaves out what is only looked up (the head stays: it is a matrix product, tied or not); 6 = 2 for the
    multiply and add, times forward 1 + backward 2. The second term is the two products of attention, with a
    layer's window in place of the context where that is shorter. Source: PaLM, arXiv:2204.02311, appendix B.
    """
    width = config.n_head * config.head_dim
    attention = 0
    for layer in range(config.n_layer):
        attention += 12 * width * min(context, config.window(layer) or context)
    return 6 * num_parameters(config, embeddings=False) + (attention // 2 if causal else attention)


def _norm(config: "GPTConfig", width: int) -> int:
    return 2 * width if config.norm == "layernorm" and config.bias else width


def _linear(inputs: int, outputs: int, bias: bool) -> int:
    return inputs * outputs + (outputs if bias else 0)


def _block(config: "GPTConfig") -> int:
    C, D, F = config.n_embd, config.head_dim, config.mlp_size
    HD, KD = config.n_head * D, config.num_kv_heads * D
    bias = config.has_attention_bias
    attention = _linear(C, HD, bias) + 2 * _linear(C, KD, bias) + _linear(HD, C, bias)
    if config.qk_norm:
        attention += 2 * _norm(config, D)
    into = 2 if config.mlp == "swiglu" else 1
    mlp = into * _linear(C, F, config.has_mlp_bias) + _linear(F, C, config.has_mlp_bias)
    return attention + mlp + 2 * _norm(config, C)
