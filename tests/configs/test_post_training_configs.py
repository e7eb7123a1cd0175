"""The YAMLs after pretraining: each is understood, and the offline chain runs from one stage to the next."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lit_gpt.cli import main

CONFIGS = Path(__file__).parents[2] / "configs"
STAGES = ("sft", "dpo", "kto", "reward", "grpo", "distill", "classify")
FILES = sorted(path for stage in STAGES for path in (CONFIGS / stage).glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_config_is_understood(path, capsys):
    text = path.read_text()
    assert text.startswith("# ")
    for word in ("Hardware:", "Time:", "Expect:"):
        assert word in text.split("seed_everything")[0]
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", str(path), "--print_config"])
    assert stop.value.code in (0, None)
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["trainer"]["name"] == f"{path.parent.name}_{path.stem}"


@pytest.mark.slow
def test_the_offline_chain_runs(tmp_path):
    """Three steps of each stage, each from the output of the one before."""

    def fit(config, *arguments):
        words = [sys.executable, "-m", "lit_gpt", "fit", "--config", str(CONFIGS / config), *arguments]
        words += ["--trainer.max_steps", "3", "--trainer.val_check_interval", "3", "--trainer.accelerator", "cpu"]
        words += ["--trainer.limit_val_batches", "2"]
        environment = os.environ | {"LIT_GPT_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = os.pathsep.join([str(CONFIGS.parent), *sys.path])  # `configs.grpo.python_rewards`
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]

    fit("quickstart.yaml")
    fit("sft/stdlib.yaml")
    fit("dpo/stdlib.yaml")
    fit("grpo/stdlib.yaml")
    fit("classify/stdlib.yaml")
    assert (tmp_path / "runs" / "dpo_stdlib" / "checkpoints" / "step-00000003.ckpt").is_dir()
