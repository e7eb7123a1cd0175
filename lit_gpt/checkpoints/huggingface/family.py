"""What a model family is on Hugging Face's side: a config both ways, and a table of weight names.

The table is the whole of the weight mapping. An entry says that one of their tensors is one or several of ours laid
end to end along the output dimension, perhaps transposed; read in one direction it imports, in the other it exports,
and neither computes with the numbers, so they come back bit for bit.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_gpt.errors import UserError
from lit_gpt.models import GPTConfig


@dataclass(frozen=True)
class Entry:
    """One of their tensors and what it is among ours."""

    theirs: str
    ours: tuple[str, ...]
    """Our parameters, equal in size, joined along dimension 0."""
    transposed: bool = False
    """Stored (inputs, outputs), as GPT-2's Conv1D does."""

    def to_ours(self, tensor: Tensor) -> dict[str, Tensor]:
        """Their tensor, split into ours."""
        if self.transposed:
            tensor = tensor.t()
        return dict(zip(self.ours, (part.contiguous() for part in tensor.chunk(len(self.ours))), strict=True))

    def to_theirs(self, state_dict: dict[str, Tensor]) -> Tensor:
        """Ours, joined into their tensor."""
        parts = [state_dict[name] for name in self.ours]
        tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
        return (tensor.t() if self.transposed else tensor).contiguous()


@dataclass(frozen=True)
class Family:
    """How a family is written on Hugging Face's side; `GPTConfig.family` and `model_type` share the name."""

    model_type: str
    architecture: str
    """The transformers class with an LM head."""
    base_prefix: str
    """What their names start with, except in files saved from the model without its head."""
    read_config: Callable[[dict[str, Any]], GPTConfig]
    write_config: Callable[[GPTConfig], dict[str, Any]]
    """Raises UserError for a config that their class cannot express."""
    entries: Callable[[GPTConfig], list[Entry]]
    buffers: tuple[str, ...] = ()
    """Endings of names that old files carry and that are no parameters."""


def required(values: dict[str, Any], key: str) -> Any:
    """A value of config.json that has no default.

    Raises:
        UserError: If it is missing.
    """
    if values.get(key) is None:
        raise UserError(f"config.json has no value for {key!r}; is it complete?")
    return values[key]


def expect(values: dict[str, Any], key: str, supported: Any) -> None:
    """Refuse a config.json that asks for something the model does not have.

    Raises:
        UserError: If `key` is there with another value than the supported one.
    """
    if values.get(key, supported) not in (supported, None):
        raise UserError(
            f"config.json has {key}: {values[key]!r}, which lit_gpt does not compute (only {supported!r}); "
            "import a model without it"
        )


def demand(config: GPTConfig, family: str, **fields: Any) -> None:
    """Refuse to export a config that the family cannot express.

    Raises:
        UserError: If a field or property of the config has another value; names the first.
    """
    for name, value in fields.items():
        actual = getattr(config, name)
        if actual != value:
            raise UserError(
                f"family {family!r} cannot express {name} {actual!r} (only {value!r}); "
                "set `family` to one that can, or train with that value"
            )
