"""What `benchmarks/families.py` reports is the models' own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "families.py"


@pytest.mark.slow
def test_peak_memory_is_that_of_the_model_and_not_of_imports():
    peaks = {}
    for name in ("lit_gpt", "transformers"):
        command = [sys.executable, str(SCRIPT), "--device", "cpu", "--part", "peak", "qwen3", name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks[name] = json.loads(done.stdout.strip().splitlines()[-1]) / 2**20
    # 7 M parameters and their gradients are 56 MiB, 8192 logits of 1024 tokens 32 MiB, torch's own code some 300
    assert 50 < peaks["lit_gpt"] < 300
    assert peaks["lit_gpt"] < 1.2 * peaks["transformers"] < 600
