"""Names of the parts that a `GPTConfig` chooses from."""

from typing import Literal

Norm = Literal["layernorm", "rmsnorm"]
NormPlacement = Literal["pre", "post", "output", "sandwich"]
Positions = Literal["learned", "sinusoidal", "rope", "alibi", "none"]
QKNorm = Literal["head", "projection"]
Activation = Literal["gelu", "gelu_tanh", "relu2", "swiglu", "geglu", "geglu_tanh", "swiglu_clamped"]
GATED: tuple[Activation, ...] = ("swiglu", "geglu", "geglu_tanh", "swiglu_clamped")
"""Activations of MLPs with a gate: a third matrix, whose activated output multiplies the second's."""
