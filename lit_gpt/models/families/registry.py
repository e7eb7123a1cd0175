"""The open registry of families and presets.

Ours are listed by name alone: a lineage's file (`qwen.py`, say) is imported when one of its families or presets is
asked for. Another package adds its own by calling `register_family` and `register_presets` in a module that is an entry
point of the group `lit_gpt.extensions` (see `lit_gpt/extensions.py`), so that every command finds them:

    register_family(Family(name="acme", model_type="acme", ...))
    register_presets({"acme-1b": GPTConfig(..., family="acme")})

A preset is a named `GPTConfig`: a published shape, each value with its source, or a size of somebody's own.
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
"""Our files and the families in each, in the order in which presets are listed. A file has `FAMILIES`, `PRESETS`, and
`PUBLISHED`: the exact number of parameters of each preset that somebody else has counted."""
_LINEAGE_OF = {family: lineage for lineage, families in _LINEAGES.items() for family in families}

_registered_families: dict[str, Family] = {}
_registered_presets: "dict[str, GPTConfig]" = {}


def register_family(family: Family) -> None:
    """Add a family of another package; its name is then valid in `GPTConfig.family`.

    Raises:
        UserError: If its name or its model_type is another family's.
    """
    for other in _families():
        if other == family:
            return
        for key in ("name", "model_type"):
            if getattr(other, key) == getattr(family, key):
                raise UserError(f"{key} {getattr(family, key)!r} is registered already, by family {other.name!r}")
    _registered_families[family.name] = family


def register_presets(presets: "Mapping[str, GPTConfig]") -> None:
    """Add presets of another package, of a family of its own or of any other.

    Args:
        presets: Configs by the name that users write in `preset:`.

    Raises:
        UserError: If a name is another preset's.
    """
    taken = _our_presets() | _registered_presets
    for name, config in presets.items():
        if taken.get(name, config) != config:
            raise UserError(f"preset {name!r} is registered already; choose another name")
    _registered_presets.update(presets)


def family_names() -> list[str]:
    """Return the names of all families, ours first."""
    load_extensions()
    return [*sorted(_LINEAGE_OF), *_registered_families]


def get_family(name: str) -> Family:
    """Return the family of that name.

    Raises:
        UserError: If there is none; the nearest name is given.
    """
    check_family(name)
    if name in _registered_families:
        return _registered_families[name]
    return next(family for family in _lineage(_LINEAGE_OF[name]).FAMILIES if family.name == name)


def check_family(name: str) -> None:
    """Raise a `UserError` with the nearest name unless `name` is a family's; imports none of ours."""
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
    """Return the preset of that name.

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
    """Return the exact number of parameters of each of our presets that somebody else has counted."""
    return {name: size for lineage in _LINEAGES for name, size in _lineage(lineage).PUBLISHED.items()}


def _lineage(name: str) -> "ModuleType":
    return importlib.import_module(f"lit_gpt.models.families.{name}")


def _families() -> Iterator[Family]:
    for lineage in _LINEAGES:
        yield from _lineage(lineage).FAMILIES
    yield from _registered_families.values()


def _our_presets() -> "dict[str, GPTConfig]":
    return {name: preset for lineage in _LINEAGES for name, preset in _lineage(lineage).PRESETS.items()}
