"""Reward models: a number for an answer, learned from which of two is better."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanMetric
from torchmetrics.classification import BinaryCalibrationError

from lit_gpt.batch import Batch
from lit_gpt.errors import UserError
from lit_gpt.modules.scoring import ScoringModule, rows_with_targets
from lit_gpt.objectives import TokenLoss


class RewardModule(ScoringModule):
    r"""Bradley–Terry: :math:`-\log\sigma(r(x, y_c) - r(x, y_r))`, the mean over a step (Ouyang et al. 2022).

    Logged in validation: the loss, the accuracy (share of pairs in the right order), the mean margin, and the
    calibration error (Guo et al. 2017): how far the predicted probability that an answer is the better one lies from
    how often it is, over ten bins, both ways round of each pair.

    Args:
        center: coefficient of (r_c + r_r)², which keeps rewards around 0 (Eisenstein et al. 2023: 0.01).
        kwargs: see `GPTModule`.
    """

    try_it = "score --model {run} --files answers.jsonl --out rated.jsonl"

    def __init__(self, center: float = 0.0, **kwargs: object) -> None:
        super().__init__(num_outputs=1, **kwargs)
        if center < 0:
            raise UserError(f"center is {center}; it must be at least 0")
        self.center = center
        self.accuracy, self.margin = MeanMetric(), MeanMetric()
        self.calibration = BinaryCalibrationError(n_bins=10, norm="l1", validate_args=False)

    def num_units(self, batch: Batch) -> Tensor:
        """Pairs; rows of padding are none."""
        return rows_with_targets(batch).chunk(2)[0].sum()

    def loss(self, batch: Batch) -> TokenLoss:
        """Sum of the pairs' losses."""
        loss, margins = self._loss_and_margins(batch)
        correct = torch.where(rows_with_targets(batch).chunk(2)[0], (margins > 0).float(), 0.0)
        self._step_losses["accuracy"] = self._step_losses.get("accuracy", 0) + correct.sum()
        return loss

    def evaluation_loss(self, batch: Batch) -> TokenLoss:
        """The same, and its measures over the whole split."""
        loss, margins = self._loss_and_margins(batch)
        margins = margins[rows_with_targets(batch).chunk(2)[0]]
        if len(margins) == 0:  # with several devices the last batch may be padding alone
            return loss
        self.accuracy.update((margins > 0).float())
        self.margin.update(margins)
        better = torch.sigmoid(margins)
        ones = torch.ones_like(better, dtype=torch.int64)
        self.calibration.update(torch.cat([better, 1 - better]), torch.cat([ones, 1 - ones]))
        return loss

    def evaluation_metrics(self) -> dict[str, float]:
        """Accuracy, margin and calibration error."""
        metrics: dict[str, Any] = {
            "accuracy": self.accuracy,
            "margin": self.margin,
            "calibration_error": self.calibration,
        }
        values = {name: float(metric.compute()) for name, metric in metrics.items()}
        for metric in metrics.values():
            metric.reset()
        return values

    def _loss_and_margins(self, batch: Batch) -> tuple[TokenLoss, Tensor]:
        chosen, rejected = self.scores(batch).squeeze(1).chunk(2)
        losses = -F.logsigmoid(chosen - rejected)
        shown = torch.where(rows_with_targets(batch).chunk(2)[0], losses, 0.0).sum()
        if self.center:
            losses = losses + self.center * (chosen + rejected).square()
        total = torch.where(rows_with_targets(batch).chunk(2)[0], losses, 0.0).sum()
        return TokenLoss(total, shown.detach()), (chosen - rejected).detach()
