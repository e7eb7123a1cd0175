"""One fit on two processes; `test_strategy_names.py` starts it as `python strategy_worker.py <trainer> <strategy> <folder>`."""

import json
import sys
from pathlib import Path

import lightning.pytorch as pl
import torch

from lit_gpt.checkpoints.resolve import find_best
from lit_gpt.checkpoints.step import checkpoint_name, read_checkpoint
from lit_gpt.datamodules import TextDataModule
from lit_gpt.modules import PretrainModule
from lit_gpt.plugins import AtomicCheckpointIO
from lit_gpt.trainer import Trainer


def main(kind: str, strategy: str, folder: Path) -> None:
    """Train two steps, and write what the checkpoint has and whether the module in this process has it, too."""
    data = TextDataModule(
        files=[str(folder / "a.txt")], document_separator="\n\n", val_fraction=0.2, vocab_size=300, block_size=16,
        global_batch_size=4, cache_dir=str(folder / "cache"),
    )  # fmt: skip
    module = PretrainModule(overrides={"n_layer": 1, "n_head": 2, "n_embd": 16, "vocab_size": 300, "block_size": 16})
    options = {
        "default_root_dir": str(folder / "run"), "accelerator": "cpu", "devices": 2, "strategy": strategy,
        "max_steps": 2, "val_check_interval": 1, "enable_progress_bar": False, "logger": False,
    }  # fmt: skip
    if kind == "ours":
        run = Trainer(name="run", **options | {"default_root_dir": str(folder)})
    else:
        run = pl.Trainer(check_val_every_n_epoch=None, plugins=[AtomicCheckpointIO()], **options)
    run.fit(module, datamodule=data)
    if kind == "ours":
        path = folder / "run" / "checkpoints" / checkpoint_name(2)
        assert str(find_best(folder / "run")) == run.checkpoint_callback.best_model_path
    else:
        (path,) = (folder / "run" / "checkpoints").glob("*.ckpt")
    saved = read_checkpoint(path)
    weights = module.state_dict()
    found = {
        "step": saved["global_step"],
        "back": all(torch.equal(value, weights[name]) for name, value in saved["state_dict"].items()),
        "left": sorted(str(p.relative_to(folder)) for p in folder.rglob("*temp*")),
    }
    if run.is_global_zero:
        (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
