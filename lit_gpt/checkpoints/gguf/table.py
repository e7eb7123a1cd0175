"""The tensors of a GGUF file: which of ours each one is, and how it lies differently.

llama.cpp's names are short (`blk.0.attn_q.weight`); its matrices are (outputs, inputs) as ours are.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lit_gpt.checkpoints.gguf.architecture import Architecture
from lit_gpt.checkpoints.huggingface.family import Entry, entry
from lit_gpt.checkpoints.huggingface.layout import Permute, Split
from lit_gpt.models import GPTConfig
from lit_gpt.models.positions import rope_frequencies

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
"""Their norms of a layer → ours, by `norm_placement`."""


@dataclass(frozen=True)
class PlusOne:
    """A gain that we store less one (`norm_offset`) and llama.cpp whole."""

    def to_ours(self, tensors: list[Tensor]) -> list[Tensor]:
        """Theirs → ours."""
        return [tensor - 1 for tensor in tensors]

    def to_theirs(self, tensors: list[Tensor]) -> list[Tensor]:
        """Ours → theirs."""
        return [tensor + 1 for tensor in tensors]


def entries(config: GPTConfig, architecture: Architecture) -> list[Entry]:
    """Return every tensor that is one or more of ours; `factors` are beside them."""
    gain = (PlusOne(),) if config.norm_offset else ()
    kinds = ("weight", "bias") if config.norm == "layernorm" else ("weight",)
    table = [entry("token_embd.weight", "wte.weight")]
    if config.positions == "learned":
        table.append(entry("position_embd.weight", "wpe.weight"))
    for layer in range(config.n_layer):
        theirs, ours = f"blk.{layer}.", f"blocks.{layer}."
        norms = _NORMS[config.norm_placement].items()
        table += [entry(f"{theirs}{a}.{kind}", f"{ours}{b}.{kind}", *gain) for a, b in norms for kind in kinds]
        table += _attention(config, architecture, theirs, f"{ours}attn.")
        if config.is_moe(layer):
            table.append(entry(f"{theirs}ffn_gate_inp.weight", f"{ours}mlp.router.weight"))
            parts = ("gate", "up", "down")
            table += [entry(f"{theirs}ffn_{p}_exps.weight", f"{ours}mlp.experts.{p}_proj") for p in parts]
        else:
            table += _mlp(config, architecture, theirs, f"{ours}mlp.")
    table += [entry(f"output_norm.{kind}", f"ln_f.{kind}", *gain) for kind in kinds]
    if not config.tie_embeddings or architecture.own_head:
        table.append(entry("output.weight", "wte.weight" if config.tie_embeddings else "lm_head.weight"))
    return table


def factors(config: GPTConfig) -> dict[str, Tensor]:
    """Return what RoPE's frequencies are divided by where llama.cpp wants a tensor of it, by their names."""
    scaling = config.rope_scaling
    if scaling is None or scaling.kind not in ("llama3", "longrope"):
        return {}
    if scaling.kind == "llama3":
        return {"rope_freqs.weight": rope_frequencies(replace(config, rope_scaling=None)) / rope_frequencies(config)}
    both = {"long": scaling.long_factors, "short": scaling.short_factors}
    return {f"rope_factors_{name}.weight": torch.tensor(values, dtype=torch.float32) for name, values in both.items()}


def _attention(config: GPTConfig, architecture: Architecture, theirs: str, ours: str) -> list[Entry]:
    D = config.head_dim
    heads = {"q": config.n_head, "k": config.num_kv_heads, "v": config.num_kv_heads}
    table = []
    for kind in ("weight", "bias") if config.has_attention_bias else ("weight",):
        if architecture.fused_qkv:
            parts = [f"{ours}{part}_proj.{kind}" for part in heads]
            table.append(entry(f"{theirs}attn_qkv.{kind}", parts, Split(tuple(n * D for n in heads.values()))))
            continue
        for part, n in heads.items():
            moved = (Permute(_neighbours(n, D)),) if architecture.interleaved and part != "v" else ()
            table.append(entry(f"{theirs}attn_{part}.{kind}", f"{ours}{part}_proj.{kind}", *moved))
    table.append(entry(f"{theirs}attn_output.weight", f"{ours}o_proj.weight"))
    if config.has_attention_out_bias:
        table.append(entry(f"{theirs}attn_output.bias", f"{ours}o_proj.bias"))
    if config.qk_norm:
        gain = (PlusOne(),) if config.norm_offset else ()
        table += [entry(f"{theirs}attn_{p}_norm.weight", f"{ours}{p}_norm.weight", *gain) for p in "qk"]
    return table


def _mlp(config: GPTConfig, architecture: Architecture, theirs: str, ours: str) -> list[Entry]:
    kinds = ("weight", "bias") if config.has_mlp_bias else ("weight",)
    if architecture.fused_gate_up:
        sizes = (config.mlp_size, config.mlp_size)
        both = entry(f"{theirs}ffn_up.weight", [f"{ours}{p}_proj.weight" for p in ("gate", "up")], Split(sizes))
        return [both, entry(f"{theirs}ffn_down.weight", f"{ours}down_proj.weight")]
    gated = config.mlp not in ("gelu", "gelu_tanh", "relu2")
    parts = ("gate", "up", "down") if gated else ("up", "down")
    return [entry(f"{theirs}ffn_{part}.{kind}", f"{ours}{part}_proj.{kind}") for part in parts for kind in kinds]


def _neighbours(heads: int, size: int) -> tuple[int, ...]:
    """Where each of our rows goes so that coordinates j and j + size/2 of a head become neighbours."""
    half = size // 2
    return tuple(head * size + 2 * j + side for head in range(heads) for side in range(2) for j in range(half))
