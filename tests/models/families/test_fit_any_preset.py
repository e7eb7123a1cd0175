"""`fit` takes any preset, with sizes overridden on the command line."""

import json
import os
import subprocess
import sys

import pytest

from lit_gpt.models import get_preset, preset_names
from lit_gpt.models.families.ladder import shrink

FIRST_PRESETS = list({get_preset(name).family: name for name in reversed(preset_names())}.values())
SIZES = {"n_layer": 2, "n_embd": 32, "n_head": 4, "block_size": 32, "vocab_size": 300}


def changes(name: str) -> dict:
    """What `shrink` changes in a preset, as a user would write it; data and tokenizer give the other sizes."""
    original, small = get_preset(name).to_dict(), shrink(get_preset(name), **SIZES).to_dict()
    return {
        key: value for key, value in small.items() if value != original[key] and key not in ("block_size", "vocab_size")
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", FIRST_PRESETS)
def test_fit(name, tmp_path):
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 400)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "lit_gpt", "fit", "--model", "PretrainModule", "--data", "TextDataModule"),
            *("--model.init_args.preset", name, "--model.init_args.overrides", json.dumps(changes(name))),
            *("--data.init_args.files", "text.txt", "--data.init_args.document_separator", ". "),
            *("--data.init_args.block_size", "32", "--data.init_args.vocab_size", "300"),
            *("--data.init_args.val_fraction", "0", "--data.init_args.test_fraction", "0"),
            *("--trainer.max_steps", "3", "--trainer.accelerator", "cpu", "--trainer.name", "any"),
        ],
        cwd=tmp_path,
        env={**os.environ, "LIT_GPT_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "cannot express" not in done.stderr, "a small model of a family is still of that family"
    assert (tmp_path / "runs" / "any" / "checkpoints").is_dir()
