"""The language model inside a published model that also sees: its part of config.json, and of the names.

Gemma 3 from 4B on and Mistral's models since Small 3.1 are published so. What belongs to the eyes is left out, and
an export is the plain language model.
"""

from typing import Any

from lit_gpt.checkpoints.huggingface.family import required

_TEXT_TYPE = {"gemma3": "gemma3_text", "mistral3": "mistral"}
"""model_type of the whole → that of its text_config where it does not say so itself."""

RENAMED = (
    ("model.language_model.", "model."),
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
)
"""Beginnings of names in such files → those of the language model alone (the second spelling is the older)."""

LEFT_OUT = ("model.vision_tower.", "vision_tower.", "model.multi_modal_projector.", "multi_modal_projector.")


def is_multimodal(values: dict[str, Any]) -> bool:
    """Whether a parsed config.json is that of a larger model with a known language model in it."""
    return values.get("model_type") in _TEXT_TYPE


def text_part(values: dict[str, Any]) -> dict[str, Any]:
    """The language model's config.json; what the whole decides (tied embeddings, quantisation) is taken from there.

    A null in it stays one: it says "none" (no window, no latent of queries), where a missing key says "the default".

    Raises:
        UserError: If it has none.
    """
    text = dict(required(values, "text_config"))
    # The head belongs to the whole, so the whole says whether it is tied.
    decided = ("tie_word_embeddings", "quantization_config")
    whole = {key: values[key] for key in decided if values.get(key) is not None}
    if text.get("model_type") is None:
        text["model_type"] = _TEXT_TYPE[values["model_type"]]
    return text | whole
