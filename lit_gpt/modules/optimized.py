"""The optimizer of a module, its schedule in steps or tokens, and clipping."""

from typing import Any

from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.utilities import GradClipAlgorithmType
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn
from torch.optim import AdamW, Optimizer

from lit_gpt.errors import UserError
from lit_gpt.modules.ranks import RanksMixin
from lit_gpt.optim import Schedule, ScheduledLR, check_learning_rates, parameter_groups


class OptimizationMixin(RanksMixin):
    """A module whose `model` is trained in named parameter groups, on a schedule."""

    model: nn.Module | None

    def _init_optimization(
        self, optimizer: OptimizerCallable | None, schedule: Schedule | None, max_tokens: int | None
    ) -> None:
        if max_tokens is not None and max_tokens < 1:
            raise UserError(f"max_tokens must be at least 1; got {max_tokens}")
        self.optimizer = optimizer
        self.schedule = schedule or Schedule()
        self.max_tokens = max_tokens
        self.tokens_seen = 0
        self._configured_groups: list[dict[str, Any]] = []

    def build_optimizer(self, groups: list[dict[str, Any]]) -> Optimizer:
        """Make the optimizer from `lit_gpt.optim.parameter_groups`."""
        if self.optimizer is None:
            # Not a default of the argument: a YAML that names another class would inherit AdamW's arguments.
            return AdamW(groups, lr=6e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
        return self.optimizer(groups)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Named parameter groups, the optimizer, and the schedule counted in optimizer steps or tokens."""
        assert self.model is not None
        optimizer = self.build_optimizer(parameter_groups(self.model))
        check_learning_rates(optimizer)
        self._configured_groups = [
            {key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups
        ]
        total = self.max_tokens if self.schedule.counts_tokens else self._total_steps()

        def factor(step: int) -> float:
            # The step in hand counts as done up to its last token, so that the first one does not train at nearly 0.
            now = self.tokens_seen + (self._step_tokens or 1) - 1 if self.schedule.counts_tokens else step
            return self.schedule.factor(now, total)

        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": ScheduledLR(optimizer, factor), "interval": "step"},
        }

    def _total_steps(self) -> int | None:
        """Optimizer steps of the whole run, from whichever limit the user set."""
        limits = []
        if self.max_tokens is not None and self._step_tokens is not None:
            limits.append(-(-self.max_tokens // self._step_tokens))
        if self.trainer.max_steps >= 0:
            limits.append(self.trainer.max_steps)
        if self.trainer.max_epochs not in (None, -1) and self.schedule.needs_total:
            # Lightning makes the training loader for this number; it must be made again, because the position in a
            # checkpoint is given only to a loader that is made after the checkpoint's loops are restored.
            steps_per_run = self.trainer.estimated_stepping_batches
            self.trainer.fit_loop._combined_loader = None
            limits.append(int(steps_per_run))
        return min(limits) if limits else None

    @property
    def _step_tokens(self) -> int | None:
        """Input tokens of an optimizer step where the DataModule fixes them."""
        return self.data_info.tokens_per_step

    def _keep_configured_settings(self) -> None:
        """Let the YAML's optimizer settings win over a checkpoint's, and say what changed."""
        for group, configured in zip(self._optimizer.param_groups, self._configured_groups, strict=False):
            for key, value in configured.items():
                if key in ("lr", "initial_lr"):  # `ScheduledLR` has set them
                    continue
                if group.get(key) != value:
                    name = configured.get("name", "the optimizer")
                    self.print(f"resume: {key} of {name} is {value} (the checkpoint had {group.get(key)})")
                    group[key] = value

    @property
    def _optimizer(self) -> Optimizer:
        return self.trainer.optimizers[0]

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        """Do nothing: `training_step` clears the gradients before it accumulates micro-batches.

        (Lightning would clear them between `training_step` and the last backward pass.)
        """

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as the Trainer says, also in bf16-mixed with a fused optimizer.

        Lightning refuses to clip beside an optimizer that can unscale gradients itself, as fused ones can, even when
        there is no scaler whose gradients could be scaled.
        """
        precision = self.trainer.precision_plugin
        if isinstance(precision, MixedPrecision) and precision.scaler is None and gradient_clip_val:
            algorithm = GradClipAlgorithmType(gradient_clip_algorithm or "norm")
            Precision.clip_gradients(precision, optimizer, gradient_clip_val, algorithm)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
