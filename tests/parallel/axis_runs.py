"""Fits of small models in one process, or in several along any axes, and how much the two differ."""

import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers.logger import DummyLogger

sys.path.append(str(Path(__file__).parents[1]))

from small_chats import alpaca_rows, tokenizer_folder, write_rows

from lit_gpt.adapters import AdapterConfig
from lit_gpt.callbacks import ExponentialMovingAverage, NonFiniteGuard, RunCheckpoint, SampleText
from lit_gpt.datamodules import InstructionDataModule, TextDataModule
from lit_gpt.errors import UserError
from lit_gpt.modules import PretrainModule, SFTModule
from lit_gpt.optim import MuonAdamW
from lit_gpt.plugins import AtomicCheckpointIO, ParallelStrategy

SHAPE = {"n_layer": 4, "n_head": 4, "n_embd": 32, "intermediate_size": 64}
UNTIED = {"tie_embeddings": False}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "balance_loss_weight": 0.01, "z_loss_weight": 1e-3}
BIASED = MOE | {"selection_bias": True, "bias_update_rate": 1e-3, "layers": (False, False, True, True)}
MLA = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
OPTIMIZERS = {"muon": MuonAdamW, "sgd": torch.optim.SGD}


class Log(DummyLogger):
    """Keeps every metric by step and name."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, dict[int, float]] = {}

    def log_metrics(self, metrics, step=None):
        for name, value in metrics.items():
            self.found.setdefault(name, {})[step] = float(value)


class Watch(Callback):
    """Keeps the samples of each step; makes a gradient of the last stage infinite, or kills the process, at a step."""

    def __init__(self, poison: int | None, kill: tuple[int, int] | None) -> None:
        self.poison, self.kill, self.samples = poison, kill, {}

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.samples[trainer.global_step] = torch.cat([part["sample_ids"] for part in batch]).tolist()
        if self.kill == (trainer.global_rank, trainer.global_step):
            os.kill(os.getpid(), signal.SIGKILL)

    def on_before_optimizer_step(self, trainer, module, optimizer):
        if trainer.global_step == self.poison and (head := module.model.lm_head) is not None:
            head.weight.grad[0, 0] = float("inf")


def prepare(folder: Path) -> None:
    """Write texts, rows and the tokenizer's folder."""
    words = [f"{n * 37 % 101} is {n * n % 7}" for n in range(400)]
    texts = [" and ".join(words[n : n + 1 + n % 9]) for n in range(0, 391)]
    (folder / "a.txt").write_text("\n\n".join(texts))
    write_rows(folder / "rows.json", alpaca_rows(60, longest=20))
    tokenizer_folder(folder / "tokenizer")


def data_of(run: dict, folder: Path) -> TextDataModule | InstructionDataModule:
    common = {"cache_dir": str(folder / "cache"), "tokenizer": str(folder / "tokenizer")}
    common |= {"global_batch_size": 8, "micro_batch_size": 1} | run.get("data", {})
    if run.get("rows"):  # rows of different lengths, whose supervised tokens have an index
        rows = str(folder / "rows.json")
        return InstructionDataModule(
            chat_template="alpaca", files=rows, packing=False, block_size=200, val_fraction=0.1, **common
        )
    return TextDataModule(
        files=str(folder / "a.txt"), document_separator="\n\n", block_size=30, val_fraction=0.03, test_fraction=0.02,
        **common,
    )  # fmt: skip


def fit(name: str, run: dict, folder: Path) -> dict[str, Any]:
    """Train, validate and test; return what was logged, and the final weights of this process."""
    data, is_sft = data_of(run, folder), run.get("rows", False)
    kind = OPTIMIZERS.get(run.get("optimizer"))  # None: the default
    overrides = SHAPE | {"vocab_size": data.vocab_size, "block_size": data.block_size} | run.get("overrides", {})
    start = {"overrides": overrides}
    if "base" in run:
        start = {"init_from": str(folder / run["base"]), "adapter": AdapterConfig(**run["adapter"])}
    module = (SFTModule if is_sft else PretrainModule)(
        **start,
        z_loss=1e-3,
        optimizer=None if kind is None else lambda groups: kind(groups, lr=run["lr"]),
        activation_checkpointing=run.get("recompute", False),
        compile=run.get("compile", False),
    )
    if run.get("compile"):  # without a C++ compiler, which would take most of the time
        module.configure_model = partial(_with_backend, module.configure_model)
    strategy = {} if run.get("strategy") is None else {"strategy": ParallelStrategy(**run["strategy"])}
    log, average, guard = Log(), ExponentialMovingAverage(decay=0.5), NonFiniteGuard(action="skip")
    watch = Watch(run.get("poison"), run.get("kill"))
    save = RunCheckpoint(every_n_steps=run.get("save_every", 10), keep_last=9)
    trainer = Trainer(
        default_root_dir=folder / name, accelerator="cpu", devices=dist.get_world_size(),
        max_steps=run.get("max_steps", 20), log_every_n_steps=1, val_check_interval=10, check_val_every_n_epoch=None,
        num_sanity_val_steps=0, gradient_clip_val=run.get("clip", 0.5), logger=log, enable_progress_bar=False,
        enable_model_summary=False, plugins=[AtomicCheckpointIO()], precision=run.get("precision", "32-true"),
        callbacks=[average, SampleText(every_n_steps=5, max_new_tokens=4), save, watch, guard],
        use_distributed_sampler=False, **strategy,
    )  # fmt: skip
    trainer.fit(module, datamodule=data, ckpt_path=None if "resume" not in run else str(folder / run["resume"]))
    if not is_sft:
        trainer.test(module, datamodule=data, verbose=False)
    return {
        "log": log.found,
        "samples": watch.samples,
        "tokens_seen": module.tokens_seen,
        "skipped": guard.num_skipped,
        "weights": _whole(module.model.state_dict()),
        "averages": _whole(average._averages),
    }


def _with_backend(configure_model: Callable[[], None]) -> None:
    compile_of = torch.nn.Module.compile
    with patch.object(torch.nn.Module, "compile", lambda module: compile_of(module, backend="aot_eager")):
        configure_model()


def _whole(tensors: dict) -> dict[str, torch.Tensor]:
    whole = {name: t.full_tensor() if hasattr(t, "full_tensor") else t for name, t in tensors.items()}
    return {name.replace("_orig_mod.", ""): value.detach().clone() for name, value in whole.items()}


def fit_all(mesh, runs: dict[str, dict], folder: Path) -> None:
    """Fit each run, and write what each process found to `<folder>/<name>-<rank>.pt`; an error ends a run only."""
    rank = dist.get_rank()
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, run in runs.items():
        try:
            found = fit(name, run, folder)
        except UserError as error:
            found = {"error": str(error)}
        torch.save(found, folder / f"{name}-{rank}.pt")


def read(folder: Path, name: str) -> list[dict[str, Any]]:
    """Return what each process of a run has found."""
    paths = sorted(folder.glob(f"{name}-[0-9].pt"))
    return [torch.load(path) for path in paths]


def check_run(
    one: dict[str, Any],
    ranks: list[dict[str, Any]],
    bound: float,
    start: int = 0,
    weights: float | None = None,
    loads: float | None = None,
) -> None:
    """Check that a run has followed one process: every sample, metric, weight and average.

    Args:
        one: What one process has found.
        ranks: What each process of the run has found.
        bound: Relative difference of metrics.
        start: The run has resumed from the checkpoint of this step.
        weights: Absolute difference of weights; None = `bound`.
        loads: Relative difference of the experts' loads; None = `bound`.
    """
    largest = bound if weights is None else weights
    for found in ranks:
        assert "error" not in found, found
        assert (found["skipped"], found["tokens_seen"]) == (one["skipped"], one["tokens_seen"])
    for step, samples in one["samples"].items():
        if step >= start:
            assert set().union(*(found["samples"][step] for found in ranks)) == set(samples), f"samples of step {step}"
    log = ranks[0]["log"]
    assert log.keys() == one["log"].keys()
    tolerance = max(bound, 1e-6)  # means are printed in float32
    for name, values in one["log"].items():
        kept = {step: value for step, value in values.items() if step is None or step > start}
        assert log[name].keys() == kept.keys(), name
        largest_here = loads if loads is not None and name.startswith("router/") else tolerance
        for step, value in kept.items():
            assert abs(log[name][step] - value) <= largest_here * abs(value) + 1e-9, (
                name,
                step,
                log[name][step],
                value,
            )
    for kind in ("weights", "averages"):
        assert set().union(*(found[kind] for found in ranks)) == one[kind].keys()
        for found in ranks:
            for name, value in found[kind].items():
                assert (value - one[kind][name]).abs().max() <= largest, f"{kind}: {name}"
    for name in one["weights"]:
        first, *others = (found["weights"][name] for found in ranks if name in found["weights"])
        assert all(torch.equal(first, other) for other in others), f"the copies of {name} differ"
