"""The model as plain torch: `GPTConfig`, its parts, `GPT`, and presets per family."""

from lit_gpt.models.attention import SelfAttention
from lit_gpt.models.block import Block
from lit_gpt.models.cache import KVCache
from lit_gpt.models.config import GPTConfig, GPTConfigOverrides, MLAConfig, MoEConfig, RopeScaling
from lit_gpt.models.gpt import GPT
from lit_gpt.models.head import HeadFn, LMHead
from lit_gpt.models.mlp import MLP
from lit_gpt.models.presets import get_preset, preset_names

__all__ = [
    "GPT",
    "MLP",
    "Block",
    "GPTConfig",
    "GPTConfigOverrides",
    "HeadFn",
    "KVCache",
    "LMHead",
    "MLAConfig",
    "MoEConfig",
    "RopeScaling",
    "SelfAttention",
    "get_preset",
    "preset_names",
]
