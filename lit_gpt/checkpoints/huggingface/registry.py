"""Every family that is known, and config.json in both directions."""

from typing import Any

from lit_gpt.checkpoints.huggingface.deepseek_v3 import DEEPSEEK_V3
from lit_gpt.checkpoints.huggingface.family import Family
from lit_gpt.checkpoints.huggingface.gemma2 import GEMMA2
from lit_gpt.checkpoints.huggingface.gemma3 import GEMMA3
from lit_gpt.checkpoints.huggingface.gpt2 import GPT2
from lit_gpt.checkpoints.huggingface.gpt_neox import GPT_NEOX
from lit_gpt.checkpoints.huggingface.gpt_oss import GPT_OSS
from lit_gpt.checkpoints.huggingface.granite import GRANITE
from lit_gpt.checkpoints.huggingface.granite_swa import GRANITE_SWA
from lit_gpt.checkpoints.huggingface.llama import LLAMA
from lit_gpt.checkpoints.huggingface.ministral import MINISTRAL
from lit_gpt.checkpoints.huggingface.ministral3 import MINISTRAL3
from lit_gpt.checkpoints.huggingface.mistral import MISTRAL
from lit_gpt.checkpoints.huggingface.mistral4 import MISTRAL4
from lit_gpt.checkpoints.huggingface.mixtral import MIXTRAL
from lit_gpt.checkpoints.huggingface.multimodal import is_multimodal, text_part
from lit_gpt.checkpoints.huggingface.olmo2 import OLMO2
from lit_gpt.checkpoints.huggingface.olmo3 import OLMO3
from lit_gpt.checkpoints.huggingface.phi3 import PHI3
from lit_gpt.checkpoints.huggingface.quantized import check_quantization
from lit_gpt.checkpoints.huggingface.qwen2 import QWEN2
from lit_gpt.checkpoints.huggingface.qwen3 import QWEN3
from lit_gpt.checkpoints.huggingface.qwen3_moe import QWEN3_MOE
from lit_gpt.checkpoints.huggingface.smollm3 import SMOLLM3
from lit_gpt.errors import UserError
from lit_gpt.models import GPTConfig
from lit_gpt.suggest import nearest

_ALL = (
    DEEPSEEK_V3,
    GEMMA2,
    GEMMA3,
    GPT2,
    GPT_NEOX,
    GPT_OSS,
    GRANITE,
    GRANITE_SWA,
    LLAMA,
    MINISTRAL,
    MINISTRAL3,
    MISTRAL,
    MISTRAL4,
    MIXTRAL,
    OLMO2,
    OLMO3,
    PHI3,
    QWEN2,
    QWEN3,
    QWEN3_MOE,
    SMOLLM3,
)

FAMILIES: dict[str, Family] = {family.key: family for family in _ALL}
"""By `GPTConfig.family`."""
MODEL_TYPES: dict[str, Family] = {family.model_type: family for family in _ALL}
"""By config.json's `model_type`."""


def config_from_hf(values: dict[str, Any]) -> GPTConfig:
    """A config.json, parsed, as `GPTConfig`; of a model that also sees, its language model's.

    Raises:
        UserError: If the family is unknown (the nearest are named), the config asks for what we do not compute, or
            holds values that no such config can hold.
    """
    try:
        if is_multimodal(values):
            values = text_part(values)
        model_type = str(values.get("model_type"))
        if model_type not in MODEL_TYPES:
            raise UserError(
                f"model_type {model_type!r} cannot be imported; nearest: {nearest(model_type, MODEL_TYPES)}"
            )
        check_quantization(values)
        return MODEL_TYPES[model_type].read_config(values)
    except UserError:
        raise
    except (TypeError, AttributeError, ValueError, LookupError, ArithmeticError) as error:
        # Readers take each value for what the class writes there; the cause stays in the chain, in case it is ours.
        raise UserError(
            f"config.json cannot be read as model_type {values.get('model_type')!r}: {type(error).__name__}: {error}; "
            "one of its values is of another kind than that class writes"
        ) from error


def config_to_hf(config: GPTConfig, **extra: Any) -> dict[str, Any]:
    """A `GPTConfig` as the contents of config.json.

    Args:
        config: The model's shape.
        **extra: Further keys, e.g. `eos_token_id`. The ids of special tokens are null unless given, because
            transformers' defaults for a family are those of its own vocabulary.

    Raises:
        UserError: If the config's family cannot express it.
    """
    family = FAMILIES[config.family]
    return {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "vocab_size": config.vocab_size,
        **family.write_config(config),
        "tie_word_embeddings": config.tie_embeddings,
        "initializer_range": config.init_std,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        **extra,
    }
