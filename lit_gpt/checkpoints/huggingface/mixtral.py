"""Mixtral as `transformers.MixtralForCausalLM` stores it: Mistral with experts in every layer."""

from functools import partial
from typing import Any

from lit_gpt.checkpoints.huggingface.experts import demand_moe, expert_entries, read_balance, write_balance
from lit_gpt.checkpoints.huggingface.family import Entry, Family, entry, expect, required
from lit_gpt.checkpoints.huggingface.mistral import read_mistral
from lit_gpt.checkpoints.huggingface.shared import ANY, decoder_entries, demand_llama, write_shared
from lit_gpt.models import GPTConfig, MoEConfig

_THEIRS = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
_AUX = "router_aux_loss_coef"


def read_config(values: dict[str, Any]) -> GPTConfig:
    """`MixtralConfig` → ours."""
    expect(values, "router_jitter_noise", 0.0)
    values = {"num_experts_per_tok": 2, "rms_norm_eps": 1e-5, "rope_theta": 1e6, _AUX: 0.001} | values
    fields = read_mistral(values)
    moe = MoEConfig(
        num_experts=required(values, "num_local_experts"),
        num_experts_per_tok=values["num_experts_per_tok"],
        **read_balance(values, _AUX),
    )
    return GPTConfig(**fields, moe=moe, family="mixtral")


def write_config(config: GPTConfig) -> dict[str, Any]:
    """Ours → `MixtralConfig`."""
    demand_llama(config, moe=ANY, sliding_window=ANY, layer_windows=None)
    moe = demand_moe(config, every_layer=True, one_width=True)
    values = {key: value for key, value in write_shared(config).items() if key != "attention_bias"}
    return {
        **values,
        "sliding_window": config.sliding_window,
        "num_local_experts": moe.num_experts,
        "num_experts_per_tok": moe.num_experts_per_tok,
        **write_balance(config, _AUX),
    }


def _mixture(config: GPTConfig, theirs: str, ours: str) -> list[Entry]:
    router = entry(f"{theirs}block_sparse_moe.gate.weight", f"{ours}mlp.router.weight")
    return [router, *expert_entries(config, f"{theirs}block_sparse_moe.experts.", f"{ours}mlp.experts.", _THEIRS)]


MIXTRAL = Family(
    model_type="mixtral",
    architecture="MixtralForCausalLM",
    base_prefix="model.",
    read_config=read_config,
    write_config=write_config,
    entries=partial(decoder_entries, mlp=_mixture),
)
