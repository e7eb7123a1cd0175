"""Log-probability of each target token, with gradients, without materializing all logits.

Preference and policy losses weight each sequence's log-probability by a factor that is known only after all of them
are computed, so the gradient cannot be computed in the forward pass as in `linear_cross_entropy`. Instead, the backward
pass recomputes each chunk's logits, at the cost of one more matrix product and one chunk of logits of memory.

N tokens, C model width, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

from lit_gpt.batch import IGNORE_INDEX
from lit_gpt.models.head import VocabularyShard, accepts_shards
from lit_gpt.models.linear import linear
from lit_gpt.objectives.cross_entropy import default_chunk_size, shard_log_probs, split_shard


@accepts_shards
def linear_log_probs(
    hidden: Tensor,
    weight: Tensor | VocabularyShard,
    bias: Tensor | None,
    labels: Tensor,
    chunk_size: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    r"""Return :math:`\log p(y)` of each label under `softmax(hidden @ weight.T + bias)`.

    Args:
        hidden: (..., C) hidden states that enter the head.
        weight: (V, C) head weight, or this process's rows of it.
        bias: (V,) head bias, or None.
        labels: (...) int64 targets; `IGNORE_INDEX` (-100) gives 0 and no gradient.
        chunk_size: number of tokens whose logits exist at a time; None: as many as fit in the cache.
        softcap: soft-cap of the logits, cap · tanh(z / cap); None: no cap.

    Returns:
        (...) float32 (float64 for float64 inputs), at most 0.
    """
    weight, shard = split_shard(weight)
    size = chunk_size or default_chunk_size(hidden, weight)
    rows = hidden.reshape(-1, hidden.shape[-1])
    result: Tensor = _LogProbs.apply(rows, weight, bias, labels, size, softcap, shard)
    return result


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None) -> Tensor:
    logits = linear(hidden, weight, bias)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


class _LogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        size: int,
        softcap: float | None,
        shard: VocabularyShard | None,
    ) -> Tensor:
        ctx.size, ctx.softcap, ctx.shard = size, softcap, shard
        device = hidden.device.type
        ctx.autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        # Not a view of a flat result: the root of FSDP2 returns it, and FSDP2 warns of views.
        result = hidden.new_empty(labels.shape, dtype=torch.promote_types(hidden.dtype, torch.float32))
        labels = labels.reshape(-1)
        normalizers = []
        for h, y, part in zip(hidden.split(size), labels.split(size), result.view(-1).split(size), strict=True):
            logits = _logits(h, weight, bias, softcap)
            if shard is None:
                chosen = logits.gather(1, y.clamp(min=0).unsqueeze(1)).squeeze(1)
                log_z = logits.logsumexp(1)
                log_prob = chosen - log_z
            else:
                log_prob, log_z = shard_log_probs(logits, y, shard)
            part.copy_(log_prob.masked_fill(y == IGNORE_INDEX, 0.0))
            normalizers.append(log_z)
        ctx.save_for_backward(hidden, weight, bias, labels, torch.cat(normalizers))
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None, None, None]:
        hidden, weight, bias, labels, log_z = ctx.saved_tensors
        grad = grad.reshape(-1)
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        head = weight.to(ctx.autocast) if ctx.autocast else weight
        wide = torch.promote_types(hidden.dtype, torch.float32)
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=wide) if needs_weight else None
        grad_bias = torch.zeros_like(bias, dtype=wide) if needs_bias else None
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(labels), ctx.size):
                rows = slice(start, start + ctx.size)
                h, y = hidden[rows].to(head.dtype), labels[rows]
                logits = _logits(h, head, None if bias is None else bias.to(head.dtype), ctx.softcap)
                # d log p(y) / dlogits = onehot(y) - softmax
                share = grad[rows].to(logits.dtype).masked_fill(y == IGNORE_INDEX, 0.0).unsqueeze(1)
                slope = None if ctx.softcap is None else 1 - (logits / ctx.softcap).square()
                target, own = y.clamp(min=0), share
                if ctx.shard is not None:
                    target, held = ctx.shard.local(y)
                    own = share * held.unsqueeze(1)
                change = (logits - log_z[rows].unsqueeze(1)).exp_().mul_(-share)
                change.scatter_add_(1, target.unsqueeze(1), own)
                if slope is not None:
                    change.mul_(slope)
                if grad_bias is not None:
                    grad_bias += change.sum(0)
                change = change.to(head.dtype)
                if grad_hidden is not None:
                    grad_hidden[rows] = change @ head
                if grad_weight is not None:
                    grad_weight += change.T @ h
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(bias.dtype),
            None,
            None,
            None,
            None,
        )
