"""A pass over a stream of so many megabytes; `python streamed_memory.py <folder> <megabytes>` prints what it held.

The shards are gzipped JSON lines of a few words in ever new sequences: little to compute, nothing twice.
"""

import gzip
import json
import random
import resource
import sys
from pathlib import Path

import torch

from lit_gpt.data.bpe import train_bpe
from lit_gpt.datamodules import StreamingDataModule

SHARD_BYTES = 1_000_000
BLOCK_SIZE, BLOCK_WINDOWS, GLOBAL_BATCH_SIZE = 256, 512, 64
WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in ("", "ng", "st")]


def make_shards(folder: Path, num_bytes: int) -> None:
    """Writes shards of together `num_bytes` of text."""
    rng = random.Random(0)
    folder.mkdir(parents=True)
    for shard in range(num_bytes // SHARD_BYTES):
        lines, size = [], 0
        while size < SHARD_BYTES:
            text = " ".join(rng.choices(WORDS, k=rng.randint(100, 900)))
            lines.append(json.dumps({"text": text}) + "\n")
            size += len(text)
        (folder / f"{shard:04}.jsonl.gz").write_bytes(gzip.compress("".join(lines).encode(), compresslevel=1))


def peak_bytes() -> int:
    """The most memory that this process has had, pages of mapped files included."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    root, megabytes = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    make_shards(root / "shards", megabytes * 1_000_000)
    train_bpe([" ".join(WORDS)], 400).save(root / "tokenizer")
    data = StreamingDataModule(
        files=str(root / "shards"),
        tokenizer=str(root / "tokenizer"),
        block_size=BLOCK_SIZE,
        block_windows=BLOCK_WINDOWS,
        global_batch_size=GLOBAL_BATCH_SIZE,
        val_documents=10,
        cache_dir=str(root / "cache"),
    )
    data.prepare_data()
    data.setup("fit")
    peaks = []
    for step, _ in enumerate(data.train_dataloader(), start=1):
        peaks.append(peak_bytes())
        block, cursor = data.order.store.cursor(step * GLOBAL_BATCH_SIZE // BLOCK_WINDOWS)
        if cursor.epoch > 0:  # the pass is over
            break
    tokens = block * BLOCK_WINDOWS * BLOCK_SIZE
    print(json.dumps({"tokens": tokens, "start": peaks[0], "peak": peaks[-1]}))
