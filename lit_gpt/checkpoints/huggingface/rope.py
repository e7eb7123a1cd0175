"""RoPE in config.json: `rope_parameters` (transformers 5) or `rope_theta` beside `rope_scaling` (before).

Both are read; both are written, saying the same, because many other tools still read the older. Families whose
sliding layers rotate differently nest `rope_parameters` by the kind of layer.
"""

from typing import Any

from lit_gpt.checkpoints.huggingface.family import expect, optional, required
from lit_gpt.errors import UserError
from lit_gpt.models import GPTConfig, RopeScaling

FULL, SLIDING = "full_attention", "sliding_attention"
"""Kinds of layers in `layer_types`."""

_ORIGINAL = "original_max_position_embeddings"
_NUMBERS = {
    "llama3": ("low_freq_factor", "high_freq_factor"),
    "yarn": ("beta_fast", "beta_slow", "truncate", "mscale", "mscale_all_dim", "attention_factor"),
    "longrope": ("attention_factor",),
}
"""Fields that are called the same on both sides, by kind."""
_ALIASES = {"su": "longrope"}


def read_rope(
    values: dict[str, Any], default_theta: float = 10000.0, default_fraction: float | None = None
) -> dict[str, Any]:
    """config.json's RoPE as `rope_theta`, `rope_fraction` and `rope_scaling` of `GPTConfig`.

    Args:
        values: config.json.
        default_theta: The base, if it says none.
        default_fraction: The rotated part of a head, if it says none; None = the family's class rotates all of it,
            whatever config.json says.

    Raises:
        UserError: If it asks for a part of the head in a family that rotates all of it.
    """
    parameters = _parameters(values)
    theta = _first("rope_theta", parameters, values, default=default_theta)
    if default_fraction is None:
        _rotate_all(parameters, values)
        default_fraction = 1.0
    fraction = _first("partial_rotary_factor", parameters, values, default=default_fraction)
    return {"rope_theta": theta, "rope_fraction": fraction, "rope_scaling": _read_scaling(parameters, values)}


def read_layered_rope(values: dict[str, Any], full_theta: float, sliding_theta: float) -> dict[str, Any]:
    """The same where sliding layers rotate by themselves: `rope_theta`, `rope_scaling`, `rope_local_theta`.

    Args:
        values: config.json; `rope_parameters` nested, or the older `rope_theta`, `rope_local_base_freq` and
            `rope_scaling`, which are those of the other layers.
        full_theta: Base of layers that do not slide, if it says none.
        sliding_theta: Base of those that do, likewise.
    """
    nested = values.get("rope_parameters") or {}
    if nested and not {FULL, SLIDING} & nested.keys():
        raise UserError(f"config.json has rope_parameters for no kind of layer; nest them under {FULL} and {SLIDING}")
    full = nested.get(FULL) or values.get("rope_scaling") or {}
    sliding = nested.get(SLIDING) or {}
    _rotate_all(full, sliding, values)
    if _read_scaling(sliding, values) is not None:
        raise UserError(
            "config.json stretches RoPE in sliding layers; lit_gpt computes that for the other layers alone"
        )
    theta = _first("rope_theta", full, values, default=full_theta)
    local = _first("rope_theta", sliding, default=optional(values, "rope_local_base_freq", sliding_theta))
    scaling = _read_scaling(full, values)
    return {
        "rope_theta": theta,
        "rope_scaling": scaling,
        "rope_local_theta": None if local == theta and scaling is None else local,
    }


def with_default_rope(values: dict[str, Any], parameters: dict[str, Any]) -> dict[str, Any]:
    """config.json with the class's own `rope_parameters` where it has none, in neither spelling."""
    return values if _parameters(values) else values | {"rope_parameters": parameters}


def write_rope(config: GPTConfig, query_scale: bool = False) -> dict[str, Any]:
    """The inverse of `read_rope`, in both spellings.

    Args:
        config: The model's shape.
        query_scale: The family scales queries by position and wants the factor written even if it is 0.

    Raises:
        UserError: If queries are scaled by position and the family cannot say so.
    """
    scaling = _write_scaling(config.rope_scaling, config.family, query_scale)
    fraction = {} if config.rope_fraction == 1 else {"partial_rotary_factor": config.rope_fraction}
    parameters = {"rope_theta": config.rope_theta, **fraction, **(scaling or {"rope_type": "default"})}
    return {"rope_parameters": parameters, "rope_theta": config.rope_theta, **fraction, "rope_scaling": scaling}


def write_layered_rope(config: GPTConfig) -> dict[str, Any]:
    """The inverse of `read_layered_rope`."""
    scaling = _write_scaling(config.rope_scaling, config.family, False)
    local = config.rope_theta if config.rope_local_theta is None else config.rope_local_theta
    if scaling is not None and config.rope_local_theta is None and config.sliding_window is not None:
        raise UserError(
            f"family {config.family!r} stretches RoPE in full layers alone; set rope_local_theta to the base of the "
            f"sliding ones (rope_theta is {config.rope_theta})"
        )
    return {
        "rope_parameters": {
            FULL: {"rope_theta": config.rope_theta, **(scaling or {"rope_type": "default"})},
            SLIDING: {"rope_theta": local, "rope_type": "default"},
        },
        "rope_theta": config.rope_theta,
        "rope_local_base_freq": local,
        "rope_scaling": scaling,
    }


def longest_context(values: dict[str, Any]) -> int:
    """`block_size`: dynamic scaling alone goes beyond `max_position_embeddings`, by its factor."""
    length: int = required(values, "max_position_embeddings")
    nested = values.get("rope_parameters") or {}
    scaling = _read_scaling(nested.get(FULL) or _parameters(values), values)
    return int(length * scaling.factor) if scaling is not None and scaling.kind == "dynamic" else length


def original_context(config: GPTConfig) -> int:
    """`max_position_embeddings`, the inverse of `longest_context`.

    Raises:
        UserError: If the context is longer than dynamic scaling says.
    """
    scaling = config.rope_scaling
    if scaling is None or scaling.kind != "dynamic":
        return config.block_size
    if int(scaling.original_block_size * scaling.factor) != config.block_size:
        raise UserError(
            f"config.json says with dynamic RoPE scaling that the context is original_block_size * factor = "
            f"{int(scaling.original_block_size * scaling.factor)}, but block_size is {config.block_size}; set it so"
        )
    return scaling.original_block_size


def _first(key: str, *places: dict[str, Any], default: Any) -> Any:
    """The value in the first place that has one."""
    return next((place[key] for place in places if place.get(key) is not None), default)


def _rotate_all(*places: dict[str, Any]) -> None:
    for place in places:
        expect(place, "partial_rotary_factor", 1.0)


def _parameters(values: dict[str, Any]) -> dict[str, Any]:
    return values.get("rope_parameters") or values.get("rope_scaling") or {}


def _read_scaling(parameters: dict[str, Any], values: dict[str, Any]) -> RopeScaling | None:
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    kind = _ALIASES.get(kind, kind)
    if kind == "default":
        return None
    if kind not in ("linear", "dynamic", "yarn", "llama3", "longrope"):
        raise UserError(
            f"config.json has RoPE scaling of type {kind!r}; lit_gpt computes default, linear, dynamic, yarn, llama3 "
            "and longrope"
        )
    length = values.get("max_position_embeddings")
    # Phi-3 keeps the original context outside; it then counts, as in transformers.
    original = values.get(_ORIGINAL) or parameters.get(_ORIGINAL)
    factor = parameters.get("factor")
    if factor is None and kind in ("yarn", "longrope") and original and length:
        factor = length / original
    scaling: dict[str, Any] = {"kind": kind, "factor": required({"factor": factor}, "factor")}
    if kind == "dynamic":
        scaling["original_block_size"] = length
    elif kind == "llama3":
        scaling["original_block_size"] = required(parameters, _ORIGINAL)
    elif kind != "linear":
        scaling["original_block_size"] = original or length
    if kind == "llama3":
        scaling |= {name: required(parameters, name) for name in _NUMBERS[kind]}
    else:
        names = _NUMBERS.get(kind, ())
        scaling |= {name: parameters[name] for name in names if parameters.get(name) is not None}
    if kind == "longrope":
        for ours, theirs in (("short_factors", "short_factor"), ("long_factors", "long_factor")):
            scaling[ours] = tuple(float(number) for number in required(parameters, theirs))
    if parameters.get("llama_4_scaling_beta"):
        scaling["query_scale_beta"] = parameters["llama_4_scaling_beta"]
    return RopeScaling(**scaling)


def _write_scaling(scaling: RopeScaling | None, family: str, query_scale: bool) -> dict[str, Any] | None:
    if scaling is None:
        return None
    if scaling.query_scale_beta and not query_scale:
        raise UserError(
            f"family {family!r} cannot express rope_scaling.query_scale_beta {scaling.query_scale_beta} (only 0)"
        )
    written: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    names = [name for name in _NUMBERS.get(scaling.kind, ()) if getattr(scaling, name) is not None]
    written |= {name: getattr(scaling, name) for name in names}
    if scaling.kind in ("llama3", "yarn", "longrope"):
        written[_ORIGINAL] = scaling.original_block_size
    if scaling.kind == "longrope":
        written |= {"short_factor": list(scaling.short_factors or ()), "long_factor": list(scaling.long_factors or ())}
    if query_scale:
        written["llama_4_scaling_beta"] = scaling.query_scale_beta
    return written
