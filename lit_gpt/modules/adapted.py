"""The life of an adapter beside its frozen base: added after the base's weights, saved alone, checked on loading."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lit_gpt.adapters import AdapterConfig, add_adapter, trained_names
from lit_gpt.checkpoints.adapters import adapter_info, hash_weights
from lit_gpt.checkpoints.resolve import ModelSource
from lit_gpt.checkpoints.step import PREFIX
from lit_gpt.errors import UserError
from lit_gpt.models import GPTConfig


class AdapterMixin(LightningModule):
    """A module whose `model` may be trained through an adapter; without one, nothing here does anything.

    Args:
        adapter: what to train beside the frozen weights of `init_from`; None: those weights themselves.
        init_from: how the user named the base.
    """

    model: nn.Module | None
    config: GPTConfig
    seed: int
    new_weights: tuple[str, ...] = ()
    """Weights that an objective adds to the model, and that `init_from` need not have."""
    _source: ModelSource | None

    def __init__(self, adapter: AdapterConfig | None, init_from: str | None) -> None:
        super().__init__()
        if adapter is not None and init_from is None:
            raise UserError("adapter is set but init_from is not: name the model that it is trained beside")
        self.adapter = adapter
        self.init_from = init_from
        self._base_sha256: str | None = None

    @property
    def _trains_embeddings(self) -> bool:
        """Whether an adapter's run also trains embedding and head: if it is told to, or there are new tokens."""
        assert self.adapter is not None
        assert self._source is not None
        if self.adapter.train_embeddings is not None:
            return self.adapter.train_embeddings
        return self.config.vocab_size > self._source.config.vocab_size

    def _note_base(self, weights: Mapping[str, Tensor]) -> None:
        """Remember which weights the adapter belongs to."""
        assert self._source is not None
        if self.adapter is not None:
            self._base_sha256 = hash_weights(weights, self._source.config)

    def _add_adapter(self, model: nn.Module) -> None:
        """Freeze the base and put the adapter beside it; an objective's own weights stay trained."""
        if self.adapter is None:
            return
        if self.device_mesh is not None:
            raise UserError("an adapter is trained on one device or with DDP; set trainer.strategy to auto or ddp")
        add_adapter(model, self.adapter, self.seed, self._trains_embeddings)
        for name in self.new_weights:
            model.get_parameter(name).requires_grad_(True)

    def _keep_adapter_alone(self, checkpoint: dict[str, Any]) -> None:
        """Leave the base out of a checkpoint, and say which one it is."""
        if self.adapter is None:
            return
        assert self.model is not None
        assert self._base_sha256 is not None
        checkpoint["lit_gpt"]["adapter"] = adapter_info(self.adapter, str(self.init_from), self._base_sha256)
        trained = {f"{PREFIX}{name}" for name in trained_names(self.model)}
        weights = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: value for name, value in weights.items() if name in trained}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights; those of an adapter's checkpoint are the trained ones alone, and all of them.

        Raises:
            UserError: a trained weight is missing, or there are others.
        """
        if self.adapter is None or self.model is None:
            return super().load_state_dict(state_dict, strict, assign)
        result = super().load_state_dict(state_dict, False, assign)
        trained = {f"{PREFIX}{name}" for name in trained_names(self.model)}
        wrong = sorted(trained.intersection(result.missing_keys)) + result.unexpected_keys
        if strict and wrong:
            raise UserError(f"the checkpoint's adapter does not fit this one: {', '.join(wrong[:5])}")
        return result

    def _check_adapter(self, saved: dict[str, Any] | None) -> None:
        """Refuse a checkpoint of another adapter, or of one beside another base."""
        mine = None if self.adapter is None else self.adapter.to_dict()
        theirs = None if saved is None else saved["config"]
        if mine != theirs:
            raise UserError(f"the checkpoint's adapter is {theirs}, this run's is {mine}; give the module the same one")
        if saved is not None and self._base_sha256 is not None and saved["base_sha256"] != self._base_sha256:
            raise UserError(
                f"the checkpoint's adapter was trained beside {saved['base']}, whose weights were others than those of "
                f"{self.init_from} now (SHA-256 {saved['base_sha256'][:12]}..., not {self._base_sha256[:12]}...)"
            )
