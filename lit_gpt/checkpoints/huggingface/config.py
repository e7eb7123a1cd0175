"""Conversion between config.json and `GPTConfig`; each family converts its own keys (`read_config`, `write_config`).

Gemma 3 from 4B up and Mistral models since Small 3.1 are published as multimodal models. Only their language model is
read: its part of config.json here, its tensors in `reading.py`. An export contains only the language model.
"""

from collections.abc import Mapping
from typing import Any

from lit_gpt.checkpoints.huggingface.quantized import check_quantization
from lit_gpt.errors import UserError
from lit_gpt.models import GPTConfig
from lit_gpt.models.families import Family, get_family, model_types
from lit_gpt.models.families.config_json import required
from lit_gpt.suggest import nearest


def config_from_hf(values: dict[str, Any]) -> GPTConfig:
    """Convert a parsed config.json to a `GPTConfig`; for a multimodal model, that of its language model.

    Raises:
        UserError: If the family is unknown (the nearest ones are named), or the config has an unsupported feature or
            invalid values.
    """
    try:
        if multimodal_family(values):
            values = text_config(values)
        model_type, families = str(values.get("model_type")), model_types()
        if model_type not in families:
            raise UserError(f"model_type {model_type!r} cannot be imported; nearest: {nearest(model_type, families)}")
        check_quantization(values)
        return families[model_type].read_config(values)
    except UserError:
        raise
    except (TypeError, AttributeError, ValueError, LookupError, ArithmeticError) as error:
        # `read_config` assumes values of the types that transformers writes. The original exception is chained, in
        # case the fault is in lit_gpt.
        raise UserError(
            f"config.json cannot be read as model_type {values.get('model_type')!r}: {type(error).__name__}: {error}; "
            "one of its values has a type that transformers does not write"
        ) from error


def config_to_hf(config: GPTConfig, **extra: Any) -> dict[str, Any]:
    """Convert a `GPTConfig` to the contents of config.json.

    Args:
        config: The model's configuration.
        **extra: Further keys, such as `eos_token_id`. IDs of special tokens are null unless given, because
            transformers' defaults apply to the family's original vocabulary.

    Raises:
        UserError: If the family cannot express the configuration.
    """
    family = get_family(config.family)
    for layer in range(config.n_layer):
        if config.token_mixer(layer) not in family.token_mixers:
            raise UserError(
                f"family {config.family!r} cannot express layer_types {config.token_mixer(layer)!r} of layer {layer} "
                f"(only {', '.join(family.token_mixers)}); set `family` to one that can"
            )
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


def multimodal_family(values: Mapping[str, Any]) -> Family | None:
    """Return the family of a multimodal model's language model; None if config.json is not multimodal."""
    wrapper = values.get("model_type")
    return next((family for family in model_types().values() if wrapper in family.text_part_of), None)


def text_config(values: dict[str, Any]) -> dict[str, Any]:
    """Return the language model's part of a multimodal model's config.json.

    Null values are preserved: null means "none" (no window, no query compression), a missing key means "the default".

    Raises:
        UserError: If there is no language model.
    """
    text = dict(required(values, "text_config"))
    if text.get("model_type") is None:
        family = multimodal_family(values)
        text["model_type"] = family.model_type if family else None
    # Tied embeddings and quantization are settings of the whole model, so its top-level values take precedence.
    decided = ("tie_word_embeddings", "quantization_config")
    return text | {key: values[key] for key in decided if values.get(key) is not None}
