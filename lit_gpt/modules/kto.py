"""KTO: train on single answers that were judged good or bad, without pairs."""

from typing import Any

import torch
from torch import Tensor

from lit_gpt.batch import IGNORE_INDEX, Batch, StepBatch
from lit_gpt.checks import check_above
from lit_gpt.modules.dpo import DPOModule
from lit_gpt.modules.reference import ReferenceKind
from lit_gpt.objectives import TokenLoss, kto_loss


class KTOModule(DPOModule):
    """Kahneman–Tversky optimization (Ethayarajh et al. 2024, arXiv:2402.01306); mean over the answers of a step.

    The reference point z_0 is the mean log-ratio of policy and reference on answers to other prompts, over the whole
    optimizer step on all devices, so that splitting the step into micro-batches changes nothing. In validation it is
    the mean over each batch.

    Args:
        beta: strength of the pull towards the reference.
        desirable_weight: weight of the good answers; with n_D good and n_U bad ones, the paper advises
            desirable_weight · n_D between 1 and 4/3 times undesirable_weight · n_U.
        undesirable_weight: weight of the bad answers.
        reference: see `DPOModule`.
        kwargs: see `GPTModule`.
    """

    def __init__(
        self,
        beta: float = 0.1,
        desirable_weight: float = 1.0,
        undesirable_weight: float = 1.0,
        reference: ReferenceKind = "auto",
        **kwargs: Any,
    ) -> None:
        super().__init__(beta=beta, reference=reference, **kwargs)
        check_above("desirable_weight", desirable_weight, 0)
        check_above("undesirable_weight", undesirable_weight, 0)
        self.weights = (desirable_weight, undesirable_weight)
        self._reference_point: Tensor | None = None
        """() z_0 of the current optimizer step."""

    def num_units(self, batch: Batch) -> Tensor:
        """Count the answers, without padding rows."""
        return _is_answer(batch).sum()

    def training_step(self, batch: StepBatch | Batch, batch_idx: int) -> Tensor:
        """Compute the step's reference point without gradients, then run the step."""
        parts: list[Any] = batch if isinstance(batch, list) else [batch]
        micro_batches: list[Batch] = [
            part | {"reference_log_probs": self.scores_under_reference(part)} for part in parts
        ]
        # Computed over the whole step before any loss: a mean per micro-batch would depend on its size.
        sums = torch.stack([self._mismatched_ratios(micro_batch) for micro_batch in micro_batches]).sum(0)
        self._reference_point = _mean_above_0(*self.sum_over_ranks(sums))
        return super().training_step(micro_batches, batch_idx)

    def reference_scores(self, model: Any, batch: Batch) -> Tensor:
        """Return (rows, 2): log-probabilities of the answers, and of answers to other prompts, under `model`."""
        mismatched: Batch = batch["mismatched"]  # type: ignore[typeddict-item]
        return torch.stack([self._log_probs(model, batch), self._log_probs(model, mismatched)], dim=1)

    def rows_of(self, batch: Batch) -> Tensor:
        """Return (rows,) int64: row numbers of the answers in their split; -1 is padding."""
        return batch["sample_ids"]

    @torch.no_grad()
    def _mismatched_ratios(self, batch: Batch) -> Tensor:
        """Return (2,): the sum of the log-ratios of answers to other prompts, and their number."""
        mismatched: Batch = batch["mismatched"]  # type: ignore[typeddict-item]
        reference: Tensor = batch["reference_log_probs"][:, 1]  # type: ignore[typeddict-item]
        # Without dropout: the reference point of the policy itself, not of a random subnetwork.
        assert self.model is not None
        training = self.model.training
        self.model.eval()
        ratios = self._log_probs(self.model, mismatched) - reference
        self.model.train(training)
        answers = _is_answer(mismatched)
        return torch.stack([torch.where(answers, ratios, 0.0).sum(), answers.sum().to(ratios.dtype)])

    def loss(self, batch: Batch) -> TokenLoss:
        """Return the summed loss of the answers."""
        rows: Any = batch
        if "reference_log_probs" not in batch:  # a training step has already added them
            rows = rows | {"reference_log_probs": self.scores_under_reference(batch)}
        reference_point = self._reference_point
        if not self.training or reference_point is None:
            reference_point = _mean_above_0(*self._mismatched_ratios(rows))
        reference: Tensor = rows["reference_log_probs"][:, 0]
        desirable: Tensor = batch["desirable"]  # type: ignore[typeddict-item]
        policy = self._log_probs(self.model, batch)
        losses, rewards = kto_loss(
            policy, reference, desirable, reference_point, self.preference_loss.beta, *self.weights
        )
        answers = _is_answer(batch)
        loss = torch.where(answers, losses, 0.0).sum()
        for name, group in (("desirable_reward", answers & desirable), ("undesirable_reward", answers & ~desirable)):
            self.log_sum(name, torch.where(group, rewards, 0.0).sum(), group.sum())
        self.log_sum("kl", reference_point * answers.sum(), answers.sum())
        return TokenLoss(loss, loss.detach())


def _mean_above_0(total: Tensor, count: Tensor) -> Tensor:
    return (total / count.clamp(min=1)).clamp(min=0)


def _is_answer(batch: Batch) -> Tensor:
    return (batch["labels"] != IGNORE_INDEX).any(1)
