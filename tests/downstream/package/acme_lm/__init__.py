"""A project of somebody else's: one objective and one corpus on top of lit_gpt."""

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F

from lit_gpt.batch import IGNORE_INDEX, Batch
from lit_gpt.datamodules import TokenDataModule
from lit_gpt.modules import PretrainModule
from lit_gpt.objectives import TokenLoss


class FocalModule(PretrainModule):
    """Focal loss (Lin et al. 2017): tokens that the model already knows weigh less.

    Args:
        gamma: 0 is plain cross-entropy.
        kwargs: those of `PretrainModule`.
    """

    def __init__(self, gamma: float = 2.0, **kwargs) -> None:
        super().__init__(**kwargs)
        self.gamma = gamma

    def loss(self, batch: Batch) -> TokenLoss:
        """The one method that differs."""
        return self(batch, head_fn=partial(focal, labels=batch["labels"], gamma=self.gamma))

    def on_validation_epoch_end(self) -> None:
        """A metric of one's own beside the base's."""
        super().on_validation_epoch_end()
        self.log("val/gamma", self.gamma)


def focal(hidden: torch.Tensor, weight: torch.Tensor, bias: None, labels: torch.Tensor, gamma: float) -> TokenLoss:
    """Sum over tokens of (1 - p)^gamma (-log p)."""
    nats = F.cross_entropy(
        F.linear(hidden, weight).flatten(0, 1), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="none"
    )
    return TokenLoss(((1 - torch.exp(-nats)) ** gamma * nats).sum(), nats.sum().detach())


class RhymesDataModule(TokenDataModule):
    """Documents that count.

    Args:
        num_documents: how many.
        kwargs: those of `TokenDataModule`.
    """

    def __init__(self, num_documents: int = 200, **kwargs) -> None:
        super().__init__(**kwargs)
        self.num_documents = num_documents

    def documents(self) -> Iterator[str]:
        """The one method that a corpus needs."""
        for number in range(self.num_documents):
            yield f"Document {number} says: " + " ".join(str(number * k) for k in range(40))
