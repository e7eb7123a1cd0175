"""Fits of small models in one process, or in several that share rows; `test_context.py` compares what they log."""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.loggers.logger import DummyLogger

sys.path.append(str(Path(__file__).parents[1]))

from small_chats import alpaca_rows, tokenizer_folder, write_rows

from lit_gpt.callbacks import RunCheckpoint
from lit_gpt.datamodules import InstructionDataModule, TextDataModule
from lit_gpt.modules import PretrainModule, SFTModule
from lit_gpt.plugins import AtomicCheckpointIO, ParallelStrategy

SHAPE = {"n_layer": 2, "n_head": 4, "n_embd": 32}


class Log(DummyLogger):
    """Keeps every metric by step and name."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, dict[int, float]] = {}

    def log_metrics(self, metrics, step=None):
        for name, value in metrics.items():
            self.found.setdefault(name, {})[step] = float(value)


def prepare(folder: Path) -> None:
    """Write texts, rows and the tokenizer's folder."""
    words = [f"{n * 37 % 101} is {n * n % 7}" for n in range(400)]
    texts = [" and ".join(words[n : n + 1 + n % 9]) for n in range(0, 391)]
    (folder / "a.txt").write_text("\n\n".join(texts))
    write_rows(folder / "rows.json", alpaca_rows(60, longest=20))
    tokenizer_folder(folder / "tokenizer")


def data_of(run: dict, folder: Path) -> TextDataModule | InstructionDataModule:
    common = {"cache_dir": str(folder / "cache"), "global_batch_size": 4, "micro_batch_size": 2, "val_fraction": 0.1}
    if run.get("rows"):  # rows of different lengths, whose supervised tokens have an index
        return InstructionDataModule(
            tokenizer=str(folder / "tokenizer"), chat_template="chatml", files=str(folder / "rows.json"), packing=False,
            block_size=200, **common,
        )  # fmt: skip
    return TextDataModule(
        tokenizer=str(folder / "tokenizer"), files=str(folder / "a.txt"), document_separator="\n\n", block_size=30,
        test_fraction=0.1, **common,
    )  # fmt: skip


def fit(run: dict, folder: Path, layout: dict | None) -> dict:
    """Train, validate and test; return what was logged, the tokens seen and the final weights."""
    data, is_sft = data_of(run, folder), run.get("rows", False)
    module = (SFTModule if is_sft else PretrainModule)(
        overrides=SHAPE | {"vocab_size": data.vocab_size, "block_size": data.block_size} | run.get("overrides", {}),
        z_loss=1e-3,
        optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-3),
        activation_checkpointing=run.get("recompute", False),
    )
    strategy = {} if layout is None else {"strategy": ParallelStrategy(**layout)}
    log = Log()
    trainer = Trainer(
        default_root_dir=folder / run["name"], accelerator="cpu", devices=dist.get_world_size() if layout else 1,
        max_steps=run.get("max_steps", 20), log_every_n_steps=1, val_check_interval=5, check_val_every_n_epoch=None,
        num_sanity_val_steps=0, gradient_clip_val=1.0, logger=log, enable_progress_bar=False,
        enable_model_summary=False, plugins=[AtomicCheckpointIO()],
        callbacks=[RunCheckpoint(every_n_steps=10, keep_last=9)], use_distributed_sampler=False, **strategy,
    )  # fmt: skip
    trainer.fit(module, datamodule=data, ckpt_path=run.get("ckpt_path"))
    if not is_sft:
        trainer.test(module, datamodule=data, verbose=False)
    weights = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in module.model.parameters()]
    return {
        "log": log.found,
        "tokens_seen": module.tokens_seen,
        "weights": torch.cat([w.detach().flatten() for w in weights]).tolist(),
    }


def fit_all(mesh, runs: list[dict], folder: Path, layout: dict | None) -> None:
    """Fit each run, and write what process 0 found to `<folder>/<name>.json`."""
    os.environ |= {"LOCAL_RANK": str(dist.get_rank()), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for run in runs:
        found = fit(run, folder, layout)
        if dist.get_rank() == 0:
            (folder / f"{run['name']}.json").write_text(json.dumps(found))
