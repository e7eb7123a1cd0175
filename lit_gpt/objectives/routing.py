"""Losses and metrics of mixture-of-experts routing, from the record of a forward, and updates of selection biases.

B batch, E experts, k experts per token, L mixture-of-experts layers in the model.
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
    r"""Return balance loss plus router z-loss, as a sum to be divided by the step's token count like any other loss.

    The balance loss is DeepSeek-V3's (arXiv:2412.19437, equations 17 to 20), which is Switch Transformer's
    (arXiv:2101.03961, equation 4) over one sequence: with f_i = E / (k T) times the number of times expert i was
    chosen, and P_i its mean normalized score, :math:`\sum_i f_i P_i` is 1 for even loads and E / k at worst.
    Because it is computed per sequence, it does not change with the number of sequences in a micro-batch. The z-loss is
    ST-MoE's (arXiv:2202.08906, equation 5). Both are summed over the layers.

    Args:
        routing: The record of a forward.
        moe: Config with the weights of the two losses.
        weights: (B,) weight of each row: its supervised tokens, so that a row's part in the loss of a step does not
            depend on how the step is split into micro-batches.

    Returns:
        () float32 sum over rows of weight times loss. If rows are divided over processes, this process's term of it: a
        row's loss is linear in the scores and in log²Z, whose sums over its tokens are the sums over processes.

    Example:
        >>> record = Routing(batch["document_ids"])
        >>> logits = model(batch["input_ids"], document_ids=batch["document_ids"], routing=record)
        >>> loss = routing_loss(record, config.moe, torch.ones(len(logits))) / len(logits)
    """
    total = weights.new_zeros((), dtype=torch.float32)
    num_tokens = routing.num_tokens
    counts = routing.row_counts() if moe.balance_loss_weight else {}
    for index, layer in routing.layers.items():
        per_row: Tensor | float = 0.0  # (B,)
        if layer.scores is not None:
            frequency = counts[index] * (moe.num_experts / moe.num_experts_per_tok)
            per_row = per_row + moe.balance_loss_weight * (frequency * layer.scores).sum(1) / num_tokens**2
        if layer.squared_log_z is not None:
            per_row = per_row + moe.z_loss_weight * layer.squared_log_z / num_tokens
        total = total + (per_row * weights).sum()
    return total


def expert_loads(routings: list[Routing]) -> dict[int, Tensor]:
    """Return how often each expert was chosen, by layer: (E,) float32, summed over rows and forwards."""
    loads: dict[int, Tensor] = {}
    for routing in routings:
        for layer, record in routing.layers.items():
            count = record.counts.sum(0)
            loads[layer] = loads[layer] + count if layer in loads else count
    return loads


def move_selection_bias(bias: Tensor, load: Tensor, rate: float) -> None:
    """Update a router's bias in place so that overloaded experts become less likely (arXiv:2408.15664, algorithm 1).

    Args:
        bias: (E,) selection bias of one router.
        load: (E,) number of times each expert was chosen in the whole step.
        rate: Size of the update, regardless of the size of the imbalance.
    """
    bias.add_(torch.sign(load.mean() - load), alpha=rate)


def load_measures(loads: Tensor) -> dict[str, float]:
    """Return how evenly the loads of a step are distributed.

    Args:
        loads: (L, E) number of times each expert was chosen.

    Returns:
        `max_load`, the busiest expert's load relative to the mean of its layer: 1 when even, averaged over layers;
        `max_load_worst`, the same of the worst layer; and `entropy` relative to that of even loads, at most 1.
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
    """Routing in one optimizer step: the routers' losses, the experts' loads, and updates of the selection biases.

    `GPTModule` requests a record before each forward, takes the routers' loss after it, and finishes the step before
    the optimizer step. Everything stays on the device until a step is logged. E experts, L mixture-of-experts layers.

    Args:
        moe: config with the weights of the losses and the update rate of the biases.
    """

    def __init__(self, moe: MoEConfig) -> None:
        self.moe = moe
        self._open: list[tuple[Routing, Tensor]] = []
        self._loads: dict[int, Tensor] = {}

    def begin_step(self) -> None:
        """Discard the records of the previous step."""
        self._open.clear()
        self._loads.clear()

    def new_record(self, batch: Batch) -> Routing:
        """Return a record for a forward over this batch, whose rows are weighted by their supervised tokens."""
        sequence = batch.get("sequence")
        routing = Routing(batch.get("document_ids"), sequence)
        labels = batch["labels"] if sequence is None else sequence.labels  # of the whole rows
        self._open.append((routing, (labels != IGNORE_INDEX).sum(1)))
        return routing

    def take_loss(self) -> Tensor | None:
        """Return the summed loss of the forwards since the last call, adding up loads; None if there were none."""
        losses = [routing_loss(routing, self.moe, weights) for routing, weights in self._open]
        for layer, load in expert_loads([routing for routing, _ in self._open]).items():
            self._loads[layer] = self._loads[layer] + load if layer in self._loads else load
        self._open.clear()
        return torch.stack(losses).sum() if losses else None

    @torch.no_grad()
    def finish_step(self, model: nn.Module, ranks: DataParallel, measure: bool) -> dict[str, Any]:
        """Update the selection biases after all micro-batches.

        Args:
            model: the model with the routers.
            ranks: the data-parallel ranks, over which loads are summed; all of them and all stages of a pipeline must
                call it.
            measure: whether to return metrics for the log, which synchronizes with the device.

        Returns:
            `max_load`, `max_load_worst` and `entropy`, if `measure` is set.
        """
        if not (measure or self.moe.bias_update_rate):
            return {}
        layers = sorted(self._loads)
        if layers:
            loads = ranks.sum(torch.stack([self._loads[layer] for layer in layers]))  # (L, E)
        elif ranks.stages is None:
            return {}
        else:  # a stage of a pipeline without a mixture of experts
            loads = torch.zeros(0, self.moe.num_experts)
        if self.moe.bias_update_rate:
            by_layer = dict(zip(layers, loads, strict=True))
            for module in model.modules():
                if isinstance(module, MixtureOfExperts) and module.layer in by_layer:
                    assert module.router.selection_bias is not None
                    move_selection_bias(module.router.selection_bias, by_layer[module.layer], self.moe.bias_update_rate)
        if not measure:
            return {}
        if ranks.stages is not None:
            everyone: list[Any] = [None] * ranks.stages.size()
            torch.distributed.all_gather_object(everyone, loads.cpu(), group=ranks.stages)
            loads = torch.cat(everyone)
        return load_measures(loads)
