"""Which of llama.cpp's architectures a family is, and what that one cannot compute.

A file that llama.cpp opens and computes differently would be worse than none: whatever a `GPTConfig` asks for beyond
what the architecture's graph does is refused by name.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lit_gpt.checkpoints.huggingface import config_to_hf
from lit_gpt.errors import UserError
from lit_gpt.models import GPTConfig

_PLAIN: dict[str, Any] = {"sliding_window": None, "rope_fraction": 1.0, "has_attention_out_bias": False}
"""What an architecture cannot do unless it says otherwise."""


@dataclass(frozen=True)
class Architecture:
    """One of llama.cpp's."""

    name: str
    """`general.architecture`."""
    interleaved: bool = False
    """RoPE turns neighbours (0, 1), (2, 3), ... of a head, where ours turns its halves: rows of q and k are moved."""
    fused_qkv: bool = False
    """q, k and v are one matrix, end to end."""
    fused_gate_up: bool = False
    """Gate and up are one matrix, end to end."""
    own_head: bool = False
    """The file has a head of its own even where it is tied."""
    own_width: bool = True
    """Heads may be of a size that is not `n_embd / n_head`."""
    demands: Mapping[str, Any] = field(default_factory=dict)
    """Fields or properties of the config with the only value that it computes; `ANY` lifts one of `_PLAIN`."""
    scalings: tuple[str, ...] = ("linear", "yarn")
    """Kinds of `rope_scaling` that it computes."""
    full_every: int | None = None
    """Every so many layers one does not slide; None: as `attention.sliding_window_pattern` in the file says."""
    large: int | None = None
    """The number of layers at which scores are scaled by the width a head would have (Gemma's 27B), not by its own."""


ANY = object()
_LLAMA = Architecture(
    "llama", interleaved=True, demands={"has_attention_out_bias": ANY}, scalings=("linear", "yarn", "llama3")
)
_QWEN3_MOE = Architecture("qwen3moe", demands={"moe.norm_topk_prob": True, "moe.layers": None})
_WINDOWS = {"sliding_window": ANY}

ARCHITECTURES: dict[str, Architecture] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "mixtral": _LLAMA,
    "smollm3": Architecture("smollm3", interleaved=True, demands={"has_mlp_bias": False}),
    "qwen2": Architecture("qwen2", own_width=False),
    "qwen3": Architecture("qwen3"),
    "qwen3_moe": _QWEN3_MOE,
    "gemma2": Architecture("gemma2", demands={**_WINDOWS, "tie_embeddings": True}, full_every=2, large=46),
    "gemma3": Architecture("gemma3", demands=_WINDOWS, scalings=("linear",), full_every=6, large=62),
    "phi3": Architecture(
        "phi3",
        fused_qkv=True,
        fused_gate_up=True,
        own_width=False,
        demands={"rope_fraction": ANY},
        scalings=("longrope",),
    ),
    "olmo2": Architecture("olmo2", own_head=True, own_width=False),
    "olmo3": Architecture("olmo2", own_head=True, own_width=False, demands=_WINDOWS),
    "granite": Architecture(
        "granite", interleaved=True, demands={"has_attention_out_bias": ANY}, scalings=("linear", "yarn", "llama3")
    ),
    "gpt2": Architecture("gpt2", fused_qkv=True, demands={"has_attention_out_bias": ANY}, scalings=()),
    "gpt_neox": Architecture(
        "gptneox",
        fused_qkv=True,
        own_head=True,
        demands={"has_attention_out_bias": True, "rope_fraction": ANY},
    ),
}
"""By `GPTConfig.family`."""


def architecture_of(config: GPTConfig) -> Architecture:
    """Return llama.cpp's architecture of a model.

    Raises:
        UserError: Neither its family nor llama.cpp computes what the config says, with the field's name.
    """
    config_to_hf(config)  # what the family itself cannot express
    if config.family not in ARCHITECTURES:
        raise UserError(
            f"family {config.family!r} is not written as GGUF, only {', '.join(ARCHITECTURES)}; use --format hf and "
            "llama.cpp's own convert_hf_to_gguf.py"
        )
    architecture = ARCHITECTURES[config.family]
    for name, value in {**_PLAIN, **architecture.demands}.items():
        owner, _, part = name.rpartition(".")
        actual = getattr(getattr(config, owner) if owner else config, part)
        if value is not ANY and actual != value:
            raise _refusal(architecture, name, actual, f"only {value!r}")
    if not architecture.own_width and config.head_dim * config.n_head != config.n_embd:
        raise _refusal(architecture, "head_size", config.head_dim, f"only n_embd / n_head = {config.n_embd}")
    scaling = config.rope_scaling
    if scaling is not None and scaling.kind not in architecture.scalings:
        raise _refusal(architecture, "rope_scaling", scaling.kind, f"only {', '.join(architecture.scalings) or None}")
    if scaling is not None and scaling.kind == "yarn" and not scaling.truncate:
        raise _refusal(architecture, "rope_scaling.truncate", False, "only true")
    _check_layers(config, architecture)
    if architecture.large is not None:
        size = config.n_embd // config.n_head if config.n_layer == architecture.large else config.head_dim
        if not math.isclose(config.score_scale, size**-0.5, rel_tol=1e-6):
            raise _refusal(architecture, "attention_scale", config.score_scale, f"only 1 / √{size}")
    if config.family == "gemma2" and None in (config.attention_softcap, config.logit_softcap):
        raise _refusal(architecture, "attention_softcap or logit_softcap", None, "only numbers")
    if config.mlp == "relu2":
        raise _refusal(architecture, "mlp", config.mlp, "only gelu and gelu_tanh")
    return architecture


def differences(config: GPTConfig) -> list[str]:
    """Say what llama.cpp computes almost but not quite as the model does."""
    said = []
    if config.mlp in ("gelu", "gelu_tanh", "geglu_tanh"):
        exact = " and by tanh, where the model's is exact" if config.mlp == "gelu" else ""
        said.append(f"llama.cpp's CPU code takes GELU from a float16 table{exact}: logits differ in the third decimal")
    if config.rope_scaling is not None and config.rope_scaling.kind == "longrope":
        said.append("llama.cpp takes LongRoPE's long factors by the context it was started with, not by the text's")
    return said


def _check_layers(config: GPTConfig, architecture: Architecture) -> None:
    """Refuse layers that slide or rotate elsewhere than the architecture's."""
    layers = range(config.n_layer)
    every = architecture.full_every
    if every is not None and config.sliding_window is not None:
        slides = [bool((layer + 1) % every) for layer in layers]
        if slides != [config.slides(layer) for layer in layers]:
            raise _refusal(
                architecture, "layer_windows", config.layer_windows, f"only all layers but every {every}th slide"
            )
    if config.family == "smollm3" and any(config.rotates(layer) != bool((layer + 1) % 4) for layer in layers):
        raise _refusal(architecture, "rope_layers", config.rope_layers, "only all layers but every fourth rotate")


def _refusal(architecture: Architecture, name: str, value: Any, only: str) -> UserError:
    return UserError(f"llama.cpp's {architecture.name!r} does not compute {name} {value!r} ({only}); use --format hf")
