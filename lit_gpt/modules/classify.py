"""Classification: assign each text to one of several classes."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassF1Score

from lit_gpt.batch import Batch
from lit_gpt.errors import UserError
from lit_gpt.modules.scoring import ScoringModule, rows_with_targets
from lit_gpt.objectives import TokenLoss


class ClassificationModule(ScoringModule):
    """Cross-entropy of the class, predicted from the last hidden state (Radford et al. 2018); mean over a step's rows.

    Validation logs loss, accuracy and the mean F1 of the classes; `confusion` then holds the confusion matrix, which
    `ConfusionPicture` draws. `predict` gives each row's class and its probability, which `ClassWriter` writes.

    Args:
        classes: names of the classes; the command line sets them from the DataModule.
        kwargs: see `GPTModule`.

    Raises:
        UserError: there are fewer than two `classes`.
    """

    try_it = "predict --config {run}/config.yaml --ckpt_path best"

    def __init__(self, classes: list[str] | None = None, **kwargs: object) -> None:
        if classes is None or len(classes) < 2:
            raise UserError(f"classes is {classes}; give at least two names (the command line takes the DataModule's)")
        super().__init__(num_outputs=len(classes), **kwargs)
        self.classes = list(classes)
        count = len(classes)
        self.accuracy = MulticlassAccuracy(count, average="micro", validate_args=False)
        self.f1 = MulticlassF1Score(count, average="macro", validate_args=False)
        self.confusion_matrix = MulticlassConfusionMatrix(count, validate_args=False)
        self.confusion: Tensor | None = None
        """(classes, classes) int64 on the CPU, set after a validation or test; rows are true classes."""

    def num_units(self, batch: Batch) -> Tensor:
        """Count the texts, without padding rows."""
        return rows_with_targets(batch).sum()

    def loss(self, batch: Batch) -> TokenLoss:
        """Return the summed loss of the texts."""
        return self._loss(batch, self.scores(batch))

    def evaluation_loss(self, batch: Batch) -> TokenLoss:
        """Return the summed loss, and update the metrics of the split."""
        scores = self.scores(batch)
        texts = rows_with_targets(batch)
        classes: Tensor = batch["classes"]  # type: ignore[typeddict-item]
        for metric in (self.accuracy, self.f1, self.confusion_matrix) if texts.any() else ():
            metric.update(scores[texts].argmax(1), classes[texts])
        return self._loss(batch, scores)

    def evaluation_metrics(self) -> dict[str, float]:
        """Return accuracy and mean F1, and store the confusion matrix as `confusion`."""
        values = {"accuracy": float(self.accuracy.compute()), "f1": float(self.f1.compute())}
        self.confusion = self.confusion_matrix.compute().cpu()
        for metric in (self.accuracy, self.f1, self.confusion_matrix):
            metric.reset()
        return values

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Return the predicted class and probability of each text.

        Returns:
            `sample_ids` (B,), `classes` (B,) int64 predicted, `probabilities` (B, classes) float32, without padding
            rows.
        """
        texts = rows_with_targets(batch)
        probabilities = self.scores(batch).softmax(1)[texts]
        return {
            "sample_ids": batch["sample_ids"][texts],
            "classes": probabilities.argmax(1),
            "probabilities": probabilities,
            "names": self.classes,
        }

    def _loss(self, batch: Batch, scores: Tensor) -> TokenLoss:
        classes: Tensor = batch["classes"]  # type: ignore[typeddict-item]
        losses = F.cross_entropy(scores, classes, reduction="none")
        total = torch.where(rows_with_targets(batch), losses, 0.0).sum()
        return TokenLoss(total, total.detach())
