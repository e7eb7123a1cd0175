"""Published architectures and their presets, one file a lineage, and the open registry that finds them.

`registry.py` says how another package adds a family; `family.py` what a family is; `weights.py` is the language of
weight tables, and `config_json.py` and `decoder.py` are what most families' mappings are made of.
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
