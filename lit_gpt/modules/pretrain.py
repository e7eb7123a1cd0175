"""Pretraining: predict the next token of raw text."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from lit_gpt.batch import IGNORE_INDEX, Batch
from lit_gpt.errors import UserError
from lit_gpt.models import HeadFn
from lit_gpt.modules.base import GPTModule
from lit_gpt.objectives import TokenLoss, labels_ahead, linear_cross_entropy, token_cross_entropy


class PretrainModule(GPTModule):
    """Next-token cross-entropy (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners").

    A loss of your own is one method:

        class LabelSmoothed(PretrainModule):
            def loss(self, batch):
                return self(batch, head_fn=partial(my_loss, labels=batch["labels"]))

    It predicts the next token alone; one that passes `ahead_fns` too, as this class does, says `trains_ahead = True`.

    Args:
        z_loss: coefficient of the z-loss, which keeps the logits from drifting (PaLM: 1e-4); 0 leaves it out.
        multi_token_weight: weight of the losses of tokens further ahead, taken together, in a model with `multi_token`
            (DeepSeek-V3: 0.3, and 0.1 for the last third of its training).
        kwargs: see `GPTModule`.
    """

    trains_ahead = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """A loss of one's own trains no blocks ahead unless its class says so."""
        super().__init_subclass__(**kwargs)
        if "loss" in vars(cls) and "trains_ahead" not in vars(cls):
            cls.trains_ahead = False

    def __init__(self, z_loss: float = 0.0, multi_token_weight: float = 0.3, **kwargs: object) -> None:
        super().__init__(**kwargs)  # type: ignore[arg-type]
        if multi_token_weight < 0:
            raise UserError(f"multi_token_weight is {multi_token_weight}, it must be at least 0")
        self.z_loss = z_loss
        self.multi_token_weight = multi_token_weight

    def loss(self, batch: Batch) -> TokenLoss:
        """Cross-entropy against `labels`, inside the head, so that no whole tensor of logits exists.

        In training, a model with `multi_token` predicts the tokens after the next one too (DeepSeek-V3,
        arXiv:2412.19437, equations 24 and 25).
        """
        depths = range(1, self.config.multi_token + 1) if self.training else ()
        if not depths:
            return self(batch, head_fn=self._head_fn(batch["labels"]))
        labels = [labels_ahead(batch["labels"], batch.get("document_ids"), depth) for depth in depths]
        ahead_fns = [self._head_fn(further) for further in labels]
        token_loss, ahead = self(batch, head_fn=self._head_fn(batch["labels"]), ahead_fns=ahead_fns)
        losses = torch.stack([part.loss for part in ahead]).mean()
        entropies = torch.stack([part.cross_entropy for part in ahead]).mean()
        return token_loss._replace(loss=token_loss.loss + self.multi_token_weight * losses, ahead=entropies)

    def _head_fn(self, labels: Tensor) -> HeadFn:
        softcap = self.config.logit_softcap
        return partial(linear_cross_entropy, labels=labels, z_loss=self.z_loss, softcap=softcap)

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
        head_fn = partial(token_cross_entropy, labels=batch["labels"], softcap=self.config.logit_softcap)
        losses = self(alone, head_fn=head_fn)  # (B, T)
        return {
            "document_index": rows["document_index"],
            "loss_sum": losses.sum(1),
            "num_tokens": (batch["labels"] != IGNORE_INDEX).sum(1),
            "num_bytes": batch["num_bytes"],
            "sources": rows.get("sources"),
        }
