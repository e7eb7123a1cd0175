"""The registry of model families and presets, which other packages can extend.

Built-in families are listed only by name: a lineage's file (such as `qwen.py`) is imported when one of its families or
presets is requested. Another package adds its own by calling `register_family` and `register_presets` in a module that
is an entry point of the group `lit_gpt.extensions` (see `lit_gpt/extensions.py`), so that every command finds them:

    register_family(Family(name="acme", model_type="acme", ...))
    register_presets({"acme-1b": GPTConfig(..., family="acme")})

A preset is a named `GPTConfig`: a published architecture with sources for its values, or a custom size.
"""

import importlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from lit_gpt.checks import check_one_of
from lit_gpt.errors import UserError
from lit_gpt.extensions import load_extensions
from lit_gpt.models.families.family import Family
from lit_gpt.suggest import nearest

if TYPE_CHECKING:
    from types import ModuleType

    from lit_gpt.models.config import GPTConfig

_LINEAGES: dict[str, tuple[str, ...]] = {
    "ladder": (),
    "gpt2": ("gpt2",),
    "gpt_neox": ("gpt_neox",),
    "llama": ("llama",),
    "mistral": ("mistral", "ministral", "ministral3", "mixtral", "mistral4"),
    "qwen": ("qwen2", "qwen3", "qwen3_moe"),
    "gemma": ("gemma2", "gemma3"),
    "phi": ("phi3",),
    "olmo": ("olmo2", "olmo3"),
    "smollm": ("smollm3",),
    "granite": ("granite", "granite_swa"),
    "gpt_oss": ("gpt_oss",),
    "deepseek": ("deepseek_v3",),
}
"""The built-in files and their families, in the order in which presets are listed. A file has `FAMILIES`, `PRESETS`,
and `PUBLISHED`: the exact parameter count of each preset for which an independent count exists."""
_LINEAGE_OF = {family: lineage for lineage, families in _LINEAGES.items() for family in families}

_registered_families: dict[str, Family] = {}
_registered_presets: "dict[str, GPTConfig]" = {}


def register_family(family: Family) -> None:
    """Register a family of another package; its name is then valid in `GPTConfig.family`.

    Raises:
        UserError: If its name or model_type belongs to another family.
    """
    for other in _families():
        if other == family:
            return
        for key in ("name", "model_type"):
            if getattr(other, key) == getattr(family, key):
                raise UserError(f"{key} {getattr(family, key)!r} is already registered, by family {other.name!r}")
    _registered_families[family.name] = family


def register_presets(presets: "Mapping[str, GPTConfig]") -> None:
    """Register presets of another package, for its own or any other family.

    Args:
        presets: Configs by preset name, as users write it in `preset:`.

    Raises:
        UserError: If a name belongs to another preset.
    """
    taken = _our_presets() | _registered_presets
    for name, config in presets.items():
        if taken.get(name, config) != config:
            raise UserError(f"preset {name!r} is already registered; choose another name")
    _registered_presets.update(presets)


def family_names() -> list[str]:
    """Return the names of all families, built-in ones first."""
    load_extensions()
    return [*sorted(_LINEAGE_OF), *_registered_families]


def get_family(name: str) -> Family:
    """Return the family with the given name.

    Raises:
        UserError: If there is none; the nearest name is given.
    """
    check_family(name)
    if name in _registered_families:
        return _registered_families[name]
    return next(family for family in _lineage(_LINEAGE_OF[name]).FAMILIES if family.name == name)


def check_family(name: str) -> None:
    """Raise a `UserError` with the nearest name if no family has this name, without importing built-in families."""
    if name not in _LINEAGE_OF and name not in _registered_families:
        check_one_of("family", name, family_names())


def model_types() -> dict[str, Family]:
    """Return all families by config.json's `model_type`."""
    load_extensions()
    return {family.model_type: family for family in _families()}


def preset_names() -> list[str]:
    """Return the names of all presets: our own sizes, published models by lineage, then registered ones."""
    load_extensions()
    return [*_our_presets(), *_registered_presets]


def get_preset(name: str) -> "GPTConfig":
    """Return the preset with the given name.

    Raises:
        UserError: If there is none; the nearest names are given.
    """
    presets = _our_presets()
    if name not in presets:
        load_extensions()
        presets = presets | _registered_presets
    if name not in presets:
        raise UserError(f"unknown preset {name!r}; nearest: {nearest(name, presets)}")
    return presets[name]


def published_sizes() -> dict[str, int]:
    """Return the exact parameter count of each built-in preset for which an independent count exists."""
    return {name: size for lineage in _LINEAGES for name, size in _lineage(lineage).PUBLISHED.items()}


def _lineage(name: str) -> "ModuleType":
    return importlib.import_module(f"lit_gpt.models.families.{name}")


def _families() -> Iterator[Family]:
    for lineage in _LINEAGES:
        yield from _lineage(lineage).FAMILIES
    yield from _registered_families.values()


def _our_presets() -> "dict[str, GPTConfig]":
    return {name: preset for lineage in _LINEAGES for name, preset in _lineage(lineage).PRESETS.items()}
