"""Loss, perplexity and bits per byte over a whole split.

The loss per token depends on the tokenizer: a larger vocabulary makes fewer and harder tokens. Bits per byte divides
the same total by the bytes of the text, so that models with different tokenizers can be compared:

    bits per byte = sum of losses in nats / (ln 2 · UTF-8 bytes of the text)

The end of a document counts as a token of zero bytes: a model of documents has to predict where they end.
"""

import math

import torch
from torch import Tensor
from torchmetrics import Metric


class LanguageModelingMetrics(Metric):
    """Sums of loss, tokens and bytes, over batches and processes.

    Example:
        >>> metrics = LanguageModelingMetrics()
        >>> metrics.update(torch.tensor(6.0), torch.tensor(4), torch.tensor(8))
        >>> round(metrics.compute()["loss"].item(), 2)
        1.5
    """

    full_state_update = False
    loss_sum: Tensor
    num_tokens: Tensor
    num_bytes: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("loss_sum", "num_tokens", "num_bytes"):
            # float64: a float32 sum of many losses stops growing. (MPS has no float64.)
            dtype = torch.float32 if torch.backends.mps.is_available() else torch.float64
            self.add_state(name, torch.zeros((), dtype=dtype), dist_reduce_fx="sum")

    def set_dtype(self, dst_type: str | torch.dtype) -> "LanguageModelingMetrics":
        """Stay in float64 whatever the precision of the model."""
        return self

    def update(self, loss_sum: Tensor, num_tokens: Tensor, num_bytes: Tensor) -> None:
        """Add a batch.

        Args:
            loss_sum: () cross-entropy in nats, summed over supervised tokens.
            num_tokens: () supervised tokens.
            num_bytes: () UTF-8 bytes of their text.
        """
        self.loss_sum += loss_sum
        self.num_tokens += num_tokens
        self.num_bytes += num_bytes

    def compute(self) -> dict[str, Tensor]:
        """Return `loss` (nats a token), `perplexity` and `bits_per_byte` (absent when the bytes are unknown)."""
        loss = self.loss_sum / self.num_tokens
        result = {"loss": loss, "perplexity": loss.exp()}
        if self.num_bytes > 0:
            result["bits_per_byte"] = self.loss_sum / (self.num_bytes * math.log(2))
        return result
