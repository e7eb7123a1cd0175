"""Mistral's lineage: Mistral, Ministral, Ministral 3, Mixtral and Mistral 4, as `transformers` stores them.

- Mistral (arXiv:2310.06825): Llama's layout; either all layers use a sliding window, or none.
- Ministral (2024): selected layers use a sliding window.
- Ministral 3 (arXiv:2601.08584): YaRN, and queries scaled by position.
- Mixtral (arXiv:2401.04088): experts in every layer.
- Mistral 4: DeepSeek-V3's attention (`deepseek.py`), a softmax router, long YaRN. The experts of a layer are two
  stacked tensors, with gate and up concatenated. AutoModelForCausalLM does not know the class: open an export with
  `Mistral4ForCausalLM.from_pretrained`.

Since Small 3.1 the models on the Hub are multimodal; only their language model is read.

Presets are from the `config.json` of huggingface.co/mistralai, Mistral 4's from transformers' Mistral4Config, whose
defaults are those of Mistral Small 4 (2603). All: RMSNorm, SwiGLU, no biases. Of the dense models only the first 7B
uses a sliding window; Ministral 3 scales RoPE by YaRN from 16384 to 262144 tokens (its 8B's values are the defaults of
Ministral3Config), Mistral 4 from 8192 to 1048576. Mixtral's balance loss weight is config.json's
`router_aux_loss_coef` 0.001 (0.02 in the first), whose loss is averaged over layers and k = 2 when balanced; ours is
summed over layers and 1 when balanced. How Mistral 4's load was balanced has not been published: set
`moe.balance_loss_weight` to train it from scratch.
"""

from dataclasses import replace
from functools import partial
from typing import Any

from lit_gpt.errors import UserError
from lit_gpt.models.config import GPTConfig, MLAConfig, MoEConfig, RopeScaling
from lit_gpt.models.families.config_json import (
    FULL,
    SLIDING,
    expect,
    read_layers,
    required,
    with_default_rope,
    write_layers,
    write_rope,
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
from lit_gpt.models.families.deepseek import latent_entries, latent_fields, latent_values, shared_expert_entries
from lit_gpt.models.families.family import ANY, Family
from lit_gpt.models.families.llama import LLAMA_GGUF
from lit_gpt.models.families.weights import Entry, Split, entry


def read_mistral(values: dict[str, Any]) -> GPTConfig:
    """Convert a `MistralConfig` to a `GPTConfig`."""
    return GPTConfig(**mistral_fields({"sliding_window": 4096} | values), family="mistral")


def mistral_fields(values: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that Mistral, Ministral 3 and Mixtral store in the same way."""
    shared = read_shared({"num_key_value_heads": 8} | values)
    window = values.get("sliding_window")  # transformers reads only the window and ignores layer_types
    kind = FULL if window is None else SLIDING
    return {**shared, "attention_bias": False, **read_layers([kind] * shared["n_layer"], window, shared["block_size"])}


def write_mistral(config: GPTConfig) -> dict[str, Any]:
    """Convert a `GPTConfig` to a `MistralConfig`."""
    require_llama(config, sliding_window=ANY, layer_windows=None)
    return {**write_shared(config), "sliding_window": config.sliding_window}


MISTRAL = Family(
    name="mistral",
    model_type="mistral",
    architecture="MistralForCausalLM",
    read_config=read_mistral,
    write_config=write_mistral,
    entries=decoder_entries,
    buffers=(".rotary_emb.inv_freq",),
    text_part_of=("mistral3",),
    gguf=LLAMA_GGUF,
)


def read_ministral(values: dict[str, Any]) -> GPTConfig:
    """Convert a `MinistralConfig` to a `GPTConfig`."""
    fields = mistral_fields(values)
    window = values.get("sliding_window", 4096)
    types = values.get("layer_types") or [FULL if window is None else SLIDING] * fields["n_layer"]
    return GPTConfig(**fields | read_layers(types, window, fields["block_size"]), family="ministral")


def write_ministral(config: GPTConfig) -> dict[str, Any]:
    """Convert a `GPTConfig` to a `MinistralConfig`."""
    require_llama(config, sliding_window=ANY)
    return {**write_shared(config), **write_layers(config, needs_window=True)}


MINISTRAL = Family(
    name="ministral",
    model_type="ministral",
    architecture="MinistralForCausalLM",
    read_config=read_ministral,
    write_config=write_ministral,
    entries=decoder_entries,
)


_MINISTRAL3_DEFAULT_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1_000_000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale_all_dim": 1.0,
    "mscale": 1.0,
    "llama_4_scaling_beta": 0.1,
}
"""Defaults of `Ministral3Config`, for files without RoPE."""


def read_ministral3(values: dict[str, Any]) -> GPTConfig:
    """Convert a `Ministral3Config` to a `GPTConfig`."""
    values = with_default_rope({"rms_norm_eps": 1e-5} | values, _MINISTRAL3_DEFAULT_ROPE)
    return GPTConfig(**mistral_fields(values), family="ministral3")


def write_ministral3(config: GPTConfig) -> dict[str, Any]:
    """Convert a `GPTConfig` to a `Ministral3Config`.

    Raises:
        UserError: RoPE is not scaled in a way that has an original context, which the class needs.
    """
    require_llama(config, sliding_window=ANY, layer_windows=None)
    if config.rope_scaling is None or config.rope_scaling.kind not in ("yarn", "llama3", "longrope"):
        # The transformers class divides by the original context, which only these kinds have.
        raise UserError("family 'ministral3' needs rope_scaling (kind: yarn); without it, export as family: mistral")
    return {**write_shared(config, write_rope(config, query_scale=True)), "sliding_window": config.sliding_window}


MINISTRAL3 = Family(
    name="ministral3",
    model_type="ministral3",
    architecture="Ministral3ForCausalLM",
    read_config=read_ministral3,
    write_config=write_ministral3,
    entries=decoder_entries,
)


_MIXTRAL_NAMES = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
_MIXTRAL_AUX = "router_aux_loss_coef"


def read_mixtral(values: dict[str, Any]) -> GPTConfig:
    """Convert a `MixtralConfig` to a `GPTConfig`."""
    expect(values, "router_jitter_noise", 0.0)
    values = {"num_experts_per_tok": 2, "rms_norm_eps": 1e-5, "rope_theta": 1e6, _MIXTRAL_AUX: 0.001} | values
    fields = mistral_fields(values)
    moe = MoEConfig(
        num_experts=required(values, "num_local_experts"),
        num_experts_per_tok=values["num_experts_per_tok"],
        **read_balance(values, _MIXTRAL_AUX),
    )
    return GPTConfig(**fields, moe=moe, family="mixtral")


def write_mixtral(config: GPTConfig) -> dict[str, Any]:
    """Convert a `GPTConfig` to a `MixtralConfig`."""
    require_llama(config, moe=ANY, sliding_window=ANY, layer_windows=None)
    moe = require_moe(config, all_layers=True, uniform_width=True)
    values = {key: value for key, value in write_shared(config).items() if key != "attention_bias"}
    return {
        **values,
        "sliding_window": config.sliding_window,
        "num_local_experts": moe.num_experts,
        "num_experts_per_tok": moe.num_experts_per_tok,
        **write_balance(config, _MIXTRAL_AUX),
    }


def _mixtral_mixture(config: GPTConfig, hf: str, local: str) -> list[Entry]:
    router = entry(f"{hf}block_sparse_moe.gate.weight", f"{local}mlp.router.weight")
    return [router, *expert_entries(config, f"{hf}block_sparse_moe.experts.", f"{local}mlp.experts.", _MIXTRAL_NAMES)]


MIXTRAL = Family(
    name="mixtral",
    model_type="mixtral",
    architecture="MixtralForCausalLM",
    read_config=read_mixtral,
    write_config=write_mixtral,
    entries=partial(decoder_entries, mlp=_mixtral_mixture),
    gguf=LLAMA_GGUF,
)


_MISTRAL4_DEFAULTS = {
    "num_experts_per_tok": 4,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
    "first_k_dense_replace": 0,
    "kv_lora_rank": 256,
    "q_lora_rank": 1024,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}
_MISTRAL4_DEFAULT_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 128.0,
    "original_max_position_embeddings": 8192,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale_all_dim": 1.0,
    "mscale": 1.0,
    "llama_4_scaling_beta": 0.1,
}
"""Defaults of `Mistral4Config`, for keys missing in a file."""


def read_mistral4(values: dict[str, Any]) -> GPTConfig:
    """Convert a `Mistral4Config` to a `GPTConfig`."""
    values = with_default_rope(values, _MISTRAL4_DEFAULT_ROPE)
    return GPTConfig(**latent_fields(values, _MISTRAL4_DEFAULTS, **read_balance(values)), family="mistral4")


def write_mistral4(config: GPTConfig) -> dict[str, Any]:
    """Convert a `GPTConfig` to a `Mistral4Config`.

    Raises:
        UserError: RoPE is not scaled by YaRN, which the class needs.
    """
    if config.rope_scaling is None or config.rope_scaling.kind != "yarn":  # the class needs the original context
        raise UserError("family 'mistral4' needs rope_scaling (kind: yarn); without it, export as family: deepseek_v3")
    parameters = write_rope(config, query_scale=True)["rope_parameters"]
    if config.mla is not None:  # the class reads the rotary width from this key
        parameters["partial_rotary_factor"] = config.mla.qk_rope_head_dim / config.mla.qk_head_dim
    return {**latent_values(config, {"rope_parameters": parameters}), **write_balance(config)}


def _mistral4_mixture(config: GPTConfig, hf: str, local: str) -> list[Entry]:
    gate_and_up = Split((config.expert_size, config.expert_size), dim=1)
    stacks = [f"{local}mlp.experts.{part}_proj" for part in ("gate", "up")]
    return [
        entry(f"{hf}mlp.gate.weight", f"{local}mlp.router.weight"),
        entry(f"{hf}mlp.experts.gate_up_proj", stacks, gate_and_up),
        entry(f"{hf}mlp.experts.down_proj", f"{local}mlp.experts.down_proj"),
        *shared_expert_entries(hf, local),
    ]


MISTRAL4 = Family(
    name="mistral4",
    model_type="mistral4",
    architecture="Mistral4ForCausalLM",
    read_config=read_mistral4,
    write_config=write_mistral4,
    entries=partial(decoder_entries, attention=latent_entries, mlp=moe_or_mlp(_mistral4_mixture)),
)


_MISTRAL = GPTConfig(
    n_head=32,
    n_kv_head=8,
    head_size=128,
    vocab_size=32768,
    block_size=32768,
    bias=False,
    norm="rmsnorm",
    norm_eps=1e-5,
    positions="rope",
    rope_theta=1_000_000.0,
    mlp="swiglu",
    tie_embeddings=False,
    scale_residual_init=False,
    family="mistral",
)
_7B = replace(_MISTRAL, n_layer=32, n_embd=4096, intermediate_size=14336)
_12B = replace(_MISTRAL, n_layer=40, n_embd=5120, intermediate_size=14336, vocab_size=131072)
_MINISTRAL3 = replace(
    _MISTRAL,
    vocab_size=131072,
    block_size=262144,
    rope_scaling=RopeScaling(
        "yarn", 16.0, original_block_size=16384, mscale=1.0, mscale_all_dim=1.0, query_scale_beta=0.1
    ),
    family="ministral3",
)


_MIXTRAL = replace(_MISTRAL, head_size=None, vocab_size=32000, family="mixtral")
_8X7B = MoEConfig(num_experts=8, num_experts_per_tok=2, balance_loss_weight=0.02 * 2 / 32)
_8X22B = MoEConfig(num_experts=8, num_experts_per_tok=2, balance_loss_weight=0.001 * 2 / 56)


FAMILIES = (MISTRAL, MINISTRAL, MINISTRAL3, MIXTRAL, MISTRAL4)
PRESETS: dict[str, GPTConfig] = {
    "mistral-7b-v0.1": replace(_7B, vocab_size=32000, rope_theta=10000.0, sliding_window=4096),
    "mistral-7b-v0.2": replace(_7B, vocab_size=32000),
    "mistral-7b-v0.3": _7B,
    "mistral-nemo-12b": replace(_12B, block_size=131072),
    "mistral-small-24b": replace(_12B, intermediate_size=32768, rope_theta=100_000_000.0),  # 2501
    "ministral-3-3b": replace(_MINISTRAL3, n_layer=26, n_embd=3072, intermediate_size=9216, tie_embeddings=True),
    "ministral-3-8b": replace(_MINISTRAL3, n_layer=34, n_embd=4096, intermediate_size=14336),
    "mixtral-8x7b": replace(_MIXTRAL, n_layer=32, n_embd=4096, intermediate_size=14336, moe=_8X7B),
    "mixtral-8x22b": replace(
        _MIXTRAL, n_layer=56, n_head=48, n_embd=6144, intermediate_size=16384, block_size=65536, moe=_8X22B
    ),
    "mistral-small-4-119b": GPTConfig(
        n_layer=36,
        n_head=32,
        n_embd=4096,
        block_size=1_048_576,
        vocab_size=131072,
        bias=False,
        norm="rmsnorm",
        norm_eps=1e-6,
        positions="rope",
        rope_theta=10_000.0,
        rope_scaling=RopeScaling(
            "yarn", 128.0, original_block_size=8192, mscale=1.0, mscale_all_dim=1.0, query_scale_beta=0.1
        ),
        mlp="swiglu",
        intermediate_size=12288,
        mla=MLAConfig(kv_lora_rank=256, q_lora_rank=1024, qk_nope_head_dim=64, qk_rope_head_dim=64, v_head_dim=128),
        moe=MoEConfig(num_experts=128, num_experts_per_tok=4, intermediate_size=2048, shared_intermediate_size=2048),
        tie_embeddings=False,
        scale_residual_init=False,
        family="mistral4",
    ),
}

PUBLISHED: dict[str, int] = {
    # Sizes on huggingface.co/mistralai; Ministral 3's pages also count the vision encoder, so these two are from
    # transformers' Ministral3ForCausalLM, counted on the meta device (its model cards state 3.4B and 8.4B).
    "mistral-7b-v0.1": 7_241_732_096,
    "mistral-7b-v0.2": 7_241_732_096,
    "mistral-7b-v0.3": 7_248_023_552,
    "mistral-nemo-12b": 12_247_782_400,
    "mistral-small-24b": 23_572_403_200,
    "ministral-3-3b": 3_429_006_336,
    "ministral-3-8b": 8_489_553_920,
    # Sizes on huggingface.co/mistralai (46.7B and 141B).
    "mixtral-8x7b": 46_702_792_704,
    "mixtral-8x22b": 140_620_634_112,
    # The release states 119B; the exact number is from transformers' Mistral4ForCausalLM, counted on the meta device
    # (the Hub's page also counts the vision encoder).
    "mistral-small-4-119b": 118_972_826_624,
}
