"""Pretraining: predict the next token of raw text."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from lit_gpt.batch import IGNORE_INDEX, Batch
from lit_gpt.checks import check_at_least
from lit_gpt.models import HeadFn
from lit_gpt.modules.base import GPTModule
from lit_gpt.objectives import TokenLoss, linear_cross_entropy, mtp_labels, token_cross_entropy


class PretrainModule(GPTModule):
    """Next-token cross-entropy (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners").

    A custom loss is one method:

        class LabelSmoothed(PretrainModule):
            def loss(self, batch):
                return self(batch, head_fn=partial(my_loss, labels=batch["labels"]))

    Such a loss predicts only the next token; one that passes `mtp_head_fns` too, as this class does, sets
    `trains_mtp = True`.

    Args:
        z_loss: coefficient of the z-loss, which keeps the logits from drifting (PaLM: 1e-4); 0 disables it.
        multi_token_weight: weight of the mean loss of the multi-token-prediction blocks, for models with `multi_token`
            (DeepSeek-V3: 0.3, and 0.1 for the last third of its training).
        kwargs: see `GPTModule`.
    """

    trains_mtp = True
    loss_sums_tokens = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Assume that a subclass with its own loss trains no multi-token-prediction blocks, unless it sets this."""
        super().__init_subclass__(**kwargs)
        if "loss" in vars(cls) and "trains_mtp" not in vars(cls):
            cls.trains_mtp = False

    def __init__(self, z_loss: float = 0.0, multi_token_weight: float = 0.3, **kwargs: object) -> None:
        super().__init__(**kwargs)  # type: ignore[arg-type]
        check_at_least("multi_token_weight", multi_token_weight, 0)
        self.z_loss = z_loss
        self.multi_token_weight = multi_token_weight

    def loss(self, batch: Batch) -> TokenLoss:
        """Return the cross-entropy against `labels`, computed inside the head without materializing all logits.

        In training, a model with `multi_token` also predicts the tokens after the next one (DeepSeek-V3,
        arXiv:2412.19437, equations 24 and 25); their mean cross-entropy is logged as `mtp_loss`.
        """
        depths = range(1, self.config.multi_token + 1) if self.training else ()
        if not depths:
            return self(batch, head_fn=self._head_fn(batch["labels"]))
        labels = [self._mtp_labels(batch, depth) for depth in depths]
        mtp_head_fns = [self._head_fn(shifted) for shifted in labels]
        token_loss, mtp = self(batch, head_fn=self._head_fn(batch["labels"]), mtp_head_fns=mtp_head_fns)
        losses = torch.stack([depth.loss for depth in mtp]).mean()
        entropies = torch.stack([depth.cross_entropy for depth in mtp]).mean()
        loss = token_loss.loss + self.multi_token_weight * losses
        return TokenLoss(loss, token_loss.cross_entropy, {"mtp_loss": entropies})

    def _mtp_labels(self, batch: Batch, depth: int) -> Tensor:
        sequence = batch.get("sequence")
        if sequence is None:
            return mtp_labels(batch["labels"], batch.get("document_ids"), depth)
        return sequence.own(mtp_labels(sequence.labels, sequence.document_ids, depth))

    def _head_fn(self, labels: Tensor) -> HeadFn:
        softcap = self.config.logit_softcap
        return partial(linear_cross_entropy, labels=labels, z_loss=self.z_loss, softcap=softcap)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Return the loss of each row; `PredictionWriter` adds up the rows of a document.

        Args:
            batch: rows that each contain a window of one document, with `document_index` (B,) and `sources`.
            batch_idx: index of the batch in the split.

        Returns:
            `document_index`, `num_tokens`, `num_bytes` (B,) int64, `loss_sum` (B,) float32 in nats, `sources`.
        """
        rows: dict[str, Any] = dict(batch)
        # Each row is one document followed by padding, so the causal mask is enough and no other is built.
        alone = Batch(input_ids=batch["input_ids"], position_ids=batch["position_ids"])
        if "sequence" in batch:
            alone["sequence"] = batch["sequence"]
        head_fn = partial(token_cross_entropy, labels=batch["labels"], softcap=self.config.logit_softcap)
        losses = self(alone, head_fn=head_fn)  # (B, T)
        return {
            "document_index": rows["document_index"],
            "loss_sum": losses.sum(1),
            "num_tokens": (batch["labels"] != IGNORE_INDEX).sum(1),
            "num_bytes": batch["num_bytes"],
            "sources": rows.get("sources"),
        }
