"""Trainers and modules for the tests of callbacks."""

import pytest
import torch
from lightning.pytorch import Trainer
from tiny_run import TinyModule

from lit_gpt.callbacks import RunCheckpoint
from lit_gpt.plugins import AtomicCheckpointIO

torch.set_num_threads(1)  # for such small models threads only wait for one another


@pytest.fixture
def make_trainer(tmp_path):
    """A quiet CPU Trainer in a run's folder, checkpoints as the project writes them."""

    def make(*callbacks, run="run", **kwargs):
        defaults = {
            "default_root_dir": tmp_path / run,
            "accelerator": "cpu",
            "devices": 1,
            "max_steps": 12,
            "logger": False,
            "enable_progress_bar": any("Progress" in type(callback).__name__ for callback in callbacks),
            "enable_model_summary": False,
            "enable_checkpointing": any(isinstance(callback, RunCheckpoint) for callback in callbacks),
            "num_sanity_val_steps": 0,
            "limit_val_batches": 0,
            "log_every_n_steps": 5,
            "use_distributed_sampler": False,
            "plugins": [AtomicCheckpointIO()],
        }
        if "val_check_interval" in kwargs:
            defaults |= {"check_val_every_n_epoch": None, "limit_val_batches": 2}
        return Trainer(**(defaults | {"callbacks": list(callbacks)} | kwargs))

    return make


@pytest.fixture
def module():
    return TinyModule()
