"""Validation of `GPTConfig`: first each value, then combinations of values."""

from typing import TYPE_CHECKING

from lit_gpt.checks import check_types
from lit_gpt.errors import UserError
from lit_gpt.models import mixers

if TYPE_CHECKING:
    from lit_gpt.models.config import GPTConfig


def check(config: "GPTConfig") -> None:
    """Raise on values that are out of bounds or contradict each other.

    Raises:
        UserError: With value, bound and remedy.
    """
    check_types(config)
    for name in ("n_layer", "n_head", "n_embd", "block_size", "vocab_size"):
        if getattr(config, name) < 1:
            raise UserError(f"{name} is {getattr(config, name)}, it must be at least 1")
    for name in ("n_kv_head", "head_size", "intermediate_size", "sliding_window"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}, it must be at least 1, or null for its default")
    if config.multi_token < 0:
        raise UserError(f"multi_token is {config.multi_token}, it must be at least 0 (0: predict the next token only)")
    if not 0 <= config.dropout < 1:
        raise UserError(f"dropout is {config.dropout}, it must be at least 0 and less than 1")
    for name in ("norm_eps", "rope_theta", "init_std", "residual_scale", "logit_scale"):
        if not getattr(config, name) > 0:
            raise UserError(f"{name} is {getattr(config, name)}, it must be greater than 0")
    if config.embedding_scale != "sqrt_width" and config.embedding_scale <= 0:
        raise UserError(f"embedding_scale is {config.embedding_scale}, it must be greater than 0, or sqrt_width")
    for name in ("rope_local_theta", "attention_scale", "attention_softcap", "logit_softcap"):
        value = getattr(config, name)
        if value is not None and not value > 0:
            raise UserError(f"{name} is {value}, it must be greater than 0, or null for none")
    _check_attention(config)
    _check_positions(config)
    _check_layers(config)
    _check_residual(config)


def _check_attention(config: "GPTConfig") -> None:
    if config.head_size is None and config.n_embd % config.n_head and config.mla is None:
        raise UserError(
            f"n_embd {config.n_embd} is not divisible by n_head {config.n_head}; change one of them or set head_size"
        )
    if config.n_head % config.num_kv_heads:
        raise UserError(
            f"n_head {config.n_head} is not divisible by n_kv_head {config.num_kv_heads}; "
            "each key/value head serves the same number of query heads"
        )
    if config.mla is not None:
        without = {
            "qk_norm": config.qk_norm,
            "attention_softcap": config.attention_softcap,
            "attention_sinks": config.attention_sinks or None,
            "n_kv_head": None if config.num_kv_heads == config.n_head else config.n_kv_head,
            "head_size": config.head_size,
        }
        for name, value in without.items():
            if value is not None:
                raise UserError(
                    f"mla is multi-head latent attention, which has no {name} (got {value}); leave it at its default"
                )
        if config.positions != "rope" or config.rope_fraction != 1:
            raise UserError(
                "mla applies RoPE to its qk_rope_head_dim: set positions: rope and rope_fraction: 1, not "
                f"{config.positions} and {config.rope_fraction}"
            )


def _check_positions(config: "GPTConfig") -> None:
    if config.positions != "rope":
        if config.rope_fraction != 1:
            raise UserError(f"rope_fraction {config.rope_fraction} needs positions: rope, got {config.positions}")
        for name in ("rope_scaling", "rope_layers", "rope_local_theta"):
            if getattr(config, name) is not None:
                raise UserError(f"{name} needs positions: rope, got positions: {config.positions}")
        return
    if not 0 < config.rope_fraction <= 1:
        raise UserError(f"rope_fraction is {config.rope_fraction}, it must be greater than 0 and at most 1")
    if config.rope_size % 2 or config.rope_size < 2:
        raise UserError(
            f"RoPE rotates pairs of coordinates, so the {config.rope_size} rotated coordinates of a head must be even "
            "and at least 2; change head_size or rope_fraction"
        )
    if config.rope_local_theta is not None and config.sliding_window is None:
        raise UserError("rope_local_theta is the base in sliding-window layers, but sliding_window is null; set it")
    scaling = config.rope_scaling
    if scaling is not None and scaling.kind == "longrope":
        for name in ("short_factors", "long_factors"):
            count = len(getattr(scaling, name))
            if count != config.rope_size // 2:
                raise UserError(
                    f"rope_scaling.{name} has {count} numbers, but there are {config.rope_size // 2} rotated pairs"
                )


def _check_layers(config: "GPTConfig") -> None:
    if config.layer_windows is not None and config.sliding_window is None:
        raise UserError("layer_windows selects sliding-window layers, but sliding_window is null; set it in tokens")
    if config.chunked_window and config.sliding_window is None:
        raise UserError("chunked_window needs sliding_window, the size of a chunk in tokens")
    if config.sliding_window is not None and config.sliding_window > config.block_size:
        raise UserError(
            f"sliding_window {config.sliding_window} is longer than block_size {config.block_size}; shorten it, or set "
            "it to null for full attention"
        )
    _check_layer_types(config)
    patterns = {
        "layer_windows": config.layer_windows,
        "rope_layers": config.rope_layers,
        "moe.layers": None if config.moe is None else config.moe.layers,
    }
    for name, pattern in patterns.items():
        if pattern is not None and not pattern:
            raise UserError(f"{name} is an empty pattern; give at least one bool, or null for every layer")
    if config.moe is not None and not any(config.is_moe(layer) for layer in range(config.n_layer)):
        raise UserError(
            f"moe.layers makes none of the {config.n_layer} layers a mixture of experts; raise n_layer, change "
            "moe.layers, or set moe to null"
        )


def _check_layer_types(config: "GPTConfig") -> None:
    if config.layer_types is None and not config.mixer_options:
        return
    if config.layer_types is not None and not config.layer_types:
        raise UserError("layer_types is an empty pattern; give at least one kind, or null")
    used = {config.token_mixer(layer) for layer in range(config.n_layer)}
    for name in config.mixer_options:
        if name not in used:
            raise UserError(f"mixer_options names {name!r}, which no layer uses; the layers are {sorted(used)}")
    if config.layer_types is None:
        return
    if config.layer_windows is not None:
        raise UserError(
            "layer_types and layer_windows both select the sliding-window layers; set layer_windows to null"
        )
    if ("sliding" in used) != (config.sliding_window is not None):
        raise UserError(
            f"layer_types {list(config.layer_types)} and sliding_window {config.sliding_window} disagree: layers of "
            "type sliding need sliding_window in tokens, and no other layer uses it"
        )
    if ("latent" in used) != (config.mla is not None):
        raise UserError(
            f"layer_types {list(config.layer_types)} and mla disagree: layers of type latent need the sizes in mla, "
            "and no other layer uses them"
        )
    if config.mla is not None and used & {"attention", "sliding"}:
        raise UserError("layer_types mixes latent layers and attention layers, whose head sizes differ; choose one")
    for layer in range(config.n_layer):
        if config.token_mixer(layer) not in mixers.BUILT_IN:
            config.mixer_options_of(layer)  # raises on an unknown kind or invalid options


def _check_residual(config: "GPTConfig") -> None:
    if config.norm_offset and config.norm != "rmsnorm":
        raise UserError(f"norm_offset requires norm: rmsnorm, got norm: {config.norm}")
    if config.parallel_residual and config.norm_placement != "pre":
        raise UserError(f"parallel_residual requires norm_placement: pre, got {config.norm_placement}")
