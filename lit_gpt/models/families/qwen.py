"""Qwen2 and 2.5 (arXiv:2412.15115), Qwen3 and its mixtures (arXiv:2505.09388), as `transformers` stores them.

- Qwen2: Llama with biases of q, k and v, and sliding-window layers.
- Qwen3: QK-norm instead of the biases.
- Qwen3-MoE: Qwen3 with experts in most layers or all.

Presets are from the `config.json` of huggingface.co/Qwen (table 1 of either paper, table 2 for the mixtures). All:
SwiGLU, RoPE base 1000000. Qwen2.5's vocabulary has 151665 tokens, padded to 151936 or 152064 rows; the three small
models tie their embeddings. Qwen3: heads of 128 regardless of the width, vocabulary 151936, context 40960 (32768 for
the answer and the rest for reasoning); the three small models are tied. The mixtures: 8 of 128 experts per token,
weights that sum to 1, untied; `intermediate_size` is config.json's, though no layer uses it. Their balance loss weight
is config.json's `router_aux_loss_coef` 0.001, whose loss is averaged over layers and k = 8 when balanced; ours is
summed over layers and 1 when balanced. (They balance over the global batch, section 2; ours balances within each
sequence.)
"""

from dataclasses import replace
from functools import partial
from typing import Any

from lit_gpt.models.config import GPTConfig, MoEConfig
from lit_gpt.models.families.config_json import (
    FULL,
    SLIDING,
    flag,
    integer,
    optional,
    read_layers,
    required,
    shortest_pattern,
    write_layers,
)
from lit_gpt.models.families.decoder import (
    decoder_entries,
    expert_entries,
    moe_or_mlp,
    read_balance,
    read_shared,
    require_llama,
    require_moe,
    write_balance,
    write_shared,
)
from lit_gpt.models.families.family import ANY, Family, GGUFArchitecture
from lit_gpt.models.families.weights import Entry, entry


def read_qwen2(values: dict[str, Any]) -> GPTConfig:
    """Convert a `Qwen2Config` to a `GPTConfig`."""
    fields = read_shared(values) | {"attention_bias": True, "attention_out_bias": False}
    return GPTConfig(**fields, **read_windows(values, fields["n_layer"], fields["block_size"]), family="qwen2")


def read_windows(values: dict[str, Any], n_layer: int, block_size: int) -> dict[str, Any]:
    """Return which layers use a sliding window: from `max_window_layers` on, unless `layer_types` lists them."""
    window = values.get("sliding_window", 4096) if flag(values, "use_sliding_window", False) else None
    first = integer(values, "max_window_layers", 28)
    types = values.get("layer_types") or [SLIDING if layer >= first else FULL for layer in range(n_layer)]
    return read_layers(types, window, block_size)


def write_windows(config: GPTConfig) -> dict[str, Any]:
    """Return config.json's keys; the inverse of `read_windows`."""
    slides = [config.slides(layer) for layer in range(config.n_layer)]
    return {
        "use_sliding_window": any(slides),
        "max_window_layers": slides.index(True) if any(slides) else config.n_layer,
        **write_layers(config),
    }


def write_qwen2(config: GPTConfig) -> dict[str, Any]:
    """Convert a `GPTConfig` to a `Qwen2Config`."""
    require_llama(config, has_attention_bias=True, sliding_window=ANY)
    return {**write_shared(config), **write_windows(config)}


QWEN2 = Family(
    name="qwen2",
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    read_config=read_qwen2,
    write_config=write_qwen2,
    entries=decoder_entries,
    gguf=GGUFArchitecture("qwen2", own_width=False),
    buffers=(".rotary_emb.inv_freq",),
)


def read_qwen3(values: dict[str, Any]) -> GPTConfig:
    """Convert a `Qwen3Config` to a `GPTConfig`."""
    fields = read_shared({"head_dim": 128} | values)
    windows = read_windows(values, fields["n_layer"], fields["block_size"])
    return GPTConfig(**fields, qk_norm="head", **windows, family="qwen3")


def write_qwen3(config: GPTConfig) -> dict[str, Any]:
    """Convert a `GPTConfig` to a `Qwen3Config`."""
    bias = config.has_attention_bias
    require_llama(config, has_attention_bias=ANY, has_attention_out_bias=bias, qk_norm="head", sliding_window=ANY)
    return {**write_shared(config), **write_windows(config)}


QWEN3 = Family(
    name="qwen3",
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    read_config=read_qwen3,
    write_config=write_qwen3,
    entries=decoder_entries,
    gguf=GGUFArchitecture("qwen3", fixed={"qk_norm": "head"}),
)


_QWEN3_MOE_AUX = "router_aux_loss_coef"


def read_qwen3_moe(values: dict[str, Any]) -> GPTConfig:
    """Convert a `Qwen3MoeConfig` to a `GPTConfig`."""
    values = {"num_key_value_heads": 4, _QWEN3_MOE_AUX: 0.001} | values
    fields = read_shared(values)
    n_layer, step = fields["n_layer"], integer(values, "decoder_sparse_step", 1, least=1)
    dense = set(values.get("mlp_only_layers") or ())
    pattern = shortest_pattern([layer not in dense and (layer + 1) % step == 0 for layer in range(n_layer)])
    moe = MoEConfig(
        num_experts=values.get("num_local_experts") or required(values, "num_experts"),
        num_experts_per_tok=required(values, "num_experts_per_tok"),
        intermediate_size=required(values, "moe_intermediate_size"),
        layers=None if pattern == (True,) else pattern,
        norm_topk_prob=optional(values, "norm_topk_prob", False),
        **read_balance(values, _QWEN3_MOE_AUX),
    )
    # The class applies the window to every layer and ignores max_window_layers.
    window = values.get("sliding_window", 4096) if flag(values, "use_sliding_window", False) else None
    windows = read_layers([SLIDING] * n_layer, window, fields["block_size"])
    return GPTConfig(**fields, qk_norm="head", moe=moe, **windows, family="qwen3_moe")


def write_qwen3_moe(config: GPTConfig) -> dict[str, Any]:
    """Convert a `GPTConfig` to a `Qwen3MoeConfig`."""
    bias = config.has_attention_bias
    require_llama(
        config,
        has_attention_bias=ANY,
        has_attention_out_bias=bias,
        qk_norm="head",
        moe=ANY,
        sliding_window=ANY,
        layer_windows=None,
    )
    moe = require_moe(config, norm_topk_prob=ANY)
    return {
        **write_shared(config),
        "use_sliding_window": config.sliding_window is not None,
        "sliding_window": config.sliding_window,
        "num_experts": moe.num_experts,
        "num_experts_per_tok": moe.num_experts_per_tok,
        "moe_intermediate_size": config.expert_size,
        "norm_topk_prob": moe.norm_topk_prob,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [layer for layer in range(config.n_layer) if not config.is_moe(layer)],
        **write_balance(config, _QWEN3_MOE_AUX),
    }


def _qwen3_moe_mixture(config: GPTConfig, hf: str, local: str) -> list[Entry]:
    router = entry(f"{hf}mlp.gate.weight", f"{local}mlp.router.weight")
    return [router, *expert_entries(config, f"{hf}mlp.experts.", f"{local}mlp.experts.")]


QWEN3_MOE = Family(
    name="qwen3_moe",
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    read_config=read_qwen3_moe,
    write_config=write_qwen3_moe,
    entries=partial(decoder_entries, mlp=moe_or_mlp(_qwen3_moe_mixture)),
    gguf=GGUFArchitecture(
        "qwen3moe", demands={"moe.norm_topk_prob": True, "moe.layers": None}, fixed={"qk_norm": "head"}
    ),
)


_QWEN2 = GPTConfig(
    vocab_size=152064,
    block_size=131072,
    bias=False,
    attention_bias=True,
    attention_out_bias=False,
    norm="rmsnorm",
    norm_eps=1e-6,
    positions="rope",
    rope_theta=1_000_000.0,
    mlp="swiglu",
    tie_embeddings=False,
    scale_residual_init=False,
    family="qwen2",
)
_QWEN2_TIED = replace(_QWEN2, vocab_size=151936, tie_embeddings=True)
_QWEN2_WIDE = replace(_QWEN2, norm_eps=1e-5, n_head=40, n_kv_head=8, n_embd=5120)


_QWEN3 = GPTConfig(
    n_head=32,
    n_kv_head=8,
    head_size=128,
    vocab_size=151936,
    block_size=40960,
    bias=False,
    norm="rmsnorm",
    norm_eps=1e-6,
    positions="rope",
    rope_theta=1000000.0,
    mlp="swiglu",
    qk_norm="head",
    tie_embeddings=False,
    scale_residual_init=False,
    family="qwen3",
)
_QWEN3_TIED = replace(_QWEN3, tie_embeddings=True)


_QWEN3_MOE = replace(_QWEN3, n_kv_head=4, family="qwen3_moe")
_30B = MoEConfig(num_experts=128, num_experts_per_tok=8, intermediate_size=768, balance_loss_weight=0.001 * 8 / 48)
_235B = MoEConfig(num_experts=128, num_experts_per_tok=8, intermediate_size=1536, balance_loss_weight=0.001 * 8 / 94)


FAMILIES = (QWEN2, QWEN3, QWEN3_MOE)
PRESETS: dict[str, GPTConfig] = {
    "qwen2.5-0.5b": replace(
        _QWEN2_TIED, n_layer=24, n_head=14, n_kv_head=2, n_embd=896, intermediate_size=4864, block_size=32768
    ),
    "qwen2.5-1.5b": replace(_QWEN2_TIED, n_layer=28, n_head=12, n_kv_head=2, n_embd=1536, intermediate_size=8960),
    "qwen2.5-3b": replace(
        _QWEN2_TIED, n_layer=36, n_head=16, n_kv_head=2, n_embd=2048, intermediate_size=11008, block_size=32768
    ),
    "qwen2.5-7b": replace(_QWEN2, n_layer=28, n_head=28, n_kv_head=4, n_embd=3584, intermediate_size=18944),
    "qwen2.5-14b": replace(_QWEN2_WIDE, n_layer=48, intermediate_size=13824),
    "qwen2.5-32b": replace(_QWEN2_WIDE, n_layer=64, intermediate_size=27648),
    "qwen2.5-72b": replace(_QWEN2_WIDE, n_layer=80, n_head=64, n_embd=8192, intermediate_size=29568),
    "qwen3-0.6b": replace(_QWEN3_TIED, n_layer=28, n_head=16, n_embd=1024, intermediate_size=3072),
    "qwen3-1.7b": replace(_QWEN3_TIED, n_layer=28, n_head=16, n_embd=2048, intermediate_size=6144),
    "qwen3-4b": replace(_QWEN3_TIED, n_layer=36, n_head=32, n_embd=2560, intermediate_size=9728),
    "qwen3-8b": replace(_QWEN3, n_layer=36, n_head=32, n_embd=4096, intermediate_size=12288),
    "qwen3-14b": replace(_QWEN3, n_layer=40, n_head=40, n_embd=5120, intermediate_size=17408),
    "qwen3-32b": replace(_QWEN3, n_layer=64, n_head=64, n_embd=5120, intermediate_size=25600),
    "qwen3-30b-a3b": replace(_QWEN3_MOE, n_layer=48, n_head=32, n_embd=2048, intermediate_size=6144, moe=_30B),
    "qwen3-235b-a22b": replace(_QWEN3_MOE, n_layer=94, n_head=64, n_embd=4096, intermediate_size=12288, moe=_235B),
}

PUBLISHED: dict[str, int] = {
    # Sizes on huggingface.co/Qwen.
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    # Sizes on huggingface.co/Qwen, minus the tied head, which the files of the three small models also store.
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    # Sizes on huggingface.co/Qwen (30.5B and 235B).
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
}
