"""Objectives whose model outputs a few numbers per text instead of next tokens, by a linear layer on a hidden state.

The numbers are computed at the position that would predict the stop token (or whatever is the last target of a row):
there the model has seen the whole text.
"""

import torch
from torch import Tensor, nn

from lit_gpt.batch import IGNORE_INDEX, Batch
from lit_gpt.models import GPT
from lit_gpt.modules.base import GPTModule

SCORE = "score"


class ScoringModule(GPTModule):
    """Base class of reward models and classifiers: a GPT with a layer `score` of (outputs, C) next to the LM head.

    Args:
        num_outputs: number of outputs per text.
        kwargs: see `GPTModule`.
    """

    is_language_model_loss = False
    grows_vocabulary = True
    new_weights = (f"{SCORE}.weight",)

    def __init__(self, num_outputs: int, **kwargs: object) -> None:
        super().__init__(**kwargs)  # type: ignore[arg-type]
        self.num_outputs = num_outputs

    def build_model(self) -> nn.Module:
        """Build the GPT and its score layer; an untied LM head does not contribute to the loss, so it is frozen."""
        model = GPT(self.config)
        setattr(model, SCORE, nn.Linear(self.config.n_embd, self.num_outputs, bias=False))
        if not self.config.tie_embeddings:
            model.lm_head.requires_grad_(False)
        return model

    def scores(self, batch: Batch) -> Tensor:
        """Return (B, outputs) float32: the scores of each row; a padding row has the scores of its first position."""
        targets = batch["labels"] != IGNORE_INDEX
        positions = torch.arange(targets.shape[1], device=targets.device)
        last = torch.where(targets, positions, 0).amax(1)  # (B,)

        def head_fn(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            chosen = hidden[torch.arange(len(last), device=hidden.device), last]  # (B, C)
            score: nn.Linear = self.model.score  # type: ignore[union-attr, assignment]
            return score(chosen).float()

        result: Tensor = self(batch, head_fn=head_fn)
        return result


def rows_with_targets(batch: Batch) -> Tensor:
    """Return (B,) bool: which rows are not padding."""
    return (batch["labels"] != IGNORE_INDEX).any(1)
