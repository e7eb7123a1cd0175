"""Loss, perplexity and bits per byte over a whole split, as sums over batches and processes.

The loss per token depends on the tokenizer: a larger vocabulary gives fewer and harder tokens. Bits per byte divides
the same total by the bytes of the text, so that models with different tokenizers can be compared:

    bits per byte = sum of losses in nats / (ln 2 · UTF-8 bytes of the text)

The end of a document counts as a token of zero bytes, because a model of documents has to predict where they end.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

STATES = ("loss_sum", "num_tokens", "num_bytes")


def language_modeling_metrics(loss_sum: float, num_tokens: float, num_bytes: float) -> dict[str, float]:
    """Return loss, perplexity and bits per byte from their sums.

    Args:
        loss_sum: Cross-entropy in nats, summed over supervised tokens.
        num_tokens: Number of supervised tokens.
        num_bytes: UTF-8 bytes of their text; 0 if unknown.

    Returns:
        `loss` (nats per token), `perplexity`, and `bits_per_byte` if the bytes are known.
    """
    loss = loss_sum / num_tokens if num_tokens else math.nan
    perplexity = math.exp(loss) if loss < 700 else math.inf
    metrics = {"loss": loss, "perplexity": perplexity}
    return metrics | {"bits_per_byte": loss_sum / (num_bytes * math.log(2))} if num_bytes else metrics


class LanguageModelingMetrics(Metric):
    """Sums of loss, tokens and bytes, over batches and processes.

    Example:
        >>> metrics = LanguageModelingMetrics()
        >>> metrics.update(torch.tensor(6.0), torch.tensor(4), torch.tensor(8))
        >>> metrics.compute()["loss"]
        1.5
    """

    full_state_update = False
    loss_sum: Tensor
    num_tokens: Tensor
    num_bytes: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in STATES:
            self.add_state(name, torch.zeros((), dtype=_wide()), dist_reduce_fx="sum")

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = ()) -> "LanguageModelingMetrics":
        """Move to the module's device, but keep float64: sums over many tokens need the precision."""
        super()._apply(fn, exclude_state)
        for name in STATES:
            setattr(self, name, getattr(self, name).to(_wide()))
            default = self._defaults[name]
            assert isinstance(default, Tensor)
            self._defaults[name] = default.to(_wide())
        return self

    def update(self, loss_sum: Tensor, num_tokens: Tensor, num_bytes: Tensor) -> None:
        """Add a batch.

        Args:
            loss_sum: () cross-entropy in nats, summed over supervised tokens.
            num_tokens: () number of supervised tokens.
            num_bytes: () UTF-8 bytes of their text.
        """
        self.loss_sum += loss_sum
        self.num_tokens += num_tokens
        self.num_bytes += num_bytes

    def compute(self) -> dict[str, float]:
        """Return the measures over all batches and processes."""
        return language_modeling_metrics(self.loss_sum.item(), self.num_tokens.item(), self.num_bytes.item())


def _wide() -> torch.dtype:
    # A float32 sum of many losses eventually stops growing. (MPS has no float64.)
    return torch.float32 if torch.backends.mps.is_available() else torch.float64
