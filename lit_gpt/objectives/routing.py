"""Losses and measures of a mixture of experts' routing, from the record of a forward.

B batch, E experts, k experts a token, L mixtures in the model.
"""

import math

import torch
from torch import Tensor

from lit_gpt.models.experts_config import MoEConfig
from lit_gpt.models.routing import Routing


def routing_loss(routing: Routing, moe: MoEConfig, weights: Tensor) -> Tensor:
    r"""Balance loss and router z-loss, as a sum that is divided by the tokens of the whole step like any other loss.

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
    """How many choices fell on each expert, by layer: (E,) float32, summed over rows and forwards."""
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
    """How even the loads of a step are.

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
