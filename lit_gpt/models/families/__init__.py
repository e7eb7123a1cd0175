"""Published architectures and their presets, one file per lineage, and the registry of families.

`registry.py` explains how another package adds a family, `family.py` defines what a family is, `weights.py` defines
weight tables, and `config_json.py` and `decoder.py` contain what most families' mappings share.
"""

from lit_gpt.models.families.family import Family, GGUFArchitecture
from lit_gpt.models.families.registry import (
    family_names,
    get_family,
    get_preset,
    model_types,
    preset_names,
    published_sizes,
    register_family,
    register_presets,
)

__all__ = [
    "Family",
    "GGUFArchitecture",
    "family_names",
    "get_family",
    "get_preset",
    "model_types",
    "preset_names",
    "published_sizes",
    "register_family",
    "register_presets",
]
