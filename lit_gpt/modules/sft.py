"""Supervised fine-tuning: predict the assistant's tokens in a conversation."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from lit_gpt.batch import IGNORE_INDEX, Batch
from lit_gpt.models.head import accepts_shards
from lit_gpt.modules.base import GPTModule
from lit_gpt.objectives import TokenLoss, linear_cross_entropy, token_predictions


class SFTModule(GPTModule):
    """Cross-entropy of the supervised tokens: the assistant's messages and their stop tokens (Ouyang et al. 2022).

    The loss of a step is the mean over all its supervised tokens, regardless of row lengths. The LM head runs only on
    supervised positions, which saves its cost on the prompts. Validation logs loss, perplexity and accuracy of
    these tokens. Tokens that the tokenizer has but the weights of `init_from` lack (those of a chat template) get
    new embedding rows, which start as the mean of the others (`lit_gpt.models.head`).

    Args:
        z_loss: coefficient of the z-loss; 0 disables it.
        kwargs: see `GPTModule`.
    """

    grows_vocabulary = True
    loss_sums_tokens = True

    def __init__(self, z_loss: float = 0.0, **kwargs: object) -> None:
        super().__init__(**kwargs)  # type: ignore[arg-type]
        self.z_loss = z_loss

    def loss(self, batch: Batch) -> TokenLoss:
        """Return the summed cross-entropy of the supervised tokens, computed inside the head."""
        return self(batch, head_fn=partial(self._on_targets, batch, self._cross_entropy))

    def evaluation_loss(self, batch: Batch) -> TokenLoss:
        """Return the summed loss, and log the accuracy: the share of tokens whose most likely prediction is correct."""
        token_loss, predictions, labels = self(batch, head_fn=partial(self._on_targets, batch, self._with_predictions))
        supervised = labels != IGNORE_INDEX
        self.log_sum("token_accuracy", ((predictions == labels) & supervised).sum(), supervised.sum())
        return token_loss

    @accepts_shards
    def _on_targets(self, batch: Batch, head_fn: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
        """Apply `head_fn` to the supervised positions only."""
        labels = batch["labels"].reshape(-1)  # (B · T,)
        rows = hidden.reshape(-1, hidden.shape[-1])
        if "target_index" in batch:
            index: Tensor = batch["target_index"]  # type: ignore[typeddict-item]
            rows, labels = rows.index_select(0, index), labels.index_select(0, index)
        return head_fn(rows, weight, bias, labels)

    def _cross_entropy(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> TokenLoss:
        softcap = self.config.logit_softcap
        return linear_cross_entropy(hidden, weight, bias, labels, z_loss=self.z_loss, softcap=softcap)

    def _with_predictions(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor
    ) -> tuple[TokenLoss, Tensor, Tensor]:
        loss = self._cross_entropy(hidden, weight, bias, labels)
        with torch.no_grad():
            return loss, token_predictions(hidden, weight, bias), labels
