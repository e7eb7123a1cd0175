"""A model as one of llama.cpp's architectures: supported configurations, settings, and tensor names.

Settings are GGUF's key-value pairs (`qwen3.attention.head_count`). llama.cpp's tensor names are short
(`blk.0.attn_q.weight`); matrices have shape (outputs, inputs), as in lit_gpt.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lit_gpt.checkpoints.huggingface import config_to_hf
from lit_gpt.errors import UserError
from lit_gpt.models import GPTConfig
from lit_gpt.models.choices import GATED
from lit_gpt.models.families import GGUFArchitecture, get_family, model_types
from lit_gpt.models.families.family import ANY, GIVEN, MetadataValue
from lit_gpt.models.families.weights import Entry, Permute, Split, entry
from lit_gpt.models.positions import rope_frequencies

_DEMANDS: dict[str, Any] = {"sliding_window": None, "rope_fraction": 1.0, "has_attention_out_bias": False}
"""Required values of config fields, unless an architecture's `demands` override them."""

_NORMS = {
    "pre": {"attn_norm": "ln1", "ffn_norm": "ln2"},
    "output": {"post_attention_norm": "ln1", "post_ffw_norm": "ln2"},
    "sandwich": {
        "attn_norm": "ln1",
        "post_attention_norm": "ln1_out",
        "ffn_norm": "ln2",
        "post_ffw_norm": "ln2_out",
    },
}
"""A layer's norms by `norm_placement`: name in the file → lit_gpt's name."""


def gguf_families() -> list[str]:
    """Return the names of the families that can be exported as GGUF."""
    return [family.name for family in model_types().values() if family.gguf is not None]


def architecture_of(config: GPTConfig) -> GGUFArchitecture:
    """Return llama.cpp's architecture for a model, after checking that it implements every field of the config.

    Raises:
        UserError: If the family or llama.cpp does not support a field; the message names it.
    """
    config_to_hf(config)  # raises for fields that the family cannot express
    architecture = get_family(config.family).gguf
    if architecture is None:
        raise UserError(
            f"family {config.family!r} cannot be exported as GGUF, only {', '.join(gguf_families())}; use --format hf "
            "and llama.cpp's own convert_hf_to_gguf.py"
        )
    for name, value in {**_DEMANDS, **architecture.demands}.items():
        owner, _, part = name.rpartition(".")
        actual = getattr(getattr(config, owner) if owner else config, part)
        if value is GIVEN and actual is None:
            raise _refusal(architecture, name, None, "only a number")
        if value not in (ANY, GIVEN) and actual != value:
            raise _refusal(architecture, name, actual, f"only {value!r}")
    if not architecture.own_width and config.head_dim * config.n_head != config.n_embd:
        raise _refusal(architecture, "head_size", config.head_dim, f"only n_embd / n_head = {config.n_embd}")
    scaling = config.rope_scaling
    if scaling is not None and scaling.kind not in architecture.scalings:
        raise _refusal(architecture, "rope_scaling", scaling.kind, f"only {', '.join(architecture.scalings) or None}")
    if scaling is not None and scaling.kind == "yarn" and not scaling.truncate:
        raise _refusal(architecture, "rope_scaling.truncate", False, "only true")
    if config.mlp == "relu2":
        raise _refusal(architecture, "mlp", config.mlp, "only gelu and gelu_tanh")
    _check_layers(config, architecture)
    return architecture


def differences(config: GPTConfig) -> list[str]:
    """Return a sentence for each operation that llama.cpp only approximates."""
    sentences = []
    if config.mlp in ("gelu", "gelu_tanh", "geglu_tanh"):
        exact = " and with tanh, although the model's is exact" if config.mlp == "gelu" else ""
        sentences.append(
            f"llama.cpp's CPU code computes GELU from a float16 table{exact}: logits differ in the third decimal place"
        )
    if config.rope_scaling is not None and config.rope_scaling.kind == "longrope":
        sentences.append("llama.cpp chooses LongRoPE's long factors by its context size, not by the length of the text")
    return sentences


def _check_layers(config: GPTConfig, architecture: GGUFArchitecture) -> None:
    """Raise if the layers with sliding windows or RoPE, or the attention scale, differ from the architecture's."""
    layers = range(config.n_layer)
    every = architecture.full_every
    if every is not None and config.sliding_window is not None:
        slides = [bool((layer + 1) % every) for layer in layers]
        if slides != [config.slides(layer) for layer in layers]:
            raise _refusal(
                architecture,
                "layer_windows",
                config.layer_windows,
                f"only windows in all but every {every}th layer",
            )
    every = architecture.unrotated_every
    if every is not None and any(config.rotates(layer) != bool((layer + 1) % every) for layer in layers):
        raise _refusal(architecture, "rope_layers", config.rope_layers, f"only RoPE in all but every {every}th layer")
    if architecture.width_scaled_depth is not None:
        by_width = config.n_layer == architecture.width_scaled_depth
        size = config.n_embd // config.n_head if by_width else config.head_dim
        if not math.isclose(config.score_scale, size**-0.5, rel_tol=1e-6):
            raise _refusal(architecture, "attention_scale", config.score_scale, f"only 1 / √{size}")


def _refusal(architecture: GGUFArchitecture, name: str, value: Any, only: str) -> UserError:
    return UserError(f"llama.cpp's {architecture.name!r} does not support {name} {value!r} ({only}); use --format hf")


def settings(config: GPTConfig, architecture: GGUFArchitecture) -> dict[str, MetadataValue]:
    """Return the key-value pairs that configure the model in llama.cpp."""
    values: dict[str, MetadataValue] = {
        "vocab_size": config.vocab_size,
        "context_length": config.block_size,
        "embedding_length": config.n_embd,
        "block_count": config.n_layer,
        "feed_forward_length": config.mlp_size,
        "attention.head_count": config.n_head,
        "attention.head_count_kv": config.num_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        f"attention.layer_norm{'_rms' if config.norm == 'rmsnorm' else ''}_epsilon": float(config.norm_eps),
        **_rope(config),
        **_windows(config, architecture),
        **_mixture(config),
        **architecture.settings(config),
    }
    if config.attention_softcap is not None:
        values["attn_logit_softcapping"] = float(config.attention_softcap)
    if config.logit_softcap is not None:
        values["final_logit_softcapping"] = float(config.logit_softcap)
    return {f"{architecture.name}.{key}": value for key, value in values.items()}


def _rope(config: GPTConfig) -> dict[str, MetadataValue]:
    if config.positions != "rope":
        return {}
    values: dict[str, MetadataValue] = {
        "rope.dimension_count": config.rope_size,
        "rope.freq_base": float(config.rope_theta),
    }
    if config.rope_local_theta is not None:
        values["rope.freq_base_swa"] = float(config.rope_local_theta)
    scaling = config.rope_scaling
    if scaling is None or scaling.kind == "llama3":  # llama3's scaling is stored as a tensor (`rope_factors`)
        return values
    values["rope.scaling.type"] = scaling.kind
    if scaling.kind == "longrope":
        return {**values, "rope.scaling.attn_factor": float(scaling.rotation_scale)}
    values["rope.scaling.factor"] = float(scaling.factor)
    if scaling.kind == "yarn":
        values |= {
            "rope.scaling.original_context_length": scaling.original_block_size,
            "rope.scaling.yarn_beta_fast": float(scaling.beta_fast),
            "rope.scaling.yarn_beta_slow": float(scaling.beta_slow),
            # llama.cpp computes the paper's attention temperature itself and multiplies it by this factor.
            "rope.scaling.attn_factor": scaling.rotation_scale / scaling.temperature(1.0),
        }
    return values


def _windows(config: GPTConfig, architecture: GGUFArchitecture) -> dict[str, MetadataValue]:
    if config.sliding_window is None:
        return {}
    values: dict[str, MetadataValue] = {"attention.sliding_window": config.sliding_window}
    if architecture.full_every is None:
        pattern = [config.slides(layer) for layer in range(config.n_layer)]
        values["attention.sliding_window_pattern"] = pattern
    return values


def _mixture(config: GPTConfig) -> dict[str, MetadataValue]:
    if config.moe is None:
        return {}
    return {
        "expert_count": config.moe.num_experts,
        "expert_used_count": config.moe.num_experts_per_tok,
        "expert_feed_forward_length": config.expert_size,
    }


@dataclass(frozen=True)
class PlusOne:
    """A weight transform for norm gains: lit_gpt stores gain - 1 (`norm_offset`), llama.cpp the gain."""

    def to_local(self, tensors: list[Tensor]) -> list[Tensor]:
        """Subtract one."""
        return [tensor - 1 for tensor in tensors]

    def to_file(self, tensors: list[Tensor]) -> list[Tensor]:
        """Add one."""
        return [tensor + 1 for tensor in tensors]


def weight_table(config: GPTConfig, architecture: GGUFArchitecture) -> list[Entry]:
    """Return the weight table of a GGUF file; it does not contain `rope_factors`, which are not weights."""
    gain = (PlusOne(),) if config.norm_offset else ()
    kinds = ("weight", "bias") if config.norm == "layernorm" else ("weight",)
    table = [entry("token_embd.weight", "wte.weight")]
    if config.positions == "learned":
        table.append(entry("position_embd.weight", "wpe.weight"))
    for layer in range(config.n_layer):
        file, local = f"blk.{layer}.", f"blocks.{layer}."
        norms = _NORMS[config.norm_placement].items()
        table += [entry(f"{file}{a}.{kind}", f"{local}{b}.{kind}", *gain) for a, b in norms for kind in kinds]
        table += _attention_entries(config, architecture, file, f"{local}attn.")
        if config.is_moe(layer):
            table.append(entry(f"{file}ffn_gate_inp.weight", f"{local}mlp.router.weight"))
            parts = ("gate", "up", "down")
            table += [entry(f"{file}ffn_{p}_exps.weight", f"{local}mlp.experts.{p}_proj") for p in parts]
        else:
            table += _mlp_entries(config, architecture, file, f"{local}mlp.")
    table += [entry(f"output_norm.{kind}", f"ln_f.{kind}", *gain) for kind in kinds]
    if not config.tie_embeddings or architecture.own_head:
        table.append(entry("output.weight", "wte.weight" if config.tie_embeddings else "lm_head.weight"))
    return table


def rope_factors(config: GPTConfig) -> dict[str, Tensor]:
    """Return the divisors of RoPE's frequencies that llama.cpp reads as tensors, by name."""
    scaling = config.rope_scaling
    if scaling is None or scaling.kind not in ("llama3", "longrope"):
        return {}
    if scaling.kind == "llama3":
        return {"rope_freqs.weight": rope_frequencies(replace(config, rope_scaling=None)) / rope_frequencies(config)}
    both = {"long": scaling.long_factors, "short": scaling.short_factors}
    return {f"rope_factors_{name}.weight": torch.tensor(values, dtype=torch.float32) for name, values in both.items()}


def _attention_entries(config: GPTConfig, architecture: GGUFArchitecture, file: str, local: str) -> list[Entry]:
    D = config.head_dim
    heads = {"q": config.n_head, "k": config.num_kv_heads, "v": config.num_kv_heads}
    table = []
    for kind in ("weight", "bias") if config.has_attention_bias else ("weight",):
        if architecture.fused_qkv:
            parts = [f"{local}{part}_proj.{kind}" for part in heads]
            table.append(entry(f"{file}attn_qkv.{kind}", parts, Split(tuple(n * D for n in heads.values()))))
            continue
        for part, n in heads.items():
            moved = (Permute(_interleaved_rows(n, D)),) if architecture.interleaved and part != "v" else ()
            table.append(entry(f"{file}attn_{part}.{kind}", f"{local}{part}_proj.{kind}", *moved))
    table.append(entry(f"{file}attn_output.weight", f"{local}o_proj.weight"))
    if config.has_attention_out_bias:
        table.append(entry(f"{file}attn_output.bias", f"{local}o_proj.bias"))
    if config.qk_norm:
        gain = (PlusOne(),) if config.norm_offset else ()
        table += [entry(f"{file}attn_{p}_norm.weight", f"{local}{p}_norm.weight", *gain) for p in "qk"]
    return table


def _mlp_entries(config: GPTConfig, architecture: GGUFArchitecture, file: str, local: str) -> list[Entry]:
    kinds = ("weight", "bias") if config.has_mlp_bias else ("weight",)
    if architecture.fused_gate_up:
        sizes = (config.mlp_size, config.mlp_size)
        both = entry(f"{file}ffn_up.weight", [f"{local}{p}_proj.weight" for p in ("gate", "up")], Split(sizes))
        return [both, entry(f"{file}ffn_down.weight", f"{local}down_proj.weight")]
    parts = ("gate", "up", "down") if config.mlp in GATED else ("up", "down")
    return [entry(f"{file}ffn_{part}.{kind}", f"{local}{part}_proj.{kind}") for part in parts for kind in kinds]


def _interleaved_rows(heads: int, size: int) -> tuple[int, ...]:
    """Return, for each local row, its row in the file, where coordinates j and j + size/2 of a head are adjacent."""
    half = size // 2
    return tuple(head * size + 2 * j + side for head in range(heads) for side in range(2) for j in range(half))
