"""The language model inside one that also sees, under both spellings of its names."""

import json

import pytest
import torch
import transformers
from pairs import LOGITS_TOLERANCE, load_ours, relative_difference, variants_of
from safetensors.torch import load_file, save_file

from lit_gpt.checkpoints.huggingface import export_hf, open_hf
from lit_gpt.errors import UserError

VISION = {
    "gemma3": {
        "model_type": "siglip_vision_model",
        "image_size": 8,
        "patch_size": 4,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    },
    "mistral3": {
        "model_type": "pixtral",
        "image_size": 8,
        "patch_size": 4,
        "hidden_size": 16,
        "head_dim": 8,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    },
}


def build(model_type, text_type, family):
    module = variants_of(family)
    text = module.SHAPE | next(iter(module.VARIANTS.values())) | {"model_type": text_type}
    config = transformers.AutoConfig.for_model(
        model_type, text_config=text, vision_config=VISION[model_type], image_token_index=100
    )
    model = transformers.AutoModelForImageTextToText.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


@pytest.mark.parametrize("older_names", [False, True])
@pytest.mark.parametrize(
    ("model_type", "text_type", "family"),
    [("gemma3", "gemma3_text", "gemma3"), ("mistral3", "ministral3", "ministral3"), ("mistral3", "mistral", "mistral")],
)
@torch.no_grad()
def test_language_part(model_type, text_type, family, older_names, tmp_path):
    theirs = build(model_type, text_type, family)
    theirs.save_pretrained(tmp_path / "theirs")
    file = tmp_path / "theirs" / "model.safetensors"
    tensors = load_file(file)
    today = any(name.startswith("model.language_model.") for name in tensors)
    if older_names == today:
        save_file({_other_name(name, today): tensor for name, tensor in tensors.items()}, file)
    ours = load_ours(tmp_path / "theirs")
    assert ours.config.family == family
    ids = torch.randint(1, 100, (2, 40), generator=torch.Generator().manual_seed(0))
    expected = theirs(input_ids=ids).logits
    assert relative_difference(ours(ids), expected) < LOGITS_TOLERANCE
    left_out = open_hf(tmp_path / "theirs")[1].left_out
    assert left_out
    assert all("vision_tower" in name or "multi_modal_projector" in name for name in left_out)
    export_hf(ours.config, ours.state_dict(), tmp_path / "plain")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "plain", attn_implementation="eager").eval()
    assert relative_difference(ours(ids), again(ids).logits) < LOGITS_TOLERANCE


def _other_name(name, today):
    pairs = (("model.language_model.", "language_model.model."), ("lm_head.", "language_model.lm_head."))
    pairs += (("model.vision_tower.", "vision_tower."), ("model.multi_modal_projector.", "multi_modal_projector."))
    for new, old in pairs:
        before, after = (new, old) if today else (old, new)
        if name.startswith(before):
            return after + name.removeprefix(before)
    return name


def test_without_its_text_config(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3"}))
    with pytest.raises(UserError, match="no value for 'text_config'"):
        open_hf(tmp_path)
