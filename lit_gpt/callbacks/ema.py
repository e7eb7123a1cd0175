"""`ExponentialMovingAverage`: an exponential moving average of the weights, for evaluation and export."""

from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from lit_gpt.checkpoints.step import EMA
from lit_gpt.checks import check_at_least, check_between
from lit_gpt.errors import UserError
from lit_gpt.plugins import ParallelStrategy


def lerp_weight(decay: float, num_updates: int) -> float:
    r"""Return the weight of the newest parameters in the average at update `num_updates` (1, 2, ...).

    .. math:: (1 - d) / (1 - d^t)

    Unrolled, the average is :math:`\sum_i d^{t-i} w_i / \sum_i d^{t-i}`: the bias correction of Adam (Kingma & Ba
    2015, arXiv:1412.6980, section 3), so that the random initial weights do not contribute to the average.
    """
    return (1.0 - decay) / (1.0 - decay**num_updates)


class ExponentialMovingAverage(Callback):
    """Averages the trained parameters after every optimizer step (Polyak & Juditsky 1992; Morales-Brotons et al. 2024).

    The average is in float32 regardless of the weights' dtype, and each process averages its own shard (DDP, FSDP2,
    tensor parallelism). It is saved exactly, in checkpoints next to the weights, and
    `lit_gpt.checkpoints.resolve.resolve_model` returns it for generation and export.

    Args:
        decay: EMA decay per update; the effective window is about 1 / (1 - decay) updates.
        every_n_steps: number of optimizer steps between two updates.
        evaluate: use the averaged weights in validation, test and prediction.

    Raises:
        UserError: decay is not between 0 and 1, or every_n_steps is below 1.
    """

    def __init__(self, decay: float = 0.999, every_n_steps: int = 1, evaluate: bool = True) -> None:
        name = type(self).__name__
        check_between(f"decay of {name}", decay, 0, 1, "0.999 is usual", low_open=True, high_open=True)
        check_at_least(f"every_n_steps of {name}", every_n_steps, 1)
        self.decay = decay
        self.every_n_steps = every_n_steps
        self.evaluate = evaluate
        self.num_updates = 0
        self._averages: dict[str, Tensor] = {}
        self._parameters: dict[str, nn.Parameter] = {}
        self._fsdp: list[FSDPModule] = []
        self._loaded: dict[str, Tensor] | None = None
        self._backup: list[Tensor] | None = None

    # ---- averaging --------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the parameters, which are now sharded and loaded."""
        self._find(pl_module)
        if self._loaded is None and not trainer.ckpt_path:
            self.num_updates, self._averages = 0, {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the average with the new weights."""
        if trainer.global_step % self.every_n_steps:
            return
        self.num_updates += 1
        with torch.no_grad():
            current = [local.float() for local in self._locals(self._parameters.values())]
            if not self._averages:
                self._averages = {
                    name: torch.zeros_like(parameter, dtype=torch.float32, requires_grad=False)
                    for name, parameter in self._parameters.items()
                }
            torch._foreach_lerp_(_local(self._averages.values()), current, lerp_weight(self.decay, self.num_updates))

    # ---- evaluation -------------------------------------------------------------------------------------------

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Swap in the averaged weights."""
        self._swap_in(pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Swap in the averaged weights."""
        self._swap_in(pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Swap in the averaged weights."""
        self._swap_in(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the trained weights."""
        self.restore()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the trained weights."""
        self.restore()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the trained weights."""
        self.restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore the trained weights."""
        self.restore()

    def _swap_in(self, pl_module: LightningModule) -> None:
        self._find(pl_module)
        if not self.evaluate or not self._averages:
            return
        with torch.no_grad():
            weights = self._locals(self._parameters.values())
            self._backup = [weight.clone() for weight in weights]
            torch._foreach_copy_(weights, _local(self._averages.values()))

    def restore(self) -> None:
        """Restore the trained weights if the averaged ones are swapped in."""
        if self._backup is None:
            return
        with torch.no_grad():
            torch._foreach_copy_(self._locals(self._parameters.values()), self._backup)
        self._backup = None

    # ---- checkpoints ------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the number of EMA updates; the average itself is stored next to the weights."""
        return {"num_updates": self.num_updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the number of updates."""
        self.num_updates = state_dict["num_updates"]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Store the average next to the weights, sharded or complete like them."""
        if not self._averages:
            return
        averages = dict(self._averages)
        strategy = trainer.strategy
        if isinstance(strategy, ParallelStrategy) and not strategy.saves_shards:
            averages = strategy.gather(averages)
        checkpoint[EMA] = averages

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the checkpoint's average until the parameters have their final device and sharding."""
        self._loaded = checkpoint.get(EMA, {})

    # ---- parameters -------------------------------------------------------------------------------------------

    def _find(self, pl_module: LightningModule) -> None:
        self._fsdp = [module for module in pl_module.modules() if isinstance(module, FSDPModule)]
        self._reshard()
        self._parameters = {
            name.replace("_orig_mod.", ""): parameter
            for name, parameter in pl_module.named_parameters()
            if parameter.requires_grad
        }
        if self._loaded is not None:
            missing = [name for name in self._parameters if name not in self._loaded]
            if self._loaded and missing:
                raise UserError(
                    f"the checkpoint's averaged weights lack {missing[0]}: it contains another model; "
                    "resume that one, or start a new run from its weights (init_from)"
                )
            self._averages = {
                name: _sharded_like(parameter, self._loaded[name])
                for name, parameter in self._parameters.items()
                if name in self._loaded
            }
            self._loaded = None

    def _locals(self, tensors: Iterable[Tensor]) -> list[Tensor]:
        self._reshard()
        return _local(tensors)

    def _reshard(self) -> None:
        # After a forward pass FSDP2 may hold unsharded copies of its parameters, which shadow the shards and would
        # become stale if the shards changed.
        for module in self._fsdp:
            module.reshard()


def _local(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return this process's shard of each tensor."""
    return [(tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach() for tensor in tensors]


def _sharded_like(parameter: Tensor, value: Tensor) -> Tensor:
    """Copy a checkpoint's tensor to a parameter's device and sharding, in float32."""
    value = value.detach().to(parameter.device, torch.float32)
    if isinstance(parameter, DTensor) and not isinstance(value, DTensor):
        value = distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return value.clone()
