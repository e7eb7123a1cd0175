"""Pretraining: predict the next token of raw text."""

from functools import partial
from typing import Any

from lit_gpt.batch import IGNORE_INDEX, Batch
from lit_gpt.modules.base import GPTModule
from lit_gpt.objectives import TokenLoss, linear_cross_entropy, token_cross_entropy


class PretrainModule(GPTModule):
    """Next-token cross-entropy (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners").

    A loss of your own is one method:

        class LabelSmoothed(PretrainModule):
            def loss(self, batch):
                return self(batch, head_fn=partial(my_loss, labels=batch["labels"]))

    Args:
        z_loss: coefficient of the z-loss, which keeps the logits from drifting (PaLM: 1e-4); 0 leaves it out.
        kwargs: see `GPTModule`.
    """

    def __init__(self, z_loss: float = 0.0, **kwargs: object) -> None:
        super().__init__(**kwargs)  # type: ignore[arg-type]
        self.z_loss = z_loss

    def loss(self, batch: Batch) -> TokenLoss:
        """Cross-entropy against `labels`, inside the head, so that no whole tensor of logits exists."""
        return self(batch, head_fn=partial(linear_cross_entropy, labels=batch["labels"], z_loss=self.z_loss))

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Loss of each row; `PredictionWriter` adds up the rows of a document.

        Args:
            batch: rows that hold a window of one document each, with `document_index` (B,) and `sources` beside.
            batch_idx: place in the split.

        Returns:
            `document_index`, `num_tokens`, `num_bytes` (B,) int64, `loss_sum` (B,) float32 in nats, `sources`.
        """
        rows: dict[str, Any] = dict(batch)
        # A row is one document with padding after it, which causality alone isolates: no mask to build.
        alone = Batch(input_ids=batch["input_ids"], position_ids=batch["position_ids"])
        losses = self(alone, head_fn=partial(token_cross_entropy, labels=batch["labels"]))  # (B, T)
        return {
            "document_index": rows["document_index"],
            "loss_sum": losses.sum(1),
            "num_tokens": (batch["labels"] != IGNORE_INDEX).sum(1),
            "num_bytes": batch["num_bytes"],
            "sources": rows.get("sources"),
        }
