"""The registry of families: names, laziness, and what a family's config.json cannot express."""

import contextlib
import subprocess
import sys
from dataclasses import replace

import pytest

from lit_gpt.checkpoints.huggingface import config_from_hf, config_to_hf
from lit_gpt.errors import UserError
from lit_gpt.models import GPTConfig, get_preset, preset_names
from lit_gpt.models.families import family_names, get_family, model_types
from lit_gpt.models.families.ladder import shrink

SHOW_LOADED = """
import sys
from lit_gpt.models import GPTConfig, get_preset
GPTConfig(family="qwen3")
print(sorted(name.rpartition(".")[2] for name in sys.modules if name.startswith("lit_gpt.models.families.")))
"""


def test_every_name_leads_to_its_family():
    assert len(model_types()) == len(family_names())
    for name in family_names():
        assert get_family(name).name == name
        assert model_types()[get_family(name).model_type] is get_family(name)
    with pytest.raises(UserError, match="gemma2"):
        get_family("gemma")


def test_no_lineage_is_imported_before_it_is_asked_for():
    loaded = subprocess.run([sys.executable, "-c", SHOW_LOADED], capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == str(["family", "registry", "weights"])


def test_layers_that_config_json_cannot_express_are_refused(monkeypatch):
    family = replace(get_family("gemma3"), token_mixers=("attention",))
    monkeypatch.setattr("lit_gpt.checkpoints.huggingface.config.get_family", lambda name: family)
    with pytest.raises(UserError, match="layer_types 'sliding' of layer 0"):
        config_to_hf(get_preset("gemma-3-1b"))
    assert config_to_hf(
        GPTConfig.from_preset("gemma-3-1b", sliding_window=None, rope_local_theta=None, layer_windows=None)
    )


@pytest.mark.parametrize("name", preset_names())
def test_layers_chosen_by_layer_types_are_written_as_they_are_or_refused(name):
    config = shrink(get_preset(name), n_layer=4)
    if config.mla is None:
        changes = {"layer_windows": None, "sliding_window": 16, "layer_types": ("sliding", "attention")}
        config = config.overridden(changes)
    with contextlib.suppress(UserError):
        again = config_from_hf(config_to_hf(config))
        assert [again.window(layer) for layer in range(4)] == [config.window(layer) for layer in range(4)]


@pytest.mark.parametrize("name", ["mistral-7b-v0.1", "mixtral-8x7b", "phi-4", "qwen3-30b-a3b", "llama-3-8b"])
def test_families_whose_layers_all_slide_or_none_refuse_a_mixed_pattern(name):
    config = shrink(get_preset(name), layer_windows=None, sliding_window=16, layer_types=("sliding", "attention"))
    with pytest.raises(UserError, match="layer_types|sliding_window"):
        config_to_hf(config)
