"""Routers in training: their losses, their loads, and the biases that even the loads out.

`GPTModule` asks for a record before each forward, takes the routers' loss after it, and closes the step before the
optimizer moves. Everything stays on the device until a step is logged.

B batch, E experts, L mixtures in the model.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lit_gpt.batch import IGNORE_INDEX, Batch
from lit_gpt.models import MoEConfig
from lit_gpt.models.moe import MixtureOfExperts
from lit_gpt.models.routing import Routing
from lit_gpt.objectives import expert_loads, load_measures, move_selection_bias, routing_loss


class RouterTraining:
    """The routers' side of one optimizer step.

    Args:
        moe: Has the weights of the losses and the rate of the biases.
    """

    def __init__(self, moe: MoEConfig) -> None:
        self.moe = moe
        self._open: list[tuple[Routing, Tensor]] = []
        self._loads: dict[int, Tensor] = {}

    def begin_step(self) -> None:
        """Forget the step before."""
        self._open.clear()
        self._loads.clear()

    def new_record(self, batch: Batch) -> Routing:
        """A record for one forward over this batch, whose rows count by their supervised tokens."""
        routing = Routing(batch.get("document_ids"))
        self._open.append((routing, (batch["labels"] != IGNORE_INDEX).sum(1)))
        return routing

    def take_loss(self) -> Tensor | None:
        """The losses of the forwards since the last call, and their loads noted; None if there were none."""
        losses = [routing_loss(routing, self.moe, weights) for routing, weights in self._open]
        for layer, load in expert_loads([routing for routing, _ in self._open]).items():
            self._loads[layer] = self._loads[layer] + load if layer in self._loads else load
        self._open.clear()
        return torch.stack(losses).sum() if losses else None

    @torch.no_grad()
    def finish_step(
        self, model: nn.Module, sum_over_ranks: Callable[[Tensor], Tensor], measure: bool
    ) -> dict[str, Any]:
        """Move the selection biases, once all micro-batches are in.

        Args:
            model: Has the routers.
            sum_over_ranks: Adds a tensor up over data-parallel ranks.
            measure: Whether the loads are wanted for a log, which waits for the device.

        Returns:
            `max_load`, `max_load_worst` and `entropy`, if wanted.
        """
        if not self._loads or not (measure or self.moe.bias_update_rate):
            return {}
        layers = sorted(self._loads)
        loads = sum_over_ranks(torch.stack([self._loads[layer] for layer in layers]))  # (L, E)
        if self.moe.bias_update_rate:
            by_layer = dict(zip(layers, loads, strict=True))
            for module in model.modules():
                if isinstance(module, MixtureOfExperts) and module.layer in by_layer:
                    assert module.router.selection_bias is not None
                    move_selection_bias(module.router.selection_bias, by_layer[module.layer], self.moe.bias_update_rate)
        return load_measures(loads) if measure else {}
