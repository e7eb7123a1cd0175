"""What a model family is on Hugging Face's side: a config both ways, and a table of weight names.

The table is the whole of the weight mapping. An entry says that some of their tensors are some of ours, and by which
steps (`layout.py`) the ones become the others: none where they only have another name. Read in one direction it
imports, in the other it exports, and neither computes with the numbers, so they come back bit for bit.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lit_gpt.checkpoints.huggingface.layout import Step
from lit_gpt.errors import UserError
from lit_gpt.models import GPTConfig


@dataclass(frozen=True)
class Entry:
    """Some of their tensors, and what they are among ours; made by `entry`."""

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    steps: tuple[Step, ...] = ()
    """Applied in this order from theirs to ours, and undone in the other."""

    def to_ours(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        """Their tensors, in the order of `theirs` → ours by name, as views where the steps allow it."""
        parts = list(tensors)
        for step in self.steps:
            parts = step.to_ours(parts)
        return dict(zip(self.ours, parts, strict=True))

    def to_theirs(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Ours, found by name → theirs by name, as views where the steps allow it."""
        parts = [state_dict[name] for name in self.ours]
        for step in reversed(self.steps):
            parts = step.to_theirs(parts)
        return dict(zip(self.theirs, parts, strict=True))


def entry(theirs: str | Sequence[str], ours: str | Sequence[str], *steps: Step) -> Entry:
    """An entry of a family's table.

    Args:
        theirs: Their name, or names in the order in which the first step takes them.
        ours: Our name, or names in the order in which the last step gives them.
        *steps: What makes ours of theirs; none if it is the same tensor.

    Example:
        >>> entry("transformer.h.0.attn.c_attn.weight", ["q", "k", "v"], Transpose(), Split((8, 8, 8)))
    """
    return Entry(
        (theirs,) if isinstance(theirs, str) else tuple(theirs),
        (ours,) if isinstance(ours, str) else tuple(ours),
        steps,
    )


@dataclass(frozen=True)
class Family:
    """How a family is written on Hugging Face's side; `GPTConfig.family` is the name it has among ours."""

    model_type: str
    """As in config.json."""
    architecture: str
    """The transformers class with an LM head."""
    base_prefix: str
    """What their names start with, except in files saved from the model without its head."""
    read_config: Callable[[dict[str, Any]], GPTConfig]
    write_config: Callable[[GPTConfig], dict[str, Any]]
    """Raises UserError for a config that their class cannot express."""
    entries: Callable[[GPTConfig], list[Entry]]
    head: str = "lm_head.weight"
    """Their name of the LM head."""
    buffers: tuple[str, ...] = ()
    """Endings of names that old files carry and that are no parameters."""
    renamed: tuple[tuple[str, str], ...] = ()
    """Beginnings of names that some files have, and what they are in the table."""
    left_out: Callable[[GPTConfig, Mapping[str, Any], Collection[str]], tuple[str, ...]] = lambda *_: ()
    """Beginnings of names of what is not part of the language model (blocks that predict a token further, say), from
    the config, config.json and the names in the folder."""
    name: str | None = None
    """Among ours (`GPTConfig.family`); None = model_type."""

    @property
    def key(self) -> str:
        """The name in `GPTConfig.family`."""
        return self.model_type if self.name is None else self.name


def required(values: dict[str, Any], key: str) -> Any:
    """A value of config.json that has no default.

    Raises:
        UserError: If it is missing.
    """
    if values.get(key) is None:
        raise UserError(f"config.json has no value for {key!r}; is it complete?")
    return values[key]


def optional(values: Mapping[str, Any], key: str, default: Any) -> Any:
    """A value of config.json that has a default; null asks for the default too, as it cannot be meant."""
    value = values.get(key)
    return default if value is None else value


def whole(values: Mapping[str, Any], key: str, default: int, least: int = 0) -> int:
    """A whole number of config.json that has a default.

    Raises:
        UserError: If it is none, or less than `least`.
    """
    value = optional(values, key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UserError(f"config.json has {key}: {value!r}, it must be a whole number of at least {least}")
    return value


def flag(values: Mapping[str, Any], key: str, default: bool) -> bool:
    """A switch of config.json.

    Raises:
        UserError: If it is neither true nor false.
    """
    value = optional(values, key, default)
    if not isinstance(value, bool):
        raise UserError(f"config.json has {key}: {value!r}, it must be true or false")
    return value


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
