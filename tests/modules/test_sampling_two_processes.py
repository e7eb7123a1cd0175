"""Two processes that draw answers of their own learn what one process learns."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_chats import alpaca_rows, small_tokenizer, tokenizer_folder, write_rows

from lit_gpt.checkpoints.bundle import save_bundle
from lit_gpt.models import GPT, GPTConfig

WORKER = Path(__file__).parent / "sampling_worker.py"
SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 32, "intermediate_size": 64, "block_size": 96}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["grpo", "distill"])
def test_two_processes_are_one(tmp_path, kind):
    """The same answers are drawn, the same weights learned, and no rank waits for another's micro-batches."""
    config = GPTConfig.from_preset("tiny", **SHAPE, vocab_size=small_tokenizer().vocab_size + 2)
    for name, seed in (("base", 0), ("teacher", 1)):
        model = GPT(config)
        model.init_weights(seed)
        save_bundle(tmp_path / name, config, model.state_dict(), tokenizer_folder(tmp_path / "tokenizer"))
    write_rows(tmp_path / "rows.jsonl", alpaca_rows(24, longest=4))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for devices in ("1", "2"):
        done = subprocess.run(
            [sys.executable, WORKER, kind, devices, tmp_path], env=environment, capture_output=True, text=True, timeout=240
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
    alone, first, second = (
        json.loads((tmp_path / f"{kind}-{name}.json").read_text()) for name in ("1-rank0", "2-rank0", "2-rank1")
    )
    assert first["total"] == second["total"], "the ranks have the same weights"
    assert first["answers"]
    assert second["answers"]
    together = first["answers"] | second["answers"]
    assert together.keys() == alone["answers"].keys()
    for key, answers in alone["answers"].items():  # after the first step the weights differ by their last bits
        assert not key.startswith("0 ") or together[key] == answers
    one, two = (load_file(tmp_path / f"{kind}-{devices}.safetensors") for devices in (1, 2))
    for name, weight in one.items():
        assert torch.linalg.norm(two[name] - weight) <= 1e-6 * torch.linalg.norm(weight), name
