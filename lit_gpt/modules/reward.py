"""Reward models: score an answer with a number, trained on pairs of a better and a worse answer."""

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.classification import BinaryCalibrationError

from lit_gpt.batch import Batch
from lit_gpt.checks import check_at_least
from lit_gpt.modules.scoring import ScoringModule, rows_with_targets
from lit_gpt.objectives import TokenLoss


class RewardModule(ScoringModule):
    r"""Bradley–Terry loss :math:`-\log\sigma(r(x, y_c) - r(x, y_r))`, mean over a step (Ouyang et al. 2022).

    Logged: the loss, the accuracy (share of pairs in the right order) and the mean margin; in validation also the
    calibration error (Guo et al. 2017): the difference between the predicted probability that an answer is the better
    one and how often it is, over ten bins, with each pair in both orders.

    Args:
        center: coefficient of (r_c + r_r)², which keeps rewards around 0 (Eisenstein et al. 2023: 0.01).
        kwargs: see `GPTModule`.
    """

    try_it = "score --model {run} --files answers.jsonl --out rated.jsonl"

    def __init__(self, center: float = 0.0, **kwargs: object) -> None:
        super().__init__(num_outputs=1, **kwargs)
        check_at_least("center", center, 0)
        self.center = center
        self.calibration = BinaryCalibrationError(n_bins=10, norm="l1", validate_args=False)

    def num_units(self, batch: Batch) -> Tensor:
        """Count the pairs, without padding rows."""
        return _is_pair(batch).sum()

    def loss(self, batch: Batch) -> TokenLoss:
        """Return the summed loss of the pairs."""
        return self._loss_and_margins(batch)[0]

    def evaluation_loss(self, batch: Batch) -> TokenLoss:
        """Return the summed loss, and update the calibration error."""
        loss, margins = self._loss_and_margins(batch)
        better = torch.sigmoid(margins[_is_pair(batch)])
        if len(better):  # with several devices the last batch may consist of padding
            # Both orders of each pair: with the chosen answer always first, all examples would be positive.
            ones = torch.ones_like(better, dtype=torch.int64)
            self.calibration.update(torch.cat([better, 1 - better]), torch.cat([ones, 1 - ones]))
        return loss

    def evaluation_metrics(self) -> dict[str, float]:
        """Return the calibration error."""
        value = float(self.calibration.compute())
        self.calibration.reset()
        return {"calibration_error": value}

    def _loss_and_margins(self, batch: Batch) -> tuple[TokenLoss, Tensor]:
        chosen, rejected = self.scores(batch).squeeze(1).chunk(2)
        margins = (chosen - rejected).detach()
        losses = -F.logsigmoid(chosen - rejected)
        pairs = _is_pair(batch)
        reported = torch.where(pairs, losses, 0.0).sum().detach()  # without the centering term
        if self.center:
            losses = losses + self.center * (chosen + rejected).square()
        total = torch.where(pairs, losses, 0.0).sum()
        self.log_sum("accuracy", torch.where(pairs, (margins > 0).float(), 0.0).sum(), pairs.sum())
        self.log_sum("margin", torch.where(pairs, margins, 0.0).sum(), pairs.sum())
        return TokenLoss(total, reported), margins


def _is_pair(batch: Batch) -> Tensor:
    """Return (pairs,) bool: which pairs of a batch are not padding."""
    return rows_with_targets(batch).chunk(2)[0]
