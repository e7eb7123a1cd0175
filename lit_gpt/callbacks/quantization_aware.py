"""`QuantizationAware`: trains with the rounding of a later `quantize`, which reduces its quality loss."""

from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn

from lit_gpt.checkpoints.quantization import Quantization, need_torchao, quantizable_layers
from lit_gpt.checks import check_at_least, check_one_of
from lit_gpt.errors import UserError
from lit_gpt.plugins import ParallelStrategy


class QuantizationAware(Callback):
    """Quantization-aware training with torchao's fake-quantized layers.

    Forward passes multiply by the weights as they will be rounded; gradients pass through the rounding unchanged
    (straight-through, Bengio et al. 2013, arXiv:1308.3432) to the full-precision weights, which the optimizer,
    checkpoints and exports use. Validation measures the rounded model. `python -m lit_gpt quantize` then rounds a
    checkpoint of the run in exactly this way. (Jacob et al. 2018, arXiv:1712.05877; for language models LLM-QAT,
    Liu et al. 2023, arXiv:2305.17888.)

    It reads `model` and `adapter` of the module. One device or DDP.

    Args:
        method: int4 or int8, weights only.
        group_size: number of a layer's inputs that share a scale; None: 32 in int4, a row in int8.
        start_step: number of optimizer steps to train without rounding first.

    Raises:
        UserError: the method is not supported, start_step is negative, or torchao is not installed.
    """

    def __init__(
        self, method: Literal["int4", "int8"] = "int4", group_size: int | None = None, start_step: int = 0
    ) -> None:
        self.scheme = Quantization(method, group_size)
        check_one_of("method of QuantizationAware", method, ("int4", "int8"), "only weight-only methods are supported")
        check_at_least("start_step of QuantizationAware", start_step, 0)
        self.start_step = start_step
        self._originals: dict[str, nn.Linear] = {}
        self._quantizers: list[Any] = []
        self._rounds = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Insert the fake-quantized layers; the optimizer still holds the same parameters."""
        self._prepare(trainer, pl_module)
        self._switch(trainer.global_step >= self.start_step)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the rounded model, also outside of fit."""
        self._outside_fit(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the rounded model."""
        self._outside_fit(trainer, pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Predict with the rounded model."""
        self._outside_fit(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start rounding at `start_step`."""
        self._switch(trainer.global_step >= self.start_step)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the plain layers, with the trained weights."""
        self._restore(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore the plain layers, because after an error or Ctrl-C Lightning does not call `teardown`."""
        self._restore(pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Return the method, which `quantize` reads, and whether rounding has started."""
        return {**self.scheme.to_dict(), "rounds": self._rounds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Reject resuming with settings that differ from those the run was started with.

        Raises:
            UserError: the checkpoint was trained for another method or group size.
        """
        before = Quantization(state_dict["method"], state_dict["group_size"])
        if state_dict["rounds"] and before != self.scheme:
            raise UserError(
                f"the checkpoint was trained for {before}, but QuantizationAware is now set to {self.scheme}; restore "
                "it, "
                "or start a new run with init_from"
            )

    def _outside_fit(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            self._prepare(trainer, pl_module)
            self._switch(True)

    def _prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._originals:
            return
        if isinstance(trainer.strategy, ParallelStrategy):
            raise UserError("QuantizationAware does not support sharded weights: set trainer.strategy to auto or ddp")
        if getattr(pl_module, "adapter", None) is not None:
            raise UserError(
                "QuantizationAware trains all weights, and this run trains an adapter; merge it first (export), or "
                "train it on a quantized base (adapter.quantize)"
            )
        model = pl_module.model
        assert isinstance(model, nn.Module)
        layers = quantizable_layers(model)
        if not layers:
            raise UserError(
                f"{type(model).__name__} has no linear layers in `blocks`, which QuantizationAware rounds; "
                "remove the callback"
            )
        for name, linear in layers.items():
            self.scheme.check_layer(name, linear.in_features)
        ao, qat = need_torchao(), need_torchao("torchao.quantization.qat")
        with isolate_rng():  # torchao initializes each new layer randomly before assigning the weights
            ao.quantize_(model, qat.QATConfig(self.scheme.fake_config(), step="prepare"), lambda _, n: n in layers)
        self._originals = layers
        self._quantizers = [model.get_submodule(name).weight_fake_quantizer for name in layers]

    def _restore(self, pl_module: LightningModule) -> None:
        model = pl_module.model
        if isinstance(model, nn.Module):
            for name, linear in self._originals.items():
                _put(model, name, linear)
        self._originals, self._quantizers = {}, []

    def _switch(self, on: bool) -> None:
        self._rounds = on
        for quantizer in self._quantizers:
            if quantizer.enabled != on:  # every change may recompile a compiled model
                quantizer.enabled = on


def _put(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, layer)
