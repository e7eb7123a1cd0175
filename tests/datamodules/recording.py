"""A module that learns nothing much and writes down which samples it saw, and a run of it for other processes.

`python recording.py <folder> <devices> <max_steps> [<checkpoint>]` fits it on `<folder>/texts`.
"""

import json
import sys
from pathlib import Path

import torch
from lightning import LightningModule, Trainer

from lit_gpt.datamodules import TextDataModule


class RecordingModule(LightningModule):
    """Keeps (global step, sample ids) of every training step and the bytes of every validation batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[int, list[int]]] = []
        self.val_bytes: list[int] = []
        self.predicted: list[str] = []

    def training_step(self, batch, batch_idx):
        self.seen.append((self.global_step, [int(s) for micro in batch for s in micro["sample_ids"]]))
        return self.weight * sum(micro["input_ids"].float().mean() for micro in batch)

    def validation_step(self, batch, batch_idx):
        self.val_bytes.append(int(batch["num_bytes"].sum()))

    test_step = validation_step

    def predict_step(self, batch, batch_idx):
        self.predicted += [source for source in batch["sources"] if source]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def stock_trainer(folder: Path, max_steps: int, **kwargs) -> Trainer:
    """A Trainer as anyone would write it."""
    settings = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    settings |= {"default_root_dir": folder, "max_steps": max_steps, "max_epochs": -1, "enable_checkpointing": False}
    return Trainer(**(settings | kwargs))


def text_data(folder: Path, **kwargs) -> TextDataModule:
    """The corpus in `<folder>/texts`, in small windows."""
    settings = {"files": str(folder / "texts"), "block_size": 16, "global_batch_size": 8, "vocab_size": 300}
    settings |= {"val_fraction": 0.2, "test_fraction": 0.2, "cache_dir": str(folder / "cache")}
    return TextDataModule(**(settings | kwargs))


if __name__ == "__main__":
    root, devices, last_step = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    module = RecordingModule()
    trainer = stock_trainer(root, last_step, devices=devices, strategy="ddp" if devices > 1 else "auto")
    trainer.fit(module, text_data(root, micro_batch_size=2), ckpt_path=sys.argv[4] if len(sys.argv) > 4 else None)
    trainer.save_checkpoint(root / f"step-{last_step}.ckpt")
    record = {"seen": module.seen, "val_bytes": module.val_bytes}
    (root / f"seen-{last_step}-{trainer.global_rank}.json").write_text(json.dumps(record))
