"""Qwen3's dense models as `transformers.Qwen3ForCausalLM` stores them: Llama's layout, QK-norm, sliding layers."""

from typing import Any

from lit_gpt.checkpoints.huggingface.family import Family, demand
from lit_gpt.checkpoints.huggingface.llama import entries, read_shared, write_shared
from lit_gpt.models import GPTConfig

_SLIDING, _FULL = "sliding_attention", "full_attention"


def read_config(values: dict[str, Any]) -> GPTConfig:
    """`Qwen3Config` → ours."""
    window, layers = None, None
    if values.get("use_sliding_window", False) and values.get("sliding_window") is not None:
        window = values["sliding_window"]
        n_layer, first = values["num_hidden_layers"], values.get("max_window_layers", 28)
        types = values.get("layer_types") or [_SLIDING if layer >= first else _FULL for layer in range(n_layer)]
        layers = tuple(kind == _SLIDING for kind in types)
        if not any(layers):
            window, layers = None, None
    return GPTConfig(
        **read_shared(values),
        qk_norm=True,
        sliding_window=window,
        layer_windows=layers,
        family="qwen3",
    )


def write_config(config: GPTConfig) -> dict[str, Any]:
    """Ours → `Qwen3Config`."""
    demand(config, "qwen3", qk_norm=True, has_mlp_bias=False)
    windows = [config.window(layer) is not None for layer in range(config.n_layer)]
    return {
        **write_shared(config),
        "use_sliding_window": any(windows),
        "sliding_window": config.sliding_window,
        "max_window_layers": windows.index(True) if any(windows) else config.n_layer,
        "layer_types": [_SLIDING if slides else _FULL for slides in windows],
    }


QWEN3 = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    base_prefix="model.",
    read_config=read_config,
    write_config=write_config,
    entries=entries,
)
