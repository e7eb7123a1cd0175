"""Keys of config.json that families share, read and written: checks, activations, layer kinds, and RoPE.

RoPE has two forms: `rope_parameters` (transformers 5), and `rope_theta` with `rope_scaling` (before). Both are read,
and both are written with the same content, because many other tools still read only the older one. Families whose
sliding-window layers use a different RoPE nest `rope_parameters` by layer kind.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from lit_gpt.errors import UserError
from lit_gpt.models.choices import Activation
from lit_gpt.models.config import GPTConfig, RopeScaling

FULL, SLIDING = "full_attention", "sliding_attention"
"""Layer kinds in `layer_types`."""

# "gelu_new", "gelu_fast" and "gelu_pytorch_tanh" are three spellings of the same function.
_READ_ACTIVATION: dict[str, Activation] = {
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu2": "relu2",
}
_WRITE_ACTIVATION = {"gelu_tanh": "gelu_new", "gelu": "gelu", "relu2": "relu2"}

_ORIGINAL = "original_max_position_embeddings"
_SCALING_FIELDS = {
    "llama3": ("low_freq_factor", "high_freq_factor"),
    "yarn": ("beta_fast", "beta_slow", "truncate", "mscale", "mscale_all_dim", "attention_factor"),
    "longrope": ("attention_factor",),
}
"""For each kind of `RopeScaling`, the fields that have the same name in config.json."""
_SCALING_ALIASES = {"su": "longrope"}


def required(values: Mapping[str, Any], key: str) -> Any:
    """Return a required value.

    Raises:
        UserError: If it is missing or null.
    """
    if values.get(key) is None:
        raise UserError(f"config.json has no value for {key!r}; is it complete?")
    return values[key]


def optional(values: Mapping[str, Any], key: str, default: Any) -> Any:
    """Return a value, or its default if it is missing or null."""
    value = values.get(key)
    return default if value is None else value


def integer(values: Mapping[str, Any], key: str, default: int, least: int = 0) -> int:
    """Return an integer, or its default if it is missing or null.

    Raises:
        UserError: If it is not an integer, or less than `least`.
    """
    value = optional(values, key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UserError(f"config.json has {key}: {value!r}, it must be a whole number of at least {least}")
    return value


def flag(values: Mapping[str, Any], key: str, default: bool) -> bool:
    """Return a boolean, or its default if it is missing or null.

    Raises:
        UserError: If it is neither true nor false.
    """
    value = optional(values, key, default)
    if not isinstance(value, bool):
        raise UserError(f"config.json has {key}: {value!r}, it must be true or false")
    return value


def expect(values: Mapping[str, Any], key: str, supported: Any) -> None:
    """Raise if config.json requires something that the model does not implement.

    Raises:
        UserError: If `key` has a value other than the supported one.
    """
    if values.get(key, supported) not in (supported, None):
        raise UserError(
            f"config.json has {key}: {values[key]!r}, which lit_gpt does not support (only {supported!r}); "
            "import a model without it"
        )


def require_values(config: GPTConfig, **fields: Any) -> None:
    """Raise unless fields or properties of a config have the values that its family requires.

    Raises:
        UserError: For the first field that has another value.
    """
    for name, value in fields.items():
        actual = getattr(config, name)
        if actual != value:
            raise UserError(
                f"family {config.family!r} cannot express {name} {actual!r} (only {value!r}); "
                "set `family` to one that can, or train with that value"
            )


def read_activation(key: str, name: str) -> Activation:
    """Return our name of a plain (ungated) activation.

    Raises:
        UserError: If it is not supported.
    """
    if name not in _READ_ACTIVATION:
        raise UserError(f"{key} {name!r} is not one of {', '.join(_READ_ACTIVATION)}")
    return _READ_ACTIVATION[name]


def write_activation(config: GPTConfig) -> str:
    """Return config.json's name of the config's plain activation.

    Raises:
        UserError: If the MLP is gated.
    """
    if config.mlp not in _WRITE_ACTIVATION:
        raise UserError(
            f"family {config.family!r} cannot express mlp {config.mlp!r} (only {', '.join(_WRITE_ACTIVATION)})"
        )
    return _WRITE_ACTIVATION[config.mlp]


def read_layers(types: Sequence[str], window: int | None, block_size: int, keep: bool = False) -> dict[str, Any]:
    """Return `sliding_window` and `layer_windows` in their shortest form.

    Args:
        types: The kind of each layer.
        window: Window in tokens; None: no layer uses one.
        block_size: The maximum context: a window at least this long has no effect, and is read as no window.
        keep: Shorten such a window to the context instead, because sliding-window layers also differ in other ways
            (Gemma 3).

    Raises:
        UserError: If a layer is of another kind.
    """
    unknown = sorted(set(types) - {FULL, SLIDING})
    if unknown:
        raise UserError(f"config.json has layer_types {', '.join(unknown)}; lit_gpt supports {FULL} and {SLIDING}")
    slides = [kind == SLIDING for kind in types]
    if window is None or not any(slides) or (window >= block_size and not keep):
        return {"sliding_window": None, "layer_windows": None}
    pattern = shortest_pattern(slides)
    return {"sliding_window": min(window, block_size), "layer_windows": None if pattern == (True,) else pattern}


def write_layers(config: GPTConfig, needs_window: bool = False) -> dict[str, Any]:
    """Return `sliding_window` and `layer_types`; the inverse of `read_layers`.

    Args:
        config: The model's architecture.
        needs_window: Whether the transformers class needs a number even if no layer uses a window; it gets block_size.
    """
    window = config.block_size if config.sliding_window is None and needs_window else config.sliding_window
    types = [SLIDING if config.slides(layer) else FULL for layer in range(config.n_layer)]
    return {"sliding_window": window, "layer_types": types}


def shortest_pattern(flags: Sequence[bool]) -> tuple[bool, ...]:
    """Return the shortest pattern that yields all of the flags when it is repeated over the layers."""
    for length in range(1, len(flags)):
        if all(flag == flags[i % length] for i, flag in enumerate(flags)):
            return tuple(flags[:length])
    return tuple(flags)


def read_rope(
    values: dict[str, Any], default_theta: float = 10000.0, default_fraction: float | None = None
) -> dict[str, Any]:
    """Return `rope_theta`, `rope_fraction` and `rope_scaling` of a `GPTConfig`.

    Args:
        values: Content of config.json.
        default_theta: The base if config.json has none.
        default_fraction: The rotated fraction of a head if config.json has none; None: the family rotates complete
            heads, and any other fraction is rejected.

    Raises:
        UserError: If config.json sets a fraction in a family that rotates complete heads, or an unknown scaling.
    """
    parameters = _parameters(values)
    theta = _first("rope_theta", parameters, values, default=default_theta)
    if default_fraction is None:
        _rotate_all(parameters, values)
        default_fraction = 1.0
    fraction = _first("partial_rotary_factor", parameters, values, default=default_fraction)
    return {"rope_theta": theta, "rope_fraction": fraction, "rope_scaling": _read_scaling(parameters, values)}


def read_layered_rope(values: dict[str, Any], full_theta: float, sliding_theta: float) -> dict[str, Any]:
    """Return `rope_theta`, `rope_scaling` and `rope_local_theta` for families with a separate RoPE in window layers.

    Args:
        values: config.json; either nested `rope_parameters`, or the older `rope_theta`, `rope_local_base_freq` and
            `rope_scaling`, where the first and last apply to the full-attention layers.
        full_theta: Base of full-attention layers, if config.json has none.
        sliding_theta: Base of sliding-window layers, if config.json has none.

    Raises:
        UserError: `rope_parameters` are not nested by kind of layer, or scale RoPE in layers that slide.
    """
    nested = values.get("rope_parameters") or {}
    if nested and not {FULL, SLIDING} & nested.keys():
        raise UserError(
            f"config.json has rope_parameters that are not nested by layer kind; nest them under {FULL} and {SLIDING}"
        )
    full = nested.get(FULL) or values.get("rope_scaling") or {}
    sliding = nested.get(SLIDING) or {}
    _rotate_all(full, sliding, values)
    if _read_scaling(sliding, values) is not None:
        raise UserError(
            "config.json scales RoPE in sliding-window layers; lit_gpt supports that only in full-attention layers"
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
    """Return config.json, with the class's default `rope_parameters` added if it has RoPE in neither form."""
    return values if _parameters(values) else values | {"rope_parameters": parameters}


def write_rope(config: GPTConfig, query_scale: bool = False) -> dict[str, Any]:
    """Return RoPE's keys in both forms; the inverse of `read_rope`.

    Args:
        config: The model's architecture.
        query_scale: Whether the family scales queries by position; if so, the factor is written even if it is 0.

    Raises:
        UserError: If the config scales queries by position and the family cannot express that.
    """
    scaling = _write_scaling(config.rope_scaling, config.family, query_scale)
    fraction = {} if config.rope_fraction == 1 else {"partial_rotary_factor": config.rope_fraction}
    parameters = {"rope_theta": config.rope_theta, **fraction, **(scaling or {"rope_type": "default"})}
    return {"rope_parameters": parameters, "rope_theta": config.rope_theta, **fraction, "rope_scaling": scaling}


def write_layered_rope(config: GPTConfig) -> dict[str, Any]:
    """Return RoPE's keys, nested by layer kind and in the older form; the inverse of `read_layered_rope`.

    Raises:
        UserError: If sliding-window layers are scaled too.
    """
    scaling = _write_scaling(config.rope_scaling, config.family, False)
    local = config.rope_theta if config.rope_local_theta is None else config.rope_local_theta
    if scaling is not None and config.rope_local_theta is None and config.sliding_window is not None:
        raise UserError(
            f"family {config.family!r} scales RoPE only in full-attention layers; set rope_local_theta to the base of "
            f"the sliding-window layers (rope_theta is {config.rope_theta})"
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
    """Return `block_size`: `max_position_embeddings`, times the factor of dynamic scaling."""
    length: int = required(values, "max_position_embeddings")
    nested = values.get("rope_parameters") or {}
    scaling = _read_scaling(nested.get(FULL) or _parameters(values), values)
    return int(length * scaling.factor) if scaling is not None and scaling.kind == "dynamic" else length


def original_context(config: GPTConfig) -> int:
    """Return `max_position_embeddings`; the inverse of `longest_context`.

    Raises:
        UserError: If dynamic scaling yields a context other than block_size.
    """
    scaling = config.rope_scaling
    if scaling is None or scaling.kind != "dynamic":
        return config.block_size
    if int(scaling.original_block_size * scaling.factor) != config.block_size:
        raise UserError(
            f"block_size is {config.block_size}, but dynamic RoPE scaling gives a context of original_block_size * "
            f"factor = {int(scaling.original_block_size * scaling.factor)}; set block_size to that"
        )
    return scaling.original_block_size


def _first(key: str, *places: dict[str, Any], default: Any) -> Any:
    """Return the value of `key` in the first dict that has one."""
    return next((place[key] for place in places if place.get(key) is not None), default)


def _rotate_all(*places: dict[str, Any]) -> None:
    for place in places:
        expect(place, "partial_rotary_factor", 1.0)


def _parameters(values: dict[str, Any]) -> dict[str, Any]:
    return values.get("rope_parameters") or values.get("rope_scaling") or {}


def _read_scaling(parameters: dict[str, Any], values: dict[str, Any]) -> RopeScaling | None:
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    kind = _SCALING_ALIASES.get(kind, kind)
    if kind == "default":
        return None
    if kind not in ("linear", "dynamic", "yarn", "llama3", "longrope"):
        raise UserError(
            f"config.json has RoPE scaling of type {kind!r}; lit_gpt supports default, linear, dynamic, yarn, llama3 "
            "and longrope"
        )
    length = values.get("max_position_embeddings")
    # Phi-3 stores the original context outside of rope_scaling; as in transformers, it takes precedence.
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
        scaling |= {name: required(parameters, name) for name in _SCALING_FIELDS[kind]}
    else:
        names = _SCALING_FIELDS.get(kind, ())
        scaling |= {name: parameters[name] for name in names if parameters.get(name) is not None}
    if kind == "longrope":
        for local, hf in (("short_factors", "short_factor"), ("long_factors", "long_factor")):
            scaling[local] = tuple(float(number) for number in required(parameters, hf))
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
    names = [name for name in _SCALING_FIELDS.get(scaling.kind, ()) if getattr(scaling, name) is not None]
    written |= {name: getattr(scaling, name) for name in names}
    if scaling.kind in ("llama3", "yarn", "longrope"):
        written[_ORIGINAL] = scaling.original_block_size
    if scaling.kind == "longrope":
        written |= {"short_factor": list(scaling.short_factors or ()), "long_factor": list(scaling.long_factors or ())}
    if query_scale:
        written["llama_4_scaling_beta"] = scaling.query_scale_beta
    return written
