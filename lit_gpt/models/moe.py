"""A mixture of experts in the place of a block's MLP (Shazeer et al. 2017, arXiv:1701.06538).

B batch, T time, C model width.
"""

import torch
from torch import Tensor, nn

from lit_gpt.models.config import GPTConfig
from lit_gpt.models.experts import Experts
from lit_gpt.models.mixers import Context
from lit_gpt.models.mlp import MLP
from lit_gpt.models.router import Router, Routes
from lit_gpt.models.routing import Routing


class MixtureOfExperts(nn.Module):
    """A router sends each token to a few experts; a shared expert, if there is one, takes them all.

    The shared one is DeepSeekMoE's (arXiv:2401.06066): a plain MLP, added with weight 1.

    Args:
        config: The model's shape.
        layer: Which block this is, from 0 (its name in a `Routing`).
    """

    def __init__(self, config: GPTConfig, layer: int = 0) -> None:
        super().__init__()
        assert config.moe is not None
        self.layer, self.moe = layer, config.moe
        self.router = Router(config)
        self.experts = Experts(config)
        width = config.moe.shared_intermediate_size
        self.shared = MLP(config, width) if width else None
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, context: Context | None = None) -> Tensor:
        """(B, T, C) → (B, T, C).

        Args:
            x: Hidden states.
            context: Its `routing` is where the choices are recorded; None = nowhere.
        """
        routes = self.router(x)
        if context is not None and context.routing is not None:
            self._record(context.routing, routes)
        y = self.experts(x.flatten(0, 1), routes.experts.flatten(0, 1), routes.weights.flatten(0, 1))
        y = self.drop(y.view_as(x))
        return y if self.shared is None else y + self.shared(x, context)

    @torch.compiler.disable  # compiled, every layer's number would make a graph of its own
    def _record(self, routing: Routing, routes: Routes) -> None:
        balanced, with_z = self.moe.balance_loss_weight > 0, self.moe.z_loss_weight > 0
        routing.record(self.layer, routes.experts, routes.logits, routes.scores, balanced, with_z)
