"""A small corpus in three shards and a stream over it; `python streamed.py <folder> <devices> <steps> [<checkpoint>]`."""

import gzip
import json
import sys
from pathlib import Path

import torch
from lightning import LightningModule
from recording import stock_trainer

from lit_gpt.data.bpe import train_bpe
from lit_gpt.datamodules import StreamingDataModule


def texts(count: int = 90) -> list[str]:
    return [f"text {i} " + " ".join(str((i * 37 + k * k) % 101) for k in range(5 + 7 * (i % 9))) for i in range(count)]


def make_stream(folder: Path, count: int = 90) -> None:
    """Three shards (one compressed) and a tokenizer."""
    (folder / "shards").mkdir(parents=True)
    train_bpe(texts(), 300).save(folder / "tokenizer")
    for shard in range(3):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts(count)[shard::3])
        path = folder / "shards" / f"{shard}.jsonl"
        if shard == 1:
            path.with_suffix(".jsonl.gz").write_bytes(gzip.compress(lines.encode()))
        else:
            path.write_text(lines)


def stream(folder: Path, cache: str = "cache", **kwargs) -> StreamingDataModule:
    settings = {"files": str(folder / "shards"), "tokenizer": str(folder / "tokenizer"), "block_size": 16}
    settings |= {"global_batch_size": 8, "block_windows": 20, "val_documents": 7, "test_documents": 4, "seed": 3}
    settings |= {"cache_dir": str(folder / cache), "prepare_threads": 1}
    if "dataset" in kwargs:
        settings.pop("files")
    return StreamingDataModule(**(settings | kwargs))


class Recorder(LightningModule):
    """Keeps the tokens of every step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[list[list[int]]] = []

    def training_step(self, batch, batch_idx):
        self.seen.append([row for micro in batch for row in micro["input_ids"].tolist()])
        return self.weight * sum(micro["input_ids"].float().mean() for micro in batch)

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


if __name__ == "__main__":
    root, devices, last_step = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    module = Recorder()
    trainer = stock_trainer(root, last_step, devices=devices, strategy="ddp" if devices > 1 else "auto")
    data = stream(root, f"cache-{last_step}", micro_batch_size=2)
    trainer.fit(module, data, ckpt_path=sys.argv[4] if len(sys.argv) > 4 else None)
    trainer.save_checkpoint(root / f"step-{last_step}.ckpt")
    (root / f"streamed-{last_step}-{trainer.global_rank}.json").write_text(json.dumps(module.seen))
