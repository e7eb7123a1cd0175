"""Fits of small models in one process, or as the stages of a pipeline; `test_pipeline.py` compares what they log."""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from context_runs import Log
from lightning.pytorch import Callback, Trainer

sys.path.append(str(Path(__file__).parents[1]))


from lit_gpt.callbacks import ExponentialMovingAverage, NonFiniteGuard, RunCheckpoint, SampleText
from lit_gpt.datamodules import InstructionDataModule, TextDataModule
from lit_gpt.errors import UserError
from lit_gpt.modules import PretrainModule, SFTModule
from lit_gpt.optim import MuonAdamW
from lit_gpt.plugins import AtomicCheckpointIO, ParallelStrategy

SHAPE = {"n_layer": 4, "n_head": 4, "n_embd": 32, "intermediate_size": 64}


class Poison(Callback):
    """Makes a gradient of the last stage infinite at one step."""

    def on_before_optimizer_step(self, trainer, module, optimizer):
        if trainer.global_step == 2 and (head := module.model.lm_head) is not None:
            head.weight.grad[0, 0] = float("inf")


def data_of(run: dict, folder: Path) -> TextDataModule | InstructionDataModule:
    common = {"cache_dir": str(folder / "cache"), "val_fraction": 0.1, "tokenizer": str(folder / "tokenizer")}
    common |= {"global_batch_size": 8, "micro_batch_size": 2} | run.get("data", {})
    if run.get("rows"):  # rows of different lengths, whose supervised tokens have an index
        rows = str(folder / "rows.json")
        return InstructionDataModule(chat_template="chatml", files=rows, packing=False, block_size=200, **common)
    text = str(folder / "a.txt")
    return TextDataModule(files=text, document_separator="\n\n", block_size=30, test_fraction=0.1, **common)


def fit(run: dict, folder: Path, layout: dict | None) -> dict:
    """Train, validate and test; return what was logged, and the final weights of this process."""
    data, is_sft = data_of(run, folder), run.get("rows", False)
    optimizer = {"adamw": torch.optim.AdamW, "muon": MuonAdamW, "sgd": torch.optim.SGD}[run.get("optimizer", "adamw")]
    module = (SFTModule if is_sft else PretrainModule)(
        overrides=SHAPE | {"vocab_size": data.vocab_size, "block_size": data.block_size} | run.get("overrides", {}),
        z_loss=1e-3,
        optimizer=lambda groups: optimizer(groups, lr=run.get("lr", 1e-3)),
        activation_checkpointing=run.get("recompute", False),
        compile=run.get("compile", False),
    )
    strategy = {} if layout is None else {"strategy": ParallelStrategy(**layout | run.get("strategy", {}))}
    log, average = Log(), ExponentialMovingAverage(decay=0.5)
    name = run["name"] if layout is None else f"{run['name']}-pipeline"
    sample = SampleText(every_n_steps=5, max_new_tokens=4)
    guard = NonFiniteGuard(action="skip")
    trainer = Trainer(
        default_root_dir=folder / name, accelerator="cpu", devices=dist.get_world_size() if layout else 1,
        max_steps=run.get("max_steps", 20), log_every_n_steps=1, val_check_interval=5, check_val_every_n_epoch=None,
        num_sanity_val_steps=0, gradient_clip_val=run.get("clip", 0.5), logger=log, enable_progress_bar=False,
        enable_model_summary=False, plugins=[AtomicCheckpointIO()], precision=run.get("precision", "32-true"),
        callbacks=[average, sample, RunCheckpoint(every_n_steps=10, keep_last=9), *[Poison()] * run.get("poison", 0), guard],
        use_distributed_sampler=False, **strategy,
    )  # fmt: skip
    trainer.fit(module, datamodule=data, ckpt_path=run.get("ckpt_path"))
    if not is_sft:
        trainer.test(module, datamodule=data, verbose=False)
    return {
        "log": log.found,
        "tokens_seen": module.tokens_seen,
        "skipped": guard.num_skipped,
        "weights": _whole(module.model.state_dict()),
        "averages": _whole(average._averages),
    }


def _whole(tensors: dict) -> dict[str, list[float]]:
    whole = {name: t.full_tensor() if hasattr(t, "full_tensor") else t for name, t in tensors.items()}
    return {name: value.flatten().tolist() for name, value in whole.items()}


def fit_all(mesh, runs: list[dict], folder: Path, layout: dict | None) -> None:
    """Fit each run, and write what each process found to `<folder>/<name>[-<rank>].json`; an error ends a run only."""
    rank = dist.get_rank()
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for run in runs:
        try:
            found = fit(run, folder, layout)
        except UserError as error:
            found = {"error": str(error)}
        name = run["name"] if layout is None else f"{run['name']}-pipeline-{rank}"
        (folder / f"{name}.json").write_text(json.dumps(found))
