"""An objective that reports sums of its own: how sure the model is, and how often it is right when it is sure."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_gpt.batch import IGNORE_INDEX, Batch
from lit_gpt.modules import GPTModule
from lit_gpt.objectives import TokenLoss


class ConfidenceModule(GPTModule):
    """Cross-entropy with a bonus for entropy (Pereyra et al. 2017, "Penalizing Confident Output Distributions").

    Args:
        bonus: weight of the entropy; 0 is plain cross-entropy.
        threshold: a token is called sure from this probability of the likeliest token on.
        kwargs: those of `GPTModule`.
    """

    def __init__(self, bonus: float = 0.1, threshold: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.bonus = bonus
        self.threshold = threshold

    def loss(self, batch: Batch) -> TokenLoss:
        """Return the sum over supervised tokens; `entropy` is reported with it, `sure` and `right_when_sure` apart."""

        def head_fn(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            chosen = batch["labels"] != IGNORE_INDEX
            log_probs = F.linear(hidden[chosen], weight, bias).log_softmax(-1)  # (n, V)
            targets = batch["labels"][chosen]
            nats = -log_probs.gather(1, targets[:, None]).squeeze(1)
            entropy = -(log_probs.exp() * log_probs).sum(1)
            best = log_probs.max(1)
            sure = best.values.exp() >= self.threshold
            right = sure & (best.indices == targets)
            return nats.sum(), entropy.sum(), sure.sum(), right.sum()

        nats, entropy, sure, right = self(batch, head_fn=head_fn)
        self.log_sum("sure", sure, (batch["labels"] != IGNORE_INDEX).sum())
        self.log_sum("right_when_sure", right, sure)  # a count of its own
        if self.training and torch.is_grad_enabled():
            self.log_sum("rows", len(batch["labels"]), 1)  # a plain number: rows of a micro-batch
        return TokenLoss(nats - self.bonus * entropy, nats.detach(), {"entropy": entropy.detach()})
