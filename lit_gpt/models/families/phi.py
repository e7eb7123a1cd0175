"""Phi-3 (arXiv:2404.14219), Phi-4 (arXiv:2412.08905) and Phi-4-mini (arXiv:2503.01743), as `transformers` stores them.

q, k and v are one matrix `qkv_proj`, in parts that differ in size with grouped queries; gate and up are one matrix
`gate_up_proj`.

Presets are from the `config.json` of huggingface.co/microsoft. All: RMSNorm eps 1e-5, SwiGLU, no biases. The models
with a context of 128k scale RoPE by LongRoPE from 4096 tokens, with the divisors of their `rope_scaling`. Phi-3-small
and the mixtures of experts have other architectures.
"""

from dataclasses import replace
from typing import Any

from lit_gpt.errors import UserError
from lit_gpt.models.config import GPTConfig, RopeScaling
from lit_gpt.models.families.config_json import FULL, SLIDING, expect, read_layers, read_rope
from lit_gpt.models.families.decoder import decoder_entries, read_sizes, require_llama, write_shared
from lit_gpt.models.families.family import ANY, Family, GGUFArchitecture, MetadataValue
from lit_gpt.models.families.weights import Entry, Split, entry


def read_config(values: dict[str, Any]) -> GPTConfig:
    """Convert a `Phi3Config` to a `GPTConfig`; of its three dropouts that of attention is used."""
    expect(values, "hidden_act", "silu")
    values = {"original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5} | values
    for place in ("rope_parameters", "rope_scaling"):  # both older names mean longrope
        parameters = values.get(place)
        if parameters and parameters.get("rope_type", parameters.get("type")) in ("su", "yarn"):
            values[place] = parameters | {"rope_type": "longrope"}
    fields = read_sizes(values)
    window = values.get("sliding_window")
    kind = FULL if window is None else SLIDING
    return GPTConfig(
        **fields,
        **read_rope(values, default_fraction=1.0),
        **read_layers([kind] * fields["n_layer"], window, fields["block_size"]),
        mlp="swiglu",
        attention_bias=False,
        family="phi3",
    )


def write_config(config: GPTConfig) -> dict[str, Any]:
    """Convert a `GPTConfig` to a `Phi3Config`.

    Raises:
        UserError: RoPE is scaled in another way than `longrope`.
    """
    require_llama(config, sliding_window=ANY, layer_windows=None, rope_fraction=ANY)
    scaling = config.rope_scaling
    if scaling is not None and scaling.kind != "longrope":
        raise UserError(f"family 'phi3' cannot express rope_scaling of kind {scaling.kind!r} (only 'longrope')")
    written = write_shared(config)
    del written["attention_bias"]
    return {
        **written,
        "original_max_position_embeddings": 4096 if scaling is None else scaling.original_block_size,
        "sliding_window": config.sliding_window,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
    }


def _attention(config: GPTConfig, hf: str, local: str) -> list[Entry]:
    q, kv = config.n_head * config.head_dim, config.num_kv_heads * config.head_dim
    parts = [f"{local}attn.{part}_proj.weight" for part in "qkv"]
    return [
        entry(f"{hf}self_attn.qkv_proj.weight", parts, Split((q, kv, kv))),
        entry(f"{hf}self_attn.o_proj.weight", f"{local}attn.o_proj.weight"),
    ]


def _mlp(config: GPTConfig, hf: str, local: str) -> list[Entry]:
    parts = [f"{local}mlp.{part}_proj.weight" for part in ("gate", "up")]
    return [
        entry(f"{hf}mlp.gate_up_proj.weight", parts, Split((config.mlp_size, config.mlp_size))),
        entry(f"{hf}mlp.down_proj.weight", f"{local}mlp.down_proj.weight"),
    ]


def entries(config: GPTConfig) -> list[Entry]:
    """Return the weight table: all tensors of the checkpoint."""
    return decoder_entries(config, attention=_attention, mlp=_mlp)


def _gguf_settings(config: GPTConfig) -> dict[str, MetadataValue]:
    """Return what llama.cpp always requires: the original context, and 0 for no window."""
    scaling = config.rope_scaling
    original = config.block_size if scaling is None else scaling.original_block_size
    window: dict[str, MetadataValue] = {} if config.sliding_window else {"attention.sliding_window": 0}
    return {"rope.scaling.original_context_length": original, **window}


PHI3 = Family(
    name="phi3",
    model_type="phi3",
    architecture="Phi3ForCausalLM",
    read_config=read_config,
    write_config=write_config,
    entries=entries,
    gguf=GGUFArchitecture(
        "phi3",
        fused_qkv=True,
        fused_gate_up=True,
        own_width=False,
        demands={"rope_fraction": ANY},
        scalings=("longrope",),
        settings=_gguf_settings,
    ),
)


_PHI3 = GPTConfig(
    vocab_size=32064,
    block_size=4096,
    bias=False,
    norm="rmsnorm",
    norm_eps=1e-5,
    positions="rope",
    rope_theta=10000.0,
    mlp="swiglu",
    sliding_window=2047,
    tie_embeddings=False,
    scale_residual_init=False,
    family="phi3",
)
_MINI = replace(_PHI3, n_layer=32, n_head=32, n_embd=3072, intermediate_size=8192)
_LONG = {"block_size": 131072, "sliding_window": None}  # windows of 262144 have no effect

# fmt: off
_PHI35_SHORT = (
    1.0, 1.0199999809265137, 1.0299999713897705, 1.0299999713897705, 1.0499999523162842, 1.0499999523162842,
    1.0499999523162842, 1.0499999523162842, 1.0499999523162842, 1.0699999332427979, 1.0999999046325684,
    1.1099998950958252, 1.1599998474121094, 1.1599998474121094, 1.1699998378753662, 1.2899998426437378,
    1.339999794960022, 1.679999828338623, 1.7899998426437378, 1.8199998140335083, 1.8499997854232788,
    1.8799997568130493, 1.9099997282028198, 1.9399996995925903, 1.9899996519088745, 2.0199997425079346,
    2.0199997425079346, 2.0199997425079346, 2.0199997425079346, 2.0199997425079346, 2.0199997425079346,
    2.0299997329711914, 2.0299997329711914, 2.0299997329711914, 2.0299997329711914, 2.0299997329711914,
    2.0299997329711914, 2.0299997329711914, 2.0299997329711914, 2.0299997329711914, 2.0799996852874756,
    2.0899996757507324, 2.189999580383301, 2.2199995517730713, 2.5899994373321533, 2.729999542236328,
    2.749999523162842, 2.8399994373321533,
)
_PHI35_LONG = (
    1.0800000429153442, 1.1100000143051147, 1.1399999856948853, 1.340000033378601, 1.5899999141693115,
    1.600000023841858, 1.6200000047683716, 2.620000123977661, 3.2300000190734863, 3.2300000190734863,
    4.789999961853027, 7.400000095367432, 7.700000286102295, 9.09000015258789, 12.199999809265137,
    17.670000076293945, 24.46000099182129, 28.57000160217285, 30.420001983642578, 30.840002059936523,
    32.590003967285156, 32.93000411987305, 42.320003509521484, 44.96000289916992, 50.340003967285156,
    50.45000457763672, 57.55000305175781, 57.93000411987305, 58.21000289916992, 60.1400032043457,
    62.61000442504883, 62.62000274658203, 62.71000289916992, 63.1400032043457, 63.1400032043457, 63.77000427246094,
    63.93000411987305, 63.96000289916992, 63.970001220703125, 64.02999877929688, 64.06999969482422,
    64.08000183105469, 64.12000274658203, 64.41000366210938, 64.4800033569336, 64.51000213623047,
    64.52999877929688, 64.83999633789062,
)
_PHI4_MINI_LONG = (
    1.0, 1.118320672, 1.250641126, 1.398617824, 1.564103225, 1.74916897, 1.956131817, 2.187582649, 2.446418898,
    2.735880826, 3.059592084, 3.421605075, 3.826451687, 4.279200023, 4.785517845, 5.351743533, 5.984965424,
    6.693110555, 7.485043894, 8.370679318, 9.36110372, 10.4687158, 11.70738129, 13.09260651, 14.64173252, 16.37415215,
    18.31155283, 20.47818807, 22.90118105, 25.61086418, 28.64115884, 32.03, 32.1, 32.13, 32.23, 32.6, 32.61, 32.64,
    32.66, 32.7, 32.71, 32.93, 32.97, 33.28, 33.49, 33.5, 44.16, 47.77,
)
# fmt: on


def _longrope(short: tuple[float, ...], long: tuple[float, ...]) -> RopeScaling:
    """Return a scaling from 4096 to 131072 tokens."""
    return RopeScaling("longrope", 32.0, original_block_size=4096, short_factors=short, long_factors=long)


PRESETS: dict[str, GPTConfig] = {
    "phi-3-mini-4k": _MINI,
    "phi-3.5-mini": _MINI.overridden({**_LONG, "rope_scaling": _longrope(_PHI35_SHORT, _PHI35_LONG)}),
    "phi-3-medium-4k": replace(_PHI3, n_layer=40, n_head=40, n_kv_head=10, n_embd=5120, intermediate_size=17920),
    "phi-4": replace(
        _PHI3,
        n_layer=40,
        n_head=40,
        n_kv_head=10,
        n_embd=5120,
        intermediate_size=17920,
        vocab_size=100352,
        block_size=16384,
        rope_theta=250000.0,
        sliding_window=None,
    ),
    "phi-4-mini": _MINI.overridden(
        {
            **_LONG,
            "n_head": 24,
            "n_kv_head": 8,
            "vocab_size": 200064,
            "rope_fraction": 0.75,
            "rope_scaling": _longrope((1.0,) * 48, _PHI4_MINI_LONG),
            "tie_embeddings": True,
        }
    ),
}

# Sizes on huggingface.co/microsoft.
PUBLISHED: dict[str, int] = {
    "phi-3-mini-4k": 3_821_079_552,
    "phi-3.5-mini": 3_821_079_552,
    "phi-3-medium-4k": 13_960_238_080,
    "phi-4": 14_659_507_200,
    "phi-4-mini": 3_836_021_760,
}


FAMILIES = (PHI3,)
