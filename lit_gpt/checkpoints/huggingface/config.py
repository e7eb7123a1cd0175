"""config.json as a whole, in both directions; a family maps what is its own (`Family.read_config`, `write_config`).

Gemma 3 from 4B on and Mistral's models since Small 3.1 are published as multimodal models. What is read of them is the
language model: its part of config.json here, its tensors in `reading.py`. An export is the plain language model.
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
    """Turn a parsed config.json into a `GPTConfig`; of a multimodal model, its language model's.

    Raises:
        UserError: If the family is unknown (the nearest are named), or the config asks for what is not computed, or
            holds values that no such config can hold.
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
        # `read_config` assumes the types that transformers' class writes. The cause stays in the chain of exceptions,
        # in case the fault is in our code.
        raise UserError(
            f"config.json cannot be read as model_type {values.get('model_type')!r}: {type(error).__name__}: {error}; "
            "one of its values has another type than transformers writes"
        ) from error


def config_to_hf(config: GPTConfig, **extra: Any) -> dict[str, Any]:
    """Turn a `GPTConfig` into the contents of config.json.

    Args:
        config: The model's shape.
        **extra: Further keys, e.g. `eos_token_id`. The ids of special tokens are null unless given, because
            transformers' defaults for a family are those of its own vocabulary.

    Raises:
        UserError: If the config's family cannot express it.
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
    """Return the default family of the language model in a multimodal model's config.json; None: not multimodal."""
    wrapper = values.get("model_type")
    return next((family for family in model_types().values() if wrapper in family.text_part_of), None)


def text_config(values: dict[str, Any]) -> dict[str, Any]:
    """Return the language model's config.json in a multimodal model's.

    A null in it stays one: it means "none" (no window, no latent of queries), where a missing key means "the default".

    Raises:
        UserError: If it has no language model.
    """
    text = dict(required(values, "text_config"))
    if text.get("model_type") is None:
        family = multimodal_family(values)
        text["model_type"] = family.model_type if family else None
    # The head and the quantization belong to the whole model, so its config.json decides about them.
    decided = ("tie_word_embeddings", "quantization_config")
    return text | {key: values[key] for key in decided if values.get(key) is not None}
