"""The words that `GPTConfig` knows for its parts."""

from typing import Literal

Norm = Literal["layernorm", "rmsnorm"]
NormPlacement = Literal["pre", "post", "output", "sandwich"]
Positions = Literal["learned", "sinusoidal", "rope", "alibi", "none"]
QKNorm = Literal["head", "projection"]
Activation = Literal["gelu", "gelu_tanh", "relu2", "swiglu", "geglu", "geglu_tanh", "swiglu_clamped"]
Family = Literal[
    "deepseek_v3",
    "gemma2",
    "gemma3",
    "gpt2",
    "gpt_neox",
    "gpt_oss",
    "granite",
    "granite_swa",
    "llama",
    "ministral",
    "ministral3",
    "mistral",
    "mistral4",
    "mixtral",
    "olmo2",
    "olmo3",
    "phi3",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "smollm3",
]
GATED: tuple[Activation, ...] = ("swiglu", "geglu", "geglu_tanh", "swiglu_clamped")
"""MLPs with a third matrix, whose product gates the second's."""
