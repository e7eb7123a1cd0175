"""A package of somebody else's registers an architecture; every command finds it through the package's entry point."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent

# Nothing here imports the package: its entry point is enough.
ROUND_TRIP = """
import sys
import torch
from lit_gpt.checkpoints.huggingface import export_hf, import_hf
from lit_gpt.models import GPT, GPTConfig

for preset in ("acme-tiny", "acme-tiny-untied"):
    config = GPTConfig.from_preset(preset, n_layer=3)
    weights = {name: torch.randn_like(value) for name, value in GPT(config).state_dict().items()}
    export_hf(config, weights, f"{sys.argv[1]}/{preset}")
    config_again, weights_again = import_hf(f"{sys.argv[1]}/{preset}")
    assert config_again == config
    assert weights_again.keys() == weights.keys() - ({"lm_head.weight"} if config.tie_embeddings else set())
    assert all(torch.equal(weights_again[name], weights[name]) for name in weights_again)
"""
COMPARE = """
import sys
import torch
from lit_gpt.checkpoints.huggingface import import_hf
from lit_gpt.checkpoints.resolve import resolve_model

run = resolve_model(sys.argv[1])
config, weights = import_hf(sys.argv[2])
trained = run.load_state_dict()
assert config.family == run.config.family == "acme"
assert all(torch.equal(weights[name], trained[name]) for name in weights)
"""
REFUSED = """
from dataclasses import replace
from lit_gpt.errors import UserError
from lit_gpt.models import GPTConfig
from lit_gpt.models.families import get_family, register_family, register_presets

acme = get_family("acme")
register_family(acme)  # the same again changes nothing
calls = [
    lambda: register_family(replace(acme, name="qwen3", model_type="other")),
    lambda: register_family(replace(acme, name="other")),
    lambda: register_presets({"acme-tiny": GPTConfig()}),
    lambda: register_presets({"gpt2": GPTConfig(n_layer=1)}),
    lambda: GPTConfig(family="acne"),
]
for call, word in zip(calls, ["'qwen3'", "'acme_lm'", "'acme-tiny'", "'gpt2'", "did you mean acme"], strict=True):
    try:
        call()
    except UserError as error:
        assert word in str(error), error
    else:
        raise AssertionError(word)
"""


@pytest.fixture
def run(environment, tmp_path):
    """Run Python where the package is installed; returns standard error."""

    def run(*arguments):
        command = [sys.executable, *map(str, arguments)]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stderr

    return run


def test_its_files_are_written_and_read_bit_for_bit(run, tmp_path):
    run("-c", ROUND_TRIP, tmp_path)
    values = json.loads((tmp_path / "acme-tiny" / "config.json").read_text())
    assert (values["model_type"], values["depth"]) == ("acme_lm", 3)


@pytest.mark.slow
def test_its_preset_trains_and_the_export_holds_the_trained_weights(run, tmp_path):
    run("-m", "lit_gpt", "fit", "--config", HERE / "family.yaml", "--trainer.default_root_dir", tmp_path / "runs")
    run("-m", "lit_gpt", "export", "--model", tmp_path / "runs/acme", "--out", tmp_path / "out", "--check", "false")
    run("-c", COMPARE, tmp_path / "runs/acme", tmp_path / "out")


def test_a_name_is_registered_once_and_a_wrong_one_gets_the_nearest(run):
    run("-c", REFUSED)
