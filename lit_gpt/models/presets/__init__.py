"""Published model shapes and our own ladder, by name: one file a family, each value with its source.

A file has `PRESETS`, and `PUBLISHED`: the exact number of parameters of each that somebody else has counted.
"""

from lit_gpt.errors import UserError
from lit_gpt.models.config import GPTConfig
from lit_gpt.models.presets import (
    deepseek_v3,
    gemma,
    gpt2,
    gpt_neox,
    gpt_oss,
    granite,
    ladder,
    llama2,
    llama3,
    mistral,
    mistral4,
    mixtral,
    olmo,
    phi3,
    qwen2,
    qwen3,
    qwen3_moe,
    smollm,
)
from lit_gpt.suggest import nearest

_FAMILIES = (
    gpt2,
    gpt_neox,
    llama2,
    llama3,
    mistral,
    mixtral,
    mistral4,
    qwen2,
    qwen3,
    qwen3_moe,
    gemma,
    phi3,
    olmo,
    smollm,
    granite,
    gpt_oss,
    deepseek_v3,
)

PRESETS: dict[str, GPTConfig] = {
    name: preset for family in (ladder, *_FAMILIES) for name, preset in family.PRESETS.items()
}
PUBLISHED: dict[str, int] = {name: count for family in _FAMILIES for name, count in family.PUBLISHED.items()}


def preset_names() -> list[str]:
    """All names, our ladder first, then family by family."""
    return list(PRESETS)


def get_preset(name: str) -> GPTConfig:
    """The preset of that name.

    Raises:
        UserError: If there is none; the nearest names are given.
    """
    if name not in PRESETS:
        raise UserError(f"unknown preset {name!r}; nearest: {nearest(name, PRESETS)}")
    return PRESETS[name]
