"""The norm a config asks for: LayerNorm (arXiv:1607.06450) or RMSNorm (arXiv:1910.07467)."""

from torch import nn

from lit_gpt.models.config import GPTConfig


def build_norm(config: GPTConfig, width: int) -> nn.LayerNorm | nn.RMSNorm:
    """A norm over the last dimension, of size `width`."""
    if config.norm == "layernorm":
        return nn.LayerNorm(width, eps=config.norm_eps, bias=config.bias)
    return nn.RMSNorm(width, eps=config.norm_eps)
