"""The allowed names of the parts that a `GPTConfig` selects."""

from typing import Literal

Norm = Literal["layernorm", "rmsnorm"]
NormPlacement = Literal["pre", "post", "output", "sandwich"]
Positions = Literal["learned", "sinusoidal", "rope", "alibi", "none"]
QKNorm = Literal["head", "projection"]
Activation = Literal["gelu", "gelu_tanh", "relu2", "swiglu", "geglu", "geglu_tanh", "swiglu_clamped"]
GATED: tuple[Activation, ...] = ("swiglu", "geglu", "geglu_tanh", "swiglu_clamped")
"""Activations of gated MLPs: the activated output of a gate projection multiplies that of the up projection."""
