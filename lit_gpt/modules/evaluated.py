"""Validation and test of an objective: its loss over a whole split, and of each corpus of several."""

from abc import abstractmethod

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_gpt.batch import IGNORE_INDEX, Batch
from lit_gpt.evaluation import LanguageModelingMetrics
from lit_gpt.modules.ranks import RanksMixin
from lit_gpt.objectives import TokenLoss


class EvaluationMixin(RanksMixin):
    """A module with a `loss`, whose validation and test are the same loss, and measures of its own beside it."""

    is_language_model_loss = True
    """Whether the loss is nats a token, so that perplexity and bits per byte mean something."""

    def __init__(self) -> None:
        super().__init__()
        self.val_metrics = LanguageModelingMetrics()
        self.test_metrics = LanguageModelingMetrics()
        self._corpus_metrics: dict[str, LanguageModelingMetrics] = {}

    # ---- what a subclass replaces -----------------------------------------------------------------------------

    @abstractmethod
    def loss(self, batch: Batch) -> TokenLoss:
        """Loss of one micro-batch, summed (not averaged) over its supervised tokens."""

    def num_units(self, batch: Batch) -> Tensor:
        """Count what the loss of a step is the mean over: supervised tokens, unless an objective says otherwise.

        Returns:
            () int64, on the batch's device.
        """
        return (batch["labels"] != IGNORE_INDEX).sum()

    def evaluation_loss(self, batch: Batch) -> TokenLoss:
        """The same in validation and test, where an objective may also update metrics of its own."""
        return self.loss(batch)

    def evaluation_metrics(self) -> dict[str, float]:
        """Return and reset an objective's own metrics, at the end of a validation or test."""
        return {}

    # ---- Lightning's hooks ------------------------------------------------------------------------------------

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch of the validation split."""
        self._evaluate(batch, self.val_metrics)

    def on_validation_epoch_end(self) -> None:
        """Log loss, perplexity and bits per byte over the whole validation split, and of each corpus of several."""
        self._log_evaluation("val", self.val_metrics)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch of the test split."""
        self._evaluate(batch, self.test_metrics)

    def on_test_epoch_end(self) -> None:
        """Log loss, perplexity and bits per byte over the whole test split, and of each corpus of several."""
        self._log_evaluation("test", self.test_metrics)

    def _reset_metrics(self) -> None:
        """Give every metric new sums: only inference may add to those of an earlier `trainer.validate`."""
        for module in self.modules():
            if isinstance(module, Metric):
                module.reset()

    def _evaluate(self, batch: Batch, metrics: LanguageModelingMetrics) -> None:
        num_tokens = self.num_units(batch)
        num_bytes = batch["num_bytes"].sum() if "num_bytes" in batch else torch.zeros_like(num_tokens)
        loss_sum = self.evaluation_loss(batch).cross_entropy
        metrics.update(loss_sum, num_tokens, num_bytes)
        if "corpus" in batch:
            name = batch["corpus"]
            if name not in self._corpus_metrics:
                self._corpus_metrics[name] = LanguageModelingMetrics().to(self.device)
            self._corpus_metrics[name].update(loss_sum, num_tokens, num_bytes)

    def _reported(self, measures: dict[str, float]) -> dict[str, float]:
        """The loss alone, where it is not that of a language model."""
        return measures if self.is_language_model_loss else {"loss": measures["loss"]}

    def _log_evaluation(self, stage: str, metrics: LanguageModelingMetrics) -> None:
        measures = self._reported(metrics.compute()) | self.evaluation_metrics()
        values = {f"{stage}/{name}": value for name, value in measures.items()}
        metrics.reset()
        for corpus, of_corpus in self._corpus_metrics.items():
            values |= {f"{stage}/{corpus}/{name}": value for name, value in of_corpus.compute().items()}
        self._corpus_metrics.clear()
        if not self.trainer.sanity_checking:
            self.log_dict({**values, "step": float(self.trainer.global_step)}, prog_bar=False)
