"""Routing of a mixture of experts in training: losses and measures from the record of a forward, and moving biases.

B batch, E experts, k experts per token, L mixtures in the model.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from lit_gpt.batch import IGNORE_INDEX, Batch
from lit_gpt.data_info import DataParallel
from lit_gpt.models.config import MoEConfig
from lit_gpt.models.moe import MixtureOfExperts, Routing


def routing_loss(routing: Routing, moe: MoEConfig, weights: Tensor) -> Tensor:
    r"""Return balance loss and router z-loss, a sum to be divided by the tokens of the step like any other loss.

    The balance loss is DeepSeek-V3's (arXiv:2412.19437, equations 17 to 20), which is Switch Transformer's
    (arXiv:2101.03961, equation 4) taken over one sequence: with f_i = E / (k T) times the choices that fell on expert
    i, and P_i the mean share of its score, :math:`\sum_i f_i P_i` is 1 when choices are even and E / k at worst.
    Being over one sequence it does not change with the number of sequences in a micro-batch. The z-loss is
    ST-MoE's (arXiv:2202.08906, equation 5). Each is added up over the layers.

    Args:
        routing: Filled by a forward.
        moe: Has the two weights.
        weights: (B,) how much each row counts: its supervised tokens, so that a row's part in the loss of a step does
            not depend on how the step is cut into micro-batches.

    Returns:
        () float32 sum over rows of weight times loss.

    Example:
        >>> record = Routing(batch["document_ids"])
        >>> logits = model(batch["input_ids"], document_ids=batch["document_ids"], routing=record)
        >>> loss = routing_loss(record, config.moe, torch.ones(len(logits))) / len(logits)
    """
    total = weights.new_zeros((), dtype=torch.float32)
    num_tokens = routing.num_tokens
    for layer in routing.layers.values():
        per_row: Tensor | float = 0.0  # (B,)
        if layer.scores is not None:
            frequency = layer.counts * (moe.num_experts / moe.num_experts_per_tok)
            per_row = per_row + moe.balance_loss_weight * (frequency * layer.scores).sum(1) / num_tokens**2
        if layer.squared_log_z is not None:
            per_row = per_row + moe.z_loss_weight * layer.squared_log_z / num_tokens
        total = total + (per_row * weights).sum()
    return total


def expert_loads(routings: list[Routing]) -> dict[int, Tensor]:
    """Return how many choices fell on each expert, by layer: (E,) float32, summed over rows and forwards."""
    loads: dict[int, Tensor] = {}
    for routing in routings:
        for layer, record in routing.layers.items():
            count = record.counts.sum(0)
            loads[layer] = loads[layer] + count if layer in loads else count
    return loads


def move_selection_bias(bias: Tensor, load: Tensor, rate: float) -> None:
    """Make overloaded experts less and idle ones more likely to be chosen, in place (arXiv:2408.15664, algorithm 1).

    Args:
        bias: (E,) of one router.
        load: (E,) choices that fell on each expert in the whole step.
        rate: The step, whatever the size of the imbalance.
    """
    bias.add_(torch.sign(load.mean() - load), alpha=rate)


def load_measures(loads: Tensor) -> dict[str, float]:
    """Return how even the loads of a step are.

    Args:
        loads: (L, E) choices that fell on each expert.

    Returns:
        `max_load`, the busiest expert's load over the mean of its layer: 1 when even, averaged over layers; that of
        the worst layer as `max_load_worst`; and `entropy` of the loads over that of even ones, at most 1.
    """
    loads = loads.cpu().double()
    shares = loads / loads.sum(1, keepdim=True).clamp(min=1)
    largest = shares.amax(1) * shares.shape[1]
    entropy = torch.special.entr(shares).sum(1) / math.log(max(2, shares.shape[1]))
    return {
        "max_load": largest.mean().item(),
        "max_load_worst": largest.max().item(),
        "entropy": entropy.mean().item(),
    }


class RouterTraining:
    """The routers' side of one optimizer step: their losses, their loads, and the biases that even out the loads.

    `GPTModule` asks for a record before each forward, takes the routers' loss after it, and closes the step before the
    optimizer moves. Everything stays on the device until a step is logged. E experts, L mixtures in the model.

    Args:
        moe: has the weights of the losses and the rate of the biases.
    """

    def __init__(self, moe: MoEConfig) -> None:
        self.moe = moe
        self._open: list[tuple[Routing, Tensor]] = []
        self._loads: dict[int, Tensor] = {}

    def begin_step(self) -> None:
        """Forget the previous step."""
        self._open.clear()
        self._loads.clear()

    def new_record(self, batch: Batch) -> Routing:
        """Return a record for one forward over this batch, whose rows are weighted by their supervised tokens."""
        routing = Routing(batch.get("document_ids"))
        self._open.append((routing, (batch["labels"] != IGNORE_INDEX).sum(1)))
        return routing

    def take_loss(self) -> Tensor | None:
        """Return the summed loss of the forwards since the last call and add up their loads; None without forwards."""
        losses = [routing_loss(routing, self.moe, weights) for routing, weights in self._open]
        for layer, load in expert_loads([routing for routing, _ in self._open]).items():
            self._loads[layer] = self._loads[layer] + load if layer in self._loads else load
        self._open.clear()
        return torch.stack(losses).sum() if losses else None

    @torch.no_grad()
    def finish_step(self, model: nn.Module, ranks: DataParallel, measure: bool) -> dict[str, Any]:
        """Move the selection biases, once all micro-batches are in.

        Args:
            model: has the routers.
            ranks: the loads are those of all ranks.
            measure: whether the loads are wanted for the log, which waits for the device.

        Returns:
            `max_load`, `max_load_worst` and `entropy`, if wanted.
        """
        if not self._loads or not (measure or self.moe.bias_update_rate):
            return {}
        layers = sorted(self._loads)
        loads = ranks.sum(torch.stack([self._loads[layer] for layer in layers]))  # (L, E)
        if self.moe.bias_update_rate:
            by_layer = dict(zip(layers, loads, strict=True))
            for module in model.modules():
                if isinstance(module, MixtureOfExperts) and module.layer in by_layer:
                    assert module.router.selection_bias is not None
                    move_selection_bias(module.router.selection_bias, by_layer[module.layer], self.moe.bias_update_rate)
        return load_measures(loads) if measure else {}
