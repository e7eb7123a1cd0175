"""Direct preference optimization and related losses on pairs of a chosen and a rejected answer."""

from typing import Any

import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from lit_gpt.batch import IGNORE_INDEX, Batch
from lit_gpt.models.head import accepts_shards
from lit_gpt.modules.base import GPTModule
from lit_gpt.modules.reference import ReferenceKind, ReferenceModel, score_all_rows
from lit_gpt.objectives import LogProbs, PreferenceLoss, TokenLoss, linear_log_probs
from lit_gpt.objectives.preferences import PairLoss


class DPOModule(GPTModule):
    """A loss on pairs of answers (Rafailov et al. 2023, arXiv:2305.18290); mean over the pairs of a step.

    Logged, in training and validation: the rewards of chosen and rejected answers (beta times the log-ratio to the
    reference), their margin, the accuracy (share of pairs with a margin above 0), `kl` (mean log-ratio of policy and
    reference over both answers) and the answers' log-probabilities.

    Args:
        loss_type: `sigmoid` (DPO), `ipo`, `hinge`, `robust`, or without a reference `orpo` and `simpo`; see
            `lit_gpt.objectives.PreferenceLoss`.
        beta: strength of the pull towards the reference; 2 or more for `simpo`.
        label_smoothing: assumed fraction of pairs in the wrong order (`sigmoid`, `robust`).
        gamma: margin of `simpo`.
        reference: source of the reference's log-probabilities: a `frozen` second copy of the initial weights,
            `precomputed` before the first step and stored in the run's folder (no second model in memory), or the base
            under a `disabled_adapter`. `auto`: the last one if there is an adapter, else a frozen copy.
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
        super().__init__(**kwargs)  # type: ignore[arg-type]
        choices: tuple[ReferenceKind, ...] = ("auto", "frozen", "precomputed", "disabled_adapter")
        self.reference = ReferenceModel(reference, choices, has_adapter=self.adapter is not None)
        self.preference_loss = PreferenceLoss(loss_type, beta, label_smoothing, gamma)
        self._reference_tables: dict[str, Tensor] = {}
        """If the reference is precomputed: (rows of the split, 2) float32 by split."""

    # ---- the reference ------------------------------------------------------------------------------------------

    @property
    def uses_reference(self) -> bool:
        """Whether the loss has a term for the reference."""
        return self.preference_loss.needs_reference

    def configure_model(self) -> None:
        """Build the policy and the reference, which has the initial weights, also on a resume."""
        if self.model is not None:
            return
        super().configure_model()
        if self.uses_reference:
            self.reference.build(self)

    def on_fit_start(self) -> None:
        """Compute or read the reference's log-probabilities of all rows, if they are precomputed."""
        super().on_fit_start()
        if self.uses_reference and self.reference.kind == "precomputed":
            self._reference_tables = score_all_rows(self, self.reference, self.reference_scores, self.rows_of)
            self.reference.release()

    def on_validation_start(self) -> None:
        """Outside of fit, ignore the tables: the rows may differ from those of the last fit."""
        super().on_validation_start()
        if self.trainer.state.fn != TrainerFn.FITTING:
            self._reference_tables = {}

    def on_test_start(self) -> None:
        """Ignore the tables, as in `on_validation_start`."""
        super().on_test_start()
        self._reference_tables = {}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Also save the hash of the reference's weights."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["lit_gpt"]["reference_sha256"] = self.reference.sha256

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Reject resuming with another reference.

        Raises:
            UserError: the initial weights are not those that the run was started from.
        """
        super().on_load_checkpoint(checkpoint)
        self.reference.check_saved(checkpoint["lit_gpt"].get("reference_sha256"), self.init_from)

    def scores_under_reference(self, batch: Batch) -> Tensor:
        """Return `reference_scores` of a batch, from the tables if there are any, else computed with the reference."""
        if self._reference_tables:
            split = "train" if self.training else "test" if self.trainer.testing else "val"
            return self._reference_tables[split][self.rows_of(batch).clamp(min=0)]
        with self.reference.active(self) as model, torch.no_grad():
            return self.reference_scores(model, batch)

    def reference_scores(self, model: Any, batch: Batch) -> Tensor:
        """Return (pairs, 2) float32: log-probabilities of the chosen and the rejected answers under `model`."""
        return torch.stack(self._log_probs(model, batch).chunk(2), dim=1)

    def rows_of(self, batch: Batch) -> Tensor:
        """Return (pairs,) int64: row numbers of the pairs in their split (each is in a batch twice); -1 is padding."""
        return batch["sample_ids"].chunk(2)[0]

    def _reference_log_probs(self, batch: Batch) -> LogProbs | None:
        if not self.uses_reference:
            return None
        chosen, rejected = self.scores_under_reference(batch).unbind(1)
        return LogProbs(chosen, rejected, *_lengths(batch))

    def _policy_log_probs(self, batch: Batch) -> LogProbs:
        chosen, rejected = self._log_probs(self.model, batch).chunk(2)
        return LogProbs(chosen, rejected, *_lengths(batch))

    def _log_probs(self, model: Any, batch: Batch) -> Tensor:
        """Return (B,) log-probabilities of the answers: the sums over their tokens."""
        labels = batch["labels"]
        index: Tensor = batch["target_index"]  # type: ignore[typeddict-item]

        @accepts_shards
        def head_fn(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            rows = hidden.reshape(-1, hidden.shape[-1]).index_select(0, index)
            targets = labels.reshape(-1).index_select(0, index)
            log_probs = linear_log_probs(rows, weight, bias, targets, softcap=self.config.logit_softcap)
            of_rows = index // labels.shape[1]
            return log_probs.new_zeros(len(labels)).index_add(0, of_rows, log_probs)

        scores: Tensor = model(batch["input_ids"], position_ids=batch["position_ids"], head_fn=head_fn)
        return scores

    # ---- the loss -----------------------------------------------------------------------------------------------

    def num_units(self, batch: Batch) -> Tensor:
        """Count the pairs, without padding."""
        return _is_pair(batch).sum()

    def loss(self, batch: Batch) -> TokenLoss:
        """Return the summed loss of the pairs."""
        reference = self._reference_log_probs(batch)
        policy = self._policy_log_probs(batch)
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
        parts = {name: torch.where(pairs, values.detach(), 0.0).sum() for name, values in measures.items()}
        return TokenLoss(total, total.detach(), parts)


def _lengths(batch: Batch) -> tuple[Tensor, Tensor]:
    counts = (batch["labels"] != IGNORE_INDEX).sum(1)
    chosen, rejected = counts.clamp(min=1).chunk(2)
    return chosen, rejected


def _is_pair(batch: Batch) -> Tensor:
    """Return (pairs,) bool: which pairs of a batch are not padding."""
    return (batch["labels"].chunk(2)[0] != IGNORE_INDEX).any(1)
