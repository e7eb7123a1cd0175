"""The model that a policy is held to: a frozen copy of the first weights, or the base under a disabled adapter."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn

from lit_gpt.adapters import adapters_disabled
from lit_gpt.checkpoints.adapters import hash_weights
from lit_gpt.errors import UserError
from lit_gpt.models import GPT
from lit_gpt.modules.base import GPTModule

ReferenceKind = Literal["auto", "frozen", "precomputed", "disabled_adapter"]


class ReferencedModule(GPTModule):
    """A `GPTModule` with a reference beside it, where `uses_reference` says so.

    Args:
        reference: `frozen`, `disabled_adapter` (no second model in memory), or `auto`: the latter if there is an
            adapter.
        kwargs: see `GPTModule`.
    """

    references: tuple[ReferenceKind, ...] = ("auto", "frozen", "disabled_adapter")
    """What a subclass can be told to use."""

    def __init__(self, reference: ReferenceKind = "auto", **kwargs: object) -> None:
        super().__init__(**kwargs)  # type: ignore[arg-type]
        if reference not in self.references:
            raise UserError(f"reference is {reference!r}; it can be one of {', '.join(self.references)}")
        if reference == "disabled_adapter" and self.adapter is None:
            raise UserError("reference is disabled_adapter, but there is no adapter; set adapter, or reference: frozen")
        if reference == "auto":
            reference = "frozen" if self.adapter is None else "disabled_adapter"
        self.reference: ReferenceKind = reference
        self._first_sha256: str | None = None
        # Not a submodule: it is in no checkpoint and no optimizer.
        self.__dict__["_frozen"] = None

    @property
    def uses_reference(self) -> bool:
        """Whether the loss has a part for the reference."""
        return True

    def configure_model(self) -> None:
        """Build the policy, and the frozen reference beside it: the first weights, also on a resume."""
        if self.model is not None:
            return
        if self.uses_reference and self.reference == "frozen" and self.device_mesh is not None:
            raise UserError("a frozen reference is not sharded; set reference: precomputed")
        super().configure_model()
        if self.uses_reference and self.reference != "disabled_adapter":
            self._build_frozen()

    def _build_frozen(self) -> None:
        with torch.device("meta"):
            first = self.build_model()
        first.to_empty(device=self.device)
        assert isinstance(first, GPT)
        first.init_weights(self.seed)
        if self._source is not None:
            self.load_source(first)
        first.requires_grad_(False).eval()
        self._first_sha256 = hash_weights(dict(first.named_parameters()), self.config)
        self.__dict__["_frozen"] = first

    @contextmanager
    def reference_model(self) -> Iterator[Any]:
        """Within it, the reference: a second model, or this one with its adapter off."""
        if self.reference != "disabled_adapter":
            if self._frozen is None:  # given up for tables, which other rows are not in
                self._build_frozen()
            yield self._frozen
            return
        assert isinstance(self.model, nn.Module)
        training = self.model.training
        self.model.eval()
        with adapters_disabled(self.model):
            yield self.model
        self.model.train(training)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Also say which weights the reference has."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["lit_gpt"]["reference_sha256"] = self._first_sha256

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to go on against another reference.

        Raises:
            UserError: the first weights are not those that the run was started from.
        """
        super().on_load_checkpoint(checkpoint)
        saved = checkpoint["lit_gpt"].get("reference_sha256")
        if saved is not None and self._first_sha256 is not None and saved != self._first_sha256:
            raise UserError(
                f"the run was started from other weights than {self.init_from} has now, so its reference is gone; "
                "bring those weights back, or start a new run"
            )
