"""Every strategy that Lightning knows by name: it trains on CPUs, or the Trainer refuses it with the remedy."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch.strategies import StrategyRegistry

from lit_gpt.errors import UserError
from lit_gpt.trainer import Trainer

WORKER = Path(__file__).parent / "strategy_worker.py"
TRAIN = [
    "ddp", "ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true", "ddp_fork",
    "ddp_fork_find_unused_parameters_false", "ddp_fork_find_unused_parameters_true", "ddp_notebook",
    "ddp_notebook_find_unused_parameters_false", "ddp_notebook_find_unused_parameters_true", "ddp_spawn",
    "ddp_spawn_find_unused_parameters_false", "ddp_spawn_find_unused_parameters_true",
]  # fmt: skip
"""What trains on two CPU processes."""
NEED_OTHER_HARDWARE = [
    "fsdp", "fsdp_cpu_offload", "deepspeed", "deepspeed_stage_1", "deepspeed_stage_2",
    "deepspeed_stage_2_offload", "deepspeed_stage_3", "deepspeed_stage_3_offload", "deepspeed_stage_3_offload_nvme",
    "single_tpu", "single_xla", "xla", "xla_debug",
]  # fmt: skip
ONE_DEVICE = ["single_device"]


def test_the_table_lists_every_strategy():
    assert sorted(TRAIN + NEED_OTHER_HARDWARE + ONE_DEVICE) == sorted(StrategyRegistry.available_strategies())


@pytest.mark.parametrize("name", NEED_OTHER_HARDWARE)
def test_strategies_for_other_hardware_are_refused(tmp_path, name):
    with pytest.raises(UserError, match="(?i)fsdp|deepspeed|xla"):
        Trainer(default_root_dir=str(tmp_path), accelerator="cpu", strategy=name, logger=False)


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")
@pytest.mark.parametrize("kind", ["ours", "stock"])
@pytest.mark.parametrize("name", TRAIN)
def test_two_processes_train(tmp_path, name, kind):
    (tmp_path / "a.txt").write_text("\n\n".join(f"document {n}: " + "some words " * 9 for n in range(40)))
    command = [sys.executable, "-W", "ignore", str(WORKER), kind, name, str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found == {"step": 2, "back": True, "left": []}
