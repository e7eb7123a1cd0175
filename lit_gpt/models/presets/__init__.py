"""Published model shapes and our own ladder, by name: one file a family, each value with its source."""

from lit_gpt.errors import UserError
from lit_gpt.models.config import GPTConfig
from lit_gpt.models.nearest import nearest
from lit_gpt.models.presets import gpt2, ladder, llama3, qwen3

PRESETS: dict[str, GPTConfig] = {**ladder.PRESETS, **gpt2.PRESETS, **llama3.PRESETS, **qwen3.PRESETS}


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
