"""RoPE in config.json: `rope_parameters` (transformers 5) or `rope_theta` beside `rope_scaling` (before).

Both are read; both are written, saying the same, because many other tools still read the older.
"""

from typing import Any

from lit_gpt.checkpoints.huggingface.family import expect, required
from lit_gpt.errors import UserError
from lit_gpt.models import GPTConfig, RopeScaling

_LLAMA3 = {
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_max_position_embeddings": "original_block_size",
}


def read_rope(values: dict[str, Any]) -> dict[str, Any]:
    """config.json's RoPE as `rope_theta` and `rope_scaling` of `GPTConfig`."""
    expect(values, "partial_rotary_factor", 1.0)
    parameters = values.get("rope_parameters") or values.get("rope_scaling") or {}
    expect(parameters, "partial_rotary_factor", 1.0)
    theta = parameters.get("rope_theta", values.get("rope_theta", 10000.0))
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind == "default":
        return {"rope_theta": float(theta), "rope_scaling": None}
    if kind not in ("linear", "llama3"):
        raise UserError(f"config.json has RoPE scaling of type {kind!r}; lit_gpt computes default, linear and llama3")
    scaling: dict[str, Any] = {"kind": kind, "factor": required(parameters, "factor")}
    if kind == "llama3":
        scaling |= {ours: required(parameters, theirs) for theirs, ours in _LLAMA3.items()}
    return {"rope_theta": float(theta), "rope_scaling": RopeScaling(**scaling)}


def write_rope(config: GPTConfig) -> dict[str, Any]:
    """The inverse of `read_rope`, in both spellings."""
    scaling = config.rope_scaling
    written: dict[str, Any] | None = None
    if scaling is not None:
        written = {"rope_type": scaling.kind, "factor": scaling.factor}
        if scaling.kind == "llama3":
            written |= {theirs: getattr(scaling, ours) for theirs, ours in _LLAMA3.items()}
    return {
        "rope_parameters": {"rope_theta": config.rope_theta, **(written or {"rope_type": "default"})},
        "rope_theta": config.rope_theta,
        "rope_scaling": written,
    }
