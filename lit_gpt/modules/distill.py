"""Distillation: a student learns to say what a teacher would."""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from lit_gpt.batch import IGNORE_INDEX, Batch
from lit_gpt.checkpoints.resolve import resolve_model
from lit_gpt.errors import UserError
from lit_gpt.models import GPT
from lit_gpt.models.precision import converted
from lit_gpt.modules.sft import SFTModule
from lit_gpt.objectives import TokenLoss, linear_cross_entropy
from lit_gpt.objectives.distillation import Divergence, linear_divergence


class DistillModule(SFTModule):
    """The divergence of the student's next tokens from the teacher's, mixed with the hard loss; the mean over a step.

    Works with every DataModule whose batches have `labels`: supervised tokens are distilled. Logged beside SFT's
    measures: `divergence`, in nats a token.

    Args:
        teacher: its weights: a run, a checkpoint, a bundle, a Hugging Face folder or a hub name, with the student's
            tokenizer.
        divergence: `forward` KL (Hinton et al. 2015), `reverse` KL (MiniLLM) or `jsd` (GKD).
        temperature: divides both logits.
        hard_weight: share of the cross-entropy against the data, from 0 to 1.
        beta: of `jsd`.
        teacher_dtype: of the teacher's weights in memory.
        kwargs: see `SFTModule`.
    """

    def __init__(
        self,
        teacher: str,
        divergence: Divergence = "forward",
        temperature: float = 1.0,
        hard_weight: float = 0.5,
        beta: float = 0.5,
        teacher_dtype: Literal["float32", "bfloat16"] = "float32",
        **kwargs: object,
    ) -> None:
        super().__init__(**kwargs)  # type: ignore[arg-type]
        if divergence not in ("forward", "reverse", "jsd"):
            raise UserError(f"divergence is {divergence!r}; it can be forward, reverse or jsd")
        if not temperature > 0:
            raise UserError(f"temperature is {temperature}; it must be above 0")
        if not 0.0 <= hard_weight <= 1.0:
            raise UserError(f"hard_weight is {hard_weight}; it must lie between 0 and 1")
        if not 0.0 < beta < 1.0:
            raise UserError(f"beta is {beta}; it must lie between 0 and 1")
        self.teacher = teacher
        self._teacher_source = resolve_model(teacher)
        theirs = self._teacher_source.config
        if self.config.block_size > theirs.block_size:
            raise UserError(
                f"the teacher {teacher} has block_size {theirs.block_size}, less than the {self.config.block_size} of "
                "the student; lower the data's block_size"
            )
        self.divergence: Divergence = divergence
        self.temperature = temperature
        self.hard_weight = hard_weight
        self.beta = beta
        self.teacher_dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[teacher_dtype]
        self.mean_divergence = MeanMetric()
        self.__dict__["_teacher_model"] = None  # not a submodule: it is in no checkpoint and no optimizer

    def configure_model(self) -> None:
        """Build the student, and the frozen teacher beside it."""
        if self.model is not None:
            return
        super().configure_model()
        with torch.device("meta"):
            teacher = GPT(self._teacher_source.config.overridden({"multi_token": 0}))
        weights = {
            name: converted(name, value, self.teacher_dtype)
            for name, value in self._teacher_source.load_state_dict().items()
            if not name.startswith("multi_token.")
        }
        teacher.load_state_dict(weights, assign=True)
        self.__dict__["_teacher_model"] = teacher.to(self.device).requires_grad_(False).eval()

    def on_fit_start(self) -> None:
        """Refuse a teacher that speaks of other tokens.

        Raises:
            UserError: its tokenizer is another.
        """
        super().on_fit_start()
        self.check_tokens(self._teacher_source, f"the teacher {self.teacher}")

    def loss(self, batch: Batch) -> TokenLoss:
        """Sum over the supervised tokens."""
        loss, apart = self._both(batch)
        self._step_losses["divergence"] = self._step_losses.get("divergence", 0) + apart
        return loss

    def evaluation_loss(self, batch: Batch) -> TokenLoss:
        """SFT's measures, and the divergence."""
        super().evaluation_loss(batch)
        loss, apart = self._both(batch)
        count = self.num_units(batch)
        self.mean_divergence.update(apart / count.clamp(min=1), count)
        return loss

    def evaluation_metrics(self) -> dict[str, float]:
        """Token accuracy, and nats a token between student and teacher."""
        value = float(self.mean_divergence.compute())
        self.mean_divergence.reset()
        return super().evaluation_metrics() | {"divergence": value}

    def _both(self, batch: Batch) -> tuple[TokenLoss, Tensor]:
        teacher: Any = self._teacher_model
        inputs = {"position_ids": batch.get("position_ids"), "document_ids": batch.get("document_ids")}
        with torch.no_grad():
            theirs = teacher(batch["input_ids"], head_fn=lambda hidden, *_: hidden, **inputs)

        def head_fn(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, TokenLoss]:
            labels = batch["labels"].reshape(-1)
            index: Any = batch.get("target_index")
            if index is None:
                index = torch.nonzero(labels != IGNORE_INDEX).squeeze(1)
            rows = hidden.reshape(-1, hidden.shape[-1]).index_select(0, index)
            their_rows = theirs.reshape(-1, theirs.shape[-1]).index_select(0, index)
            head: nn.Linear = teacher.lm_head
            softcaps = (self.config.logit_softcap, self._teacher_source.config.logit_softcap)
            apart = linear_divergence(
                rows, weight, their_rows, head.weight, self.divergence, self.temperature, self.beta, softcaps
            )
            targets = labels.index_select(0, index)
            hard = linear_cross_entropy(rows, weight, bias, targets, softcap=self.config.logit_softcap)
            return apart, hard

        apart, hard = self(batch, head_fn=head_fn)
        mixed = self.hard_weight * hard.loss + (1 - self.hard_weight) * apart
        return TokenLoss(mixed, hard.cross_entropy), apart.detach()
