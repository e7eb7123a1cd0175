"""Next-token cross-entropy without materializing all logits.

The logits of a step are its largest tensor: 16 × 1,024 tokens of a 128k vocabulary take 8 GB in float32, and plain
autograd keeps several tensors of that size. The loss needs only two numbers per token, so the head is applied to a
chunk of tokens at a time, and the chunk's gradients are computed immediately, while its logits are still in the cache
(the scheme of Liger Kernel's FusedLinearCrossEntropy, Hsu et al. 2024, arXiv:2410.10989, in plain PyTorch).
Compute: three matrix products, as with plain autograd. Memory: one chunk of logits.

Where the head's rows are spread over processes (`VocabularyShard`), each computes the logits of its own rows. A token's
loss needs three numbers from each process: its largest logit, its sum of exponentials, and the label's logit where it
holds the label. They are exchanged once per chunk; gradients need nothing further.

Shape letters: N tokens (all of a batch), C model width, V vocabulary.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_gpt.batch import IGNORE_INDEX
from lit_gpt.models.head import VocabularyShard, accepts_shards
from lit_gpt.models.linear import products_of

CHUNK_BYTES = 16 * 2**20
"""Target size of a chunk of float32 logits on a CPU: it stays in the cache between the passes over it."""

CHUNK_BYTES_GPU = 512 * 2**20
"""The same on an accelerator, where a chunk must be large enough to keep the device busy."""


class TokenLoss(NamedTuple):
    """Sums over supervised tokens. Divide by the token count of the whole step, never of a micro-batch."""

    # A NamedTuple and not a dataclass: FSDP2 finds the tensors in the root's output through pytrees, which do not
    # include dataclasses.
    loss: Tensor
    """() nats: the minimized loss (cross-entropy, the z-loss, and whatever an objective adds)."""
    cross_entropy: Tensor
    """() nats, detached: the cross-entropy of the next token only; logged as `loss`."""
    parts: dict[str, Tensor] = {}  # noqa: RUF012  (never mutated)
    """Further sums by name, each (): logged as `<stage>/<name>`, divided by the same count as the loss."""


@accepts_shards
def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor | VocabularyShard,
    bias: Tensor | None,
    labels: Tensor,
    z_loss: float = 0.0,
    chunk_size: int | None = None,
    softcap: float | None = None,
) -> TokenLoss:
    r"""Return the cross-entropy of `hidden @ weight.T + bias` against `labels`, summed over supervised tokens.

    With z-loss (PaLM, Chowdhery et al. 2022, arXiv:2204.02311, section 5) the loss of a token is
    :math:`-\log p(y) + \zeta \log^2 Z`, which keeps the logits from drifting.

    Args:
        hidden: (..., C) hidden states that enter the head.
        weight: (V, C) head weight, or this process's rows of it.
        bias: (V,) head bias, or None.
        labels: (...) int64 targets; `IGNORE_INDEX` (-100) is excluded.
        z_loss: coefficient zeta of the z-loss; PaLM uses 1e-4.
        chunk_size: number of tokens whose logits exist at a time; None: as many as fit in the cache.
        softcap: soft-cap of the logits, cap · tanh(z / cap) (Gemma 2, arXiv:2408.00118); None: no cap.

    Returns:
        The two sums, in float32 (float64 for float64 inputs).

    Example:
        >>> hidden, weight = torch.randn(2, 3, 8), torch.randn(11, 8)
        >>> labels = torch.randint(0, 11, (2, 3))
        >>> mean = linear_cross_entropy(hidden, weight, None, labels).loss / labels.numel()
    """
    weight, shard = split_shard(weight)
    chunk_size = chunk_size or default_chunk_size(hidden, weight)
    dtype = torch.get_autocast_dtype(hidden.device.type) if torch.is_autocast_enabled(hidden.device.type) else None
    loss, cross_entropy = _ChunkedCrossEntropy.apply(
        hidden.reshape(-1, hidden.shape[-1]),
        weight,
        bias,
        labels.reshape(-1),
        z_loss,
        chunk_size,
        dtype,
        softcap,
        shard,
    )
    return TokenLoss(loss, cross_entropy)


@accepts_shards
def token_cross_entropy(
    hidden: Tensor,
    weight: Tensor | VocabularyShard,
    bias: Tensor | None,
    labels: Tensor,
    chunk_size: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Return the cross-entropy of each token, without gradients, for example to find hard tokens or documents.

    Args:
        hidden: (..., C) hidden states that enter the head.
        weight: (V, C) head weight, or this process's rows of it.
        bias: (V,) head bias, or None.
        labels: (...) int64 targets; `IGNORE_INDEX` (-100) gives 0.
        chunk_size: number of tokens whose logits exist at a time; None: as many as fit in the cache.
        softcap: soft-cap of the logits, as in `linear_cross_entropy`.

    Returns:
        (...) float32, nats.
    """
    weight, shard = split_shard(weight)
    rows, targets = hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1)
    size = chunk_size or default_chunk_size(hidden, weight)
    with torch.no_grad():
        losses = []
        for h, y in zip(rows.split(size), targets.split(size), strict=True):
            logits = F.linear(h, weight, bias).float()
            if softcap is not None:
                logits = softcap * torch.tanh(logits / softcap)
            if shard is None:
                losses.append(F.cross_entropy(logits, y, ignore_index=IGNORE_INDEX, reduction="none"))
            else:
                losses.append(-shard_log_probs(logits, y, shard)[0].masked_fill(y == IGNORE_INDEX, 0.0))
    return torch.cat(losses).reshape(labels.shape)


@accepts_shards
def token_predictions(
    hidden: Tensor, weight: Tensor | VocabularyShard, bias: Tensor | None, chunk_size: int | None = None
) -> Tensor:
    """Return the most likely token at each position, without gradients or materializing all logits.

    Args:
        hidden: (..., C) hidden states that enter the head.
        weight: (V, C) head weight, or this process's rows of it.
        bias: (V,) head bias, or None.
        chunk_size: number of tokens whose logits exist at a time; None: as many as fit in the cache.

    Returns:
        (...) int64.
    """
    weight, shard = split_shard(weight)
    rows = hidden.reshape(-1, hidden.shape[-1])
    size = chunk_size or default_chunk_size(hidden, weight)
    with torch.no_grad():
        best = [F.linear(h, weight, bias).max(-1) for h in rows.split(size)]
        values, tokens = (torch.cat(parts) for parts in zip(*best, strict=True))  # (N,) each
        if shard is not None:
            everywhere = shard.gather(tokens + shard.first)  # (S, N)
            # The first of equal values, like argmax: the lowest rank holds the lowest rows.
            tokens = everywhere.gather(0, shard.gather(values).argmax(0, keepdim=True)).squeeze(0)
    return tokens.reshape(hidden.shape[:-1])


def split_shard(weight: Tensor | VocabularyShard) -> tuple[Tensor, VocabularyShard | None]:
    """Return the rows held here, and the shard if these are not all rows."""
    return (weight.weight, weight) if isinstance(weight, VocabularyShard) else (weight, None)


def shard_log_probs(logits: Tensor, labels: Tensor, shard: VocabularyShard) -> tuple[Tensor, Tensor]:
    """Return the log-probability of each label and the normalizer log Z, without gradients.

    Args:
        logits: (n, rows) float32, of the rows that this process holds.
        labels: (n,) int64; below 0: any value is returned.
        shard: The rows.

    Returns:
        (n,) and (n,) float32, the same on every process.
    """
    row, held = shard.local(labels)
    chosen = logits.gather(1, row.unsqueeze(1)).squeeze(1).masked_fill(~held, 0.0)
    parts = shard.gather(torch.stack((logits.logsumexp(1), chosen)))  # (S, 2, n)
    log_z = parts[:, 0].logsumexp(0)
    return parts[:, 1].sum(0) - log_z, log_z


def default_chunk_size(hidden: Tensor, weight: Tensor) -> int:
    """Return the number of tokens whose float32 logits fill a CPU's cache, or keep an accelerator busy."""
    size = CHUNK_BYTES if hidden.device.type == "cpu" else CHUNK_BYTES_GPU
    return max(64, size // (4 * weight.shape[0]))


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Computes loss and gradients chunk by chunk in the forward pass; the backward pass only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        z_loss: float,
        chunk_size: int,
        dtype: torch.dtype | None,
        softcap: float | None,
        shard: VocabularyShard | None,
    ) -> tuple[Tensor, Tensor]:
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        # Softmax and sums over chunks are float32 even if the matrix products run in bfloat16.
        wide = torch.promote_types(hidden.dtype, torch.float32)
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=wide) if needs_weight else None
        grad_bias = torch.zeros_like(bias, dtype=wide) if bias is not None and needs_bias else None
        loss = hidden.new_zeros((), dtype=wide)
        squared_log_z = hidden.new_zeros((), dtype=wide)

        head = weight.to(dtype) if dtype else weight
        head_bias = bias.to(dtype) if dtype and bias is not None else bias
        trains = needs_hidden or needs_weight or needs_bias
        products = products_of(hidden[:chunk_size], head) if trains else None
        multiply = F.linear if products is None else products.output
        multiply_grad = F.linear if products is None else products.grad_input
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, hidden.shape[0], chunk_size):
                rows = slice(start, start + chunk_size)
                h = hidden[rows].to(head.dtype)  # (n, C)
                y = labels[rows]  # (n,)
                supervised = (y != IGNORE_INDEX).to(wide)
                # (n, 1); any valid index for unsupervised tokens
                target, held = y.clamp(min=0).unsqueeze(1), supervised
                if shard is not None:
                    row, is_held = shard.local(y)
                    target, held = row.unsqueeze(1), supervised * is_held
                logits = multiply(h, head, head_bias).to(wide)  # (n, V)
                slope = None
                if softcap is not None:
                    bounded = logits.div_(softcap).tanh_()
                    slope = 1 - bounded.square()  # d(cap · tanh(z / cap)) / dz
                    logits = bounded * softcap
                largest = logits.amax(1, keepdim=True)
                chosen = logits.sub_(largest).gather(1, target).squeeze(1)
                # One exp serves both the normalizer and the gradient.
                exp = logits.exp_()
                total = exp.sum(1)
                if shard is None:
                    loss += ((total.log() - chosen) * supervised).sum()
                    log_z = largest.squeeze(1) + total.log()  # (n,)
                else:
                    local = largest.squeeze(1)
                    parts = shard.gather(torch.stack((local, total, (chosen + local) * held)))  # (S, 3, n)
                    log_z = (parts[:, 0] + parts[:, 1].log()).logsumexp(0)
                    loss += ((log_z - parts[:, 2].sum(0)) * supervised).sum()
                    total = (log_z - local).exp()  # relative to the largest logit held here, as `exp` is
                if z_loss:
                    squared_log_z += (log_z.square() * supervised).sum()
                if not trains:
                    continue
                # d/dlogits of -log p(y) + zeta log²Z  =  (1 + 2 zeta log Z) softmax - onehot(y)
                scale = supervised * (1 + 2 * z_loss * log_z) / total
                grad = exp.mul_(scale.unsqueeze(1)).scatter_add_(1, target, -held.unsqueeze(1))
                if slope is not None:
                    grad.mul_(slope)
                if grad_bias is not None:
                    grad_bias += grad.sum(0)
                grad = grad.to(head.dtype)
                if grad_hidden is not None:
                    grad_hidden[rows] = multiply_grad(grad, head.t(), None)
                if grad_weight is not None and grad.dtype == wide:
                    grad_weight.addmm_(grad.T, h)
                elif grad_weight is not None:
                    grad_weight += grad.T @ h
        ctx.save_for_backward(
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None or bias is None else grad_bias.to(bias.dtype),
        )
        ctx.mark_non_differentiable(loss)
        return loss + z_loss * squared_log_z, loss

    @staticmethod
    def backward(
        ctx: Any, grad_loss: Tensor, _: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None, None, None, None, None]:
        hidden, weight, bias = (None if grad is None else grad * grad_loss.to(grad.dtype) for grad in ctx.saved_tensors)
        return hidden, weight, bias, None, None, None, None, None, None


def mtp_labels(labels: Tensor, document_ids: Tensor | None, depth: int) -> Tensor:
    """Return the targets of a multi-token-prediction depth (DeepSeek-V3, arXiv:2412.19437, section 2.2).

    Args:
        labels: (B, T) int64, already shifted by one.
        document_ids: (B, T) int64, or None.
        depth: Prediction depth k, from 1.

    Returns:
        (B, T) int64: at position i the label of i + k if that is in the same document, else `IGNORE_INDEX`.
    """
    shifted = torch.full_like(labels, IGNORE_INDEX)
    shifted[:, :-depth] = labels[:, depth:]
    if document_ids is not None:
        same = document_ids[:, depth:] == document_ids[:, :-depth]
        shifted[:, :-depth] = torch.where(same, shifted[:, :-depth], IGNORE_INDEX)
    return shifted
