"""The model in plain PyTorch: `GPTConfig`, the model's parts, `GPT`, and presets by model family."""

from lit_gpt.models.attention import SelfAttention
from lit_gpt.models.block import Block
from lit_gpt.models.cache import Cache, KVState, LayerState, StepState
from lit_gpt.models.config import GPTConfig, GPTConfigOverrides, MLAConfig, MoEConfig, RopeScaling
from lit_gpt.models.families.registry import get_preset, preset_names
from lit_gpt.models.gpt import GPT
from lit_gpt.models.head import HeadFn, LMHead
from lit_gpt.models.latent_attention import LatentAttention
from lit_gpt.models.mixers import Context, SequencePart, TokenMixer, register_token_mixer
from lit_gpt.models.mlp import MLP

__all__ = [
    "GPT",
    "MLP",
    "Block",
    "Cache",
    "Context",
    "GPTConfig",
    "GPTConfigOverrides",
    "HeadFn",
    "KVState",
    "LMHead",
    "LatentAttention",
    "LayerState",
    "MLAConfig",
    "MoEConfig",
    "RopeScaling",
    "SelfAttention",
    "SequencePart",
    "StepState",
    "TokenMixer",
    "get_preset",
    "preset_names",
    "register_token_mixer",
]
