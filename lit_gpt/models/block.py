"""Transformer blocks: the standard pre-norm block and four published variants of where norms and residuals go.

B batch, T time, C model width.
"""

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lit_gpt.models.config import GPTConfig
from lit_gpt.models.mixers import Context, mixer_kind
from lit_gpt.models.mlp import MLP
from lit_gpt.models.moe import MixtureOfExperts
from lit_gpt.models.norms import build_norm

if TYPE_CHECKING:
    from lit_gpt.models.cache import StepState


class Block(nn.Module):
    """Pre-norm transformer block: `x + attn(ln1(x))`, then `x + mlp(ln2(x))` (GPT-2; arXiv:2002.04745).

    Each branch is multiplied by `residual_scale` (1 in most models) before it is added to the residual stream.
    The norms and the MLP may be replaced by any module (B, T, C) → (B, T, C): `block.mlp = nn.Sequential(...)`.

    Args:
        config: The model's architecture.
        layer: Index of the block, from 0.
    """

    _plain: frozenset[str] = frozenset()
    """Names of the replaced parts whose `forward` takes only x, without a context."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.residual_scale = config.residual_scale
        self.ln1 = build_norm(config, config.n_embd)
        # Called attn for every kind of token mixer, so that weight names do not depend on the kind.
        self.attn = mixer_kind(config.token_mixer(layer)).build(config, layer)
        self.ln2 = build_norm(config, config.n_embd)
        self.mlp: nn.Module = MixtureOfExperts(config, layer) if config.is_moe(layer) else MLP(config)

    def __setattr__(self, name: str, value: Any) -> None:
        """Record which parts take only x."""
        super().__setattr__(name, value)
        if isinstance(value, nn.Module):
            # Done here and not in `forward`, which torch.compile traces.
            self._plain = self._plain | {name} if _takes_x_alone(value) else self._plain - {name}

    def forward(self, x: Tensor, context: Context, state: "StepState | None" = None) -> Tensor:
        """Apply the block: (B, T, C) → (B, T, C).

        Args:
            x: The residual stream.
            context: Inputs shared by all layers of this forward.
            state: In decoding, this layer's states of the sequences being continued; None = training.
        """
        if context.prepared and not self._plain:
            # The same computation without the modules' hooks. For a small model in decoding, a module call takes about
            # as long as the operation in it (measured on one CPU thread: 3 % of a step at 6 layers of width 384).
            parts: Any = self._modules
            x = self.join(x, parts["attn"].forward(parts["ln1"].forward(x, True), context, state))
            return self.join(x, parts["mlp"].forward(parts["ln2"].forward(x, True), context))
        x = self.join(x, self.attn(self.ln1(x), context, state))
        return self.join(x, self.mix_channels(self.ln2(x), context))

    def mix_channels(self, x: Tensor, context: Context) -> Tensor:
        """Apply the MLP, the mixture of experts, or its replacement: (B, T, C) → (B, T, C)."""
        return self.mlp(x) if "mlp" in self._plain else self.mlp(x, context)

    def join(self, x: Tensor, branch: Tensor) -> Tensor:
        """Add a branch to the residual stream: x + residual_scale · branch."""
        if self.residual_scale == 1:
            return x + branch
        return torch.add(x, branch, alpha=self.residual_scale)


class ParallelBlock(Block):
    """Parallel block: both branches read the same input, `x + attn(ln1(x)) + mlp(ln2(x))` (GPT-NeoX, 2204.06745)."""

    def forward(self, x: Tensor, context: Context, state: "StepState | None" = None) -> Tensor:
        """Apply the block: (B, T, C) → (B, T, C)."""
        return self.join(x, self.attn(self.ln1(x), context, state) + self.mix_channels(self.ln2(x), context))


class PostNormBlock(Block):
    """Post-norm block of the original transformer: `ln1(x + attn(x))`, then `ln2(x + mlp(x))` (arXiv:1706.03762)."""

    def forward(self, x: Tensor, context: Context, state: "StepState | None" = None) -> Tensor:
        """Apply the block: (B, T, C) → (B, T, C)."""
        x = self.ln1(self.join(x, self.attn(x, context, state)))
        return self.ln2(self.join(x, self.mix_channels(x, context)))


class OutputNormBlock(Block):
    """Block with normed branch outputs: `x + ln1(attn(x))`, then `x + ln2(mlp(x))` (OLMo 2, arXiv:2501.00656)."""

    def forward(self, x: Tensor, context: Context, state: "StepState | None" = None) -> Tensor:
        """Apply the block: (B, T, C) → (B, T, C)."""
        x = self.join(x, self.ln1(self.attn(x, context, state)))
        return self.join(x, self.ln2(self.mix_channels(x, context)))


class SandwichBlock(Block):
    """Block with norms before and after each branch: `x + ln1_out(attn(ln1(x)))`, then the MLP likewise (Gemma 2)."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.ln1_out = build_norm(config, config.n_embd)
        self.ln2_out = build_norm(config, config.n_embd)

    def forward(self, x: Tensor, context: Context, state: "StepState | None" = None) -> Tensor:
        """Apply the block: (B, T, C) → (B, T, C)."""
        x = self.join(x, self.ln1_out(self.attn(self.ln1(x), context, state)))
        return self.join(x, self.ln2_out(self.mix_channels(self.ln2(x), context)))


BLOCKS: dict[str, type[Block]] = {
    "pre": Block,
    "post": PostNormBlock,
    "output": OutputNormBlock,
    "sandwich": SandwichBlock,
}


def build_block(config: GPTConfig, layer: int) -> Block:
    """Return the block selected by the config's `norm_placement` and `parallel_residual`."""
    return (ParallelBlock if config.parallel_residual else BLOCKS[config.norm_placement])(config, layer)


def _takes_x_alone(part: nn.Module) -> bool:
    """Return whether a module's `forward` takes a single positional argument."""
    kinds = [parameter.kind for parameter in inspect.signature(part.forward).parameters.values()]
    positional = [kind for kind in kinds if kind in (kind.POSITIONAL_ONLY, kind.POSITIONAL_OR_KEYWORD)]
    return len(positional) == 1 and inspect.Parameter.VAR_POSITIONAL not in kinds
