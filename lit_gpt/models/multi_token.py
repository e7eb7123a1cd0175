"""Multi-token prediction (DeepSeek-V3, arXiv:2412.19437, section 2.2): a denser training signal from the same text.

Depth k takes the hidden states of depth k - 1 (of the model itself at first) and the embeddings of the tokens k
positions later, mixes them, runs one more block, and predicts the token k positions after the next one with the
model's own head. Position i thus sees exactly the tokens up to i + k, and every depth keeps the complete causal
chain. In generation the first depth can propose draft tokens (`lit_gpt.generation.speculative.MultiTokenDrafts`);
exports leave these blocks out.

B batch, T time, C model width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_gpt.models.block import build_block
from lit_gpt.models.cache import StepState
from lit_gpt.models.config import GPTConfig
from lit_gpt.models.linear import Linear
from lit_gpt.models.mixers import Context
from lit_gpt.models.moe import MixtureOfExperts
from lit_gpt.models.norms import build_norm


class MultiTokenBlock(nn.Module):
    """One prediction depth: `norm(block(proj([norm_hidden(h); norm_embedding(e)])))`, equations 21 and 22.

    The last norm follows the released model, which has one before the shared head at every depth; the paper omits it.

    Args:
        config: The model's architecture; the block is like the model's last one.
        depth: Prediction depth, from 1.
    """

    def __init__(self, config: GPTConfig, depth: int) -> None:
        super().__init__()
        C = config.n_embd
        self.norm_hidden = build_norm(config, C)
        self.norm_embedding = build_norm(config, C)
        self.proj = Linear(2 * C, C, bias=False)
        self.block = build_block(config, config.n_layer - 1)
        if isinstance(self.block.mlp, MixtureOfExperts):
            self.block.mlp.layer = config.n_layer - 1 + depth  # a separate entry in `Routing`
        self.norm = build_norm(config, C)

    def forward(
        self,
        hidden: Tensor,
        embedding: Tensor,
        context: Context,
        state: StepState | None = None,
    ) -> Tensor:
        """Return the hidden states of this depth.

        Args:
            hidden: (B, T, C), the normed hidden states of the previous depth.
            embedding: (B, T, C): at i, the embedding of the token at i + depth.
            context: The same context as for the model's blocks.
            state: In decoding, this block's states of the sequences being continued; None = training.

        Returns:
            (B, T, C), ready for the head.
        """
        x = self.proj(torch.cat((self.norm_hidden(hidden), self.norm_embedding(embedding)), dim=-1))
        return self.norm(self.block(x, context, state))


def tokens_ahead(input_ids: Tensor, depth: int) -> Tensor:
    """Return the token at i + depth for each position i: (B, T) int64.

    Row ends get token 0: a causal model shows them to no other position, and `objectives.mtp_labels` does not supervise
    them, but a router of this block counts them, so that they must be the same where a row is padded.
    """
    return F.pad(input_ids[:, depth:], (0, min(depth, input_ids.shape[1])))
