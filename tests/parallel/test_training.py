"""Optimizer steps through the Trainer: layouts with several axes follow one process, and resume under one another."""

import os
import socket

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment
from torch import multiprocessing
from torch.utils.data import DataLoader

from lit_gpt.callbacks import ExponentialMovingAverage, RunCheckpoint
from lit_gpt.checkpoints.resolve import resolve_model
from lit_gpt.data_info import read_sample_rank
from lit_gpt.modules import PretrainModule
from lit_gpt.optim import MuonAdamW
from lit_gpt.plugins import AtomicCheckpointIO, ParallelStrategy

STEPS, HALF, ROWS = 20, 12, 8
SHAPE = {
    "n_layer": 2, "n_head": 4, "n_embd": 32, "intermediate_size": 48, "vocab_size": 61, "block_size": 16,
    "init_std": 0.1, "attention_sinks": True, "multi_token": 1,
    "moe": {
        "num_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 16, "shared_intermediate_size": 16,
        "layers": [False, True], "scores": "sigmoid", "selection_bias": True, "bias_update_rate": 0.01,
        "balance_loss_weight": 0.05, "z_loss_weight": 0.01,
    },
}  # fmt: skip
LAYOUTS = (
    {"data": 2, "tensor": 2},
    {"data": 4, "expert": 2},
    {"data": 2, "tensor": 2, "expert": 2},
    {"data": 1, "tensor": 4},
)


class Losses(pl.Callback):
    """Keeps the loss of this process's tokens and the gradient norm at each step."""

    def __init__(self):
        self.losses, self.norms = {}, {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.norms[trainer.global_step] = float(pl_module._step_values["optim/grad_norm"])
        self.losses[trainer.global_step] = float(pl_module.sum_over_ranks(pl_module._loss_sums)[0])
        pl_module._loss_sums.zero_()


class Module(PretrainModule):
    def __init__(self):
        super().__init__(overrides=SHAPE, optimizer=lambda groups: MuonAdamW(groups, lr=0.01), z_loss=1e-3)

    def train_dataloader(self):
        rank, size = read_sample_rank(self.trainer)
        tokens = torch.randint(0, 61, (ROWS, 17), generator=torch.Generator().manual_seed(0))
        documents = torch.zeros(ROWS, 16, dtype=torch.int64)
        documents[:, 7:] = 1
        labels = tokens[:, 1:].clone()
        labels[0, 2:] = -100
        batch = {"input_ids": tokens[:, :-1], "labels": labels, "document_ids": documents}
        here = ROWS // size
        batch = {name: value[rank * here : (rank + 1) * here] for name, value in batch.items()}
        half = here // 2
        step = [{n: v[:half] for n, v in batch.items()}, {n: v[half:] for n, v in batch.items()}]
        return DataLoader([step] * (2 * STEPS), batch_size=None)  # the same at each step: no loader to resume


def fit(folder, max_steps, ckpt_path=None, **options):
    losses = Losses()
    module = Module()
    callbacks = [losses, RunCheckpoint(every_n_steps=HALF), ExponentialMovingAverage(decay=0.5, evaluate=False)]
    trainer = pl.Trainer(
        default_root_dir=folder, max_steps=max_steps, max_epochs=1, accelerator="cpu", logger=False, callbacks=callbacks,
        gradient_clip_val=0.5, log_every_n_steps=1, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, **options,
    )  # fmt: skip
    trainer.fit(module, ckpt_path=ckpt_path)
    return losses, module


@pytest.mark.slow
def test_twenty_steps_and_a_resume_under_another_layout(tmp_path):
    single, module = fit(tmp_path / "single", STEPS, devices=1, plugins=[AtomicCheckpointIO()])
    weights = {name: value.detach() for name, value in module.model.state_dict().items()}
    torch.save((single.losses, single.norms, weights), tmp_path / "single.pt")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(_worker, (str(tmp_path), port), nprocs=4)
    # What a layout has saved opens on one process: here the moving average.
    one, other = (resolve_model(tmp_path / name).load_state_dict() for name in ("single", "resumed-0"))
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=0, atol=5e-3, msg=lambda m, n=name: f"{n}: {m}")


def _worker(rank, folder, port):
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0"}
    losses, norms, weights = torch.load(f"{folder}/single.pt")
    options = {"devices": 4, "plugins": [LightningEnvironment()]}
    for i, sizes in enumerate(LAYOUTS):
        first, _ = fit(f"{folder}/run-{i}", HALF, strategy=ParallelStrategy(**sizes), **options)
        _compare(f"{sizes}", first, losses, norms, range(HALF))
    for i, sizes in enumerate(LAYOUTS):
        before = (i + 1) % len(LAYOUTS)
        path = f"{folder}/run-{before}/checkpoints/step-{HALF:08d}.ckpt"
        second, module = fit(f"{folder}/resumed-{i}", STEPS, path, strategy=ParallelStrategy(**sizes), **options)
        _compare(f"{LAYOUTS[before]} resumed as {sizes}", second, losses, norms, range(HALF, STEPS))
        for name, value in module.model.state_dict().items():
            whole = value.full_tensor() if hasattr(value, "full_tensor") else value
            torch.testing.assert_close(whole, weights[name], rtol=0, atol=5e-3, msg=lambda m, n=name: f"{n}: {m}")


def _compare(what, found, losses, norms, steps):
    """The bound over 20 steps: sums in another order, which Muon's iteration amplifies."""
    assert len(found.losses) == len(steps)
    for step in steps:
        assert found.losses[step + 1] == pytest.approx(losses[step + 1], rel=1e-4), f"{what}: loss of step {step}"
        assert found.norms[step + 1] == pytest.approx(norms[step + 1], rel=1e-3), (
            f"{what}: gradient norm of step {step}"
        )
