"""Direct preference optimisation and its kin: prefer the better of two answers."""

from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from lit_gpt.batch import IGNORE_INDEX, Batch
from lit_gpt.modules.precomputed import PrecomputedReference
from lit_gpt.modules.reference import ReferenceKind
from lit_gpt.objectives import LogProbs, PreferenceLoss, TokenLoss, linear_log_probs
from lit_gpt.objectives.preferences import PairLoss

MEASURES = ("chosen_reward", "rejected_reward", "margin", "accuracy", "kl", "chosen_log_prob", "rejected_log_prob")


class DPOModule(PrecomputedReference):
    """A loss on pairs of answers (Rafailov et al. 2023, arXiv:2305.18290), the mean over the pairs of a step.

    Logged, in training and validation: the rewards of chosen and rejected answers (beta times the log-ratio to the
    reference), their margin, the accuracy (share of pairs with a margin above 0), `kl` (mean log-ratio of policy and
    reference over both answers) and the answers' log-probabilities.

    Args:
        loss_type: `sigmoid` (DPO), `ipo`, `hinge`, `robust`, or without a reference `orpo` and `simpo`; see
            `lit_gpt.objectives.PreferenceLoss`.
        beta: how strongly the policy is held to the reference; 2 or more for `simpo`.
        label_smoothing: share of pairs that may be the wrong way round (`sigmoid`, `robust`).
        gamma: margin of `simpo`.
        reference: where the reference's log-probabilities come from: a `frozen` second copy of the first weights,
            `precomputed` before the first step and kept in the run's folder (no second model in memory), or the base
            under a `disabled_adapter`. `auto`: the last if there is an adapter, else a frozen copy.
        kwargs: see `GPTModule`.
    """

    is_language_model_loss = False
    grows_vocabulary = True

    def __init__(
        self,
        loss_type: PairLoss = "sigmoid",
        beta: float = 0.1,
        label_smoothing: float = 0.0,
        gamma: float = 1.0,
        reference: ReferenceKind = "auto",
        **kwargs: object,
    ) -> None:
        super().__init__(reference, **kwargs)
        self.preference_loss = PreferenceLoss(loss_type, beta, label_smoothing, gamma)
        self.means = nn.ModuleDict({name: MeanMetric() for name in MEASURES})

    # ---- the reference ----------------------------------------------------------------------------------------

    @property
    def uses_reference(self) -> bool:
        """Whether the loss has a part for the reference."""
        return self.preference_loss.needs_reference

    def reference_numbers(self, model: Any, batch: Batch) -> Tensor:
        """Of the chosen and the rejected answers."""
        return torch.stack(self._log_probs(model, batch).chunk(2), dim=1)

    def rows_of(self, batch: Batch) -> Tensor:
        """Pairs: a batch has each row twice."""
        return batch["sample_ids"].chunk(2)[0]

    def _reference_scores(self, batch: Batch) -> LogProbs | None:
        if not self.uses_reference:
            return None
        chosen, rejected = self.of_reference(batch).unbind(1)
        return LogProbs(chosen, rejected, *_lengths(batch))

    def _policy_scores(self, model: Any, batch: Batch) -> LogProbs:
        chosen, rejected = self._log_probs(model, batch).chunk(2)
        return LogProbs(chosen, rejected, *_lengths(batch))

    def _log_probs(self, model: Any, batch: Batch) -> Tensor:
        """(B,) log-probabilities of the answers: those of their tokens, summed."""
        labels = batch["labels"]
        index: Tensor = batch["target_index"]  # type: ignore[typeddict-item]

        def head_fn(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            rows = hidden.reshape(-1, hidden.shape[-1]).index_select(0, index)
            targets = labels.reshape(-1).index_select(0, index)
            log_probs = linear_log_probs(rows, weight, bias, targets, softcap=self.config.logit_softcap)
            of_rows = index // labels.shape[1]
            return log_probs.new_zeros(len(labels)).index_add(0, of_rows, log_probs)

        scores: Tensor = model(batch["input_ids"], position_ids=batch["position_ids"], head_fn=head_fn)
        return scores

    # ---- the loss ---------------------------------------------------------------------------------------------

    def num_units(self, batch: Batch) -> Tensor:
        """Pairs; rows of padding are none."""
        return _is_pair(batch).sum()

    def loss(self, batch: Batch) -> TokenLoss:
        """Sum of the pairs' losses."""
        loss, measures = self._loss_and_measures(batch)
        for name, values in measures.items():
            self._step_losses[name] = self._step_losses.get(name, 0) + values.sum()
        return loss

    def evaluation_loss(self, batch: Batch) -> TokenLoss:
        """The same, and its measures over the whole split."""
        loss, measures = self._loss_and_measures(batch)
        pairs = _is_pair(batch)
        for name, values in measures.items():
            mean: Any = self.means[name]
            mean.update(values[pairs])
        return loss

    def evaluation_metrics(self) -> dict[str, float]:
        """Rewards, margin, accuracy, KL and log-probabilities."""
        means: list[tuple[str, Any]] = list(self.means.items())
        values = {name: float(mean.compute()) for name, mean in means}
        for _, mean in means:
            mean.reset()
        return values

    def _loss_and_measures(self, batch: Batch) -> tuple[TokenLoss, dict[str, Tensor]]:
        reference = self._reference_scores(batch)
        policy = self._policy_scores(self.model, batch)
        losses, chosen, rejected = self.preference_loss(policy, reference)
        pairs = _is_pair(batch)
        total = torch.where(pairs, losses, 0.0).sum()
        against = policy if reference is None else reference
        drift = (policy.chosen - against.chosen + policy.rejected - against.rejected) / 2
        measures = {
            "chosen_reward": chosen,
            "rejected_reward": rejected,
            "margin": chosen - rejected,
            "accuracy": (chosen > rejected).float(),
            "kl": drift,
            "chosen_log_prob": policy.chosen,
            "rejected_log_prob": policy.rejected,
        }
        measures = {name: torch.where(pairs, values.detach(), 0.0) for name, values in measures.items()}
        return TokenLoss(total, total.detach()), measures


def _lengths(batch: Batch) -> tuple[Tensor, Tensor]:
    counts = (batch["labels"] != IGNORE_INDEX).sum(1)
    chosen, rejected = counts.clamp(min=1).chunk(2)
    return chosen, rejected


def _is_pair(batch: Batch) -> Tensor:
    """(B,) bool: which of a batch's pairs are no padding."""
    return (batch["labels"].chunk(2)[0] != IGNORE_INDEX).any(1)
