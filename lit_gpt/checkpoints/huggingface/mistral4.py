"""Mistral 4 as `transformers.Mistral4ForCausalLM` stores it: DeepSeek-V3's attention, softmax routing, long YaRN.

The experts of a layer are two stacked tensors, gate and up end to end. On the hub the model also sees; its language
part is what is read (`multimodal.py`). AutoModelForCausalLM does not know the class: open an export with
`Mistral4ForCausalLM.from_pretrained`.
"""

from functools import partial
from typing import Any

from lit_gpt.checkpoints.huggingface.experts import moe_or_mlp, read_balance, write_balance
from lit_gpt.checkpoints.huggingface.family import Entry, Family, entry
from lit_gpt.checkpoints.huggingface.latent import latent_entries, read_latent, shared_expert_entries, write_latent
from lit_gpt.checkpoints.huggingface.layout import Split
from lit_gpt.checkpoints.huggingface.rope import with_default_rope, write_rope
from lit_gpt.checkpoints.huggingface.shared import decoder_entries
from lit_gpt.errors import UserError
from lit_gpt.models import GPTConfig

_DEFAULTS = {
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
_DEFAULT_ROPE = {
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
"""Both `Mistral4Config`'s, where a file says nothing."""


def read_config(values: dict[str, Any]) -> GPTConfig:
    """`Mistral4Config` → ours."""
    values = with_default_rope(values, _DEFAULT_ROPE)
    return GPTConfig(**read_latent(values, _DEFAULTS, **read_balance(values)), family="mistral4")


def write_config(config: GPTConfig) -> dict[str, Any]:
    """Ours → `Mistral4Config`."""
    if config.rope_scaling is None or config.rope_scaling.kind != "yarn":  # its class needs the original context
        raise UserError("family 'mistral4' needs rope_scaling (kind: yarn); without it, export as family: deepseek_v3")
    parameters = write_rope(config, query_scale=True)["rope_parameters"]
    if config.mla is not None:  # its class takes the rotated width from here
        parameters["partial_rotary_factor"] = config.mla.qk_rope_head_dim / config.mla.qk_head_dim
    return {**write_latent(config, {"rope_parameters": parameters}), **write_balance(config)}


def _mixture(config: GPTConfig, theirs: str, ours: str) -> list[Entry]:
    gate_and_up = Split((config.expert_size, config.expert_size), dim=1)
    stacks = [f"{ours}mlp.experts.{part}_proj" for part in ("gate", "up")]
    return [
        entry(f"{theirs}mlp.gate.weight", f"{ours}mlp.router.weight"),
        entry(f"{theirs}mlp.experts.gate_up_proj", stacks, gate_and_up),
        entry(f"{theirs}mlp.experts.down_proj", f"{ours}mlp.experts.down_proj"),
        *shared_expert_entries(theirs, ours),
    ]


MISTRAL4 = Family(
    model_type="mistral4",
    architecture="Mistral4ForCausalLM",
    base_prefix="model.",
    read_config=read_config,
    write_config=write_config,
    entries=partial(decoder_entries, attention=latent_entries, mlp=moe_or_mlp(_mixture)),
)
