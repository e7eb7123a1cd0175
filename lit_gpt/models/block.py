"""One transformer block, as in the textbook: pre-norm attention and MLP, each added to the residual stream."""

from torch import Tensor, nn

from lit_gpt.models.attention import SelfAttention
from lit_gpt.models.cache import KVCache
from lit_gpt.models.config import GPTConfig
from lit_gpt.models.masks import Mask
from lit_gpt.models.mlp import MLP
from lit_gpt.models.norms import build_norm
from lit_gpt.models.positions import Rotation


class Block(nn.Module):
    """`x + attn(ln1(x))`, then `x + mlp(ln2(x))`.

    Args:
        config: The model's shape.
        layer: Which block this is, from 0 (its place in the cache).
    """

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.ln1 = build_norm(config, config.n_embd)
        self.attn = SelfAttention(config, layer)
        self.ln2 = build_norm(config, config.n_embd)
        self.mlp = MLP(config)

    def forward(
        self, x: Tensor, rotation: Rotation | None = None, mask: Mask = None, cache: KVCache | None = None
    ) -> Tensor:
        """(B, T, C) → (B, T, C); the other arguments are `SelfAttention`'s."""
        x = x + self.attn(self.ln1(x), rotation, mask, cache)
        return x + self.mlp(self.ln2(x))
