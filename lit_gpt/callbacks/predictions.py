"""`PredictionWriter` and `ClassWriter`: write the output of `predict`, one line per document or text."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_gpt.atomic import atomic_file
from lit_gpt.callbacks.run_folder import run_dir_of
from lit_gpt.checks import local_path
from lit_gpt.data_info import read_data_info, read_data_parallel

SUMS = ("loss_sum", "num_tokens", "num_bytes")


class PredictionWriter(Callback):
    """Adds up the windows of each document, over batches and processes, and writes a file atomically.

    `predict_step` returns a dict of tensors of shape (N,), one entry per window or document in the batch:
    `document_index` (negative: padding), `loss_sum` (nats), `num_tokens` and `num_bytes` (supervised), and it may
    return `sources`, N names. A line reads

        {"document": 7, "source": "a.txt", "loss_nats": 3.1, "num_tokens": 120, "num_bytes": 431, "bits_per_byte": 1.25}

    with the loss in nats per token; `bits_per_byte` is null for a document without bytes, `source` without a name.

    Args:
        path: path of the file; None: `predictions.jsonl` in the run's folder. With `limit_predict_batches`, the file
            next to it with `-limited` in its name.
    """

    def __init__(self, path: str | None = None) -> None:
        self.path = None if path is None else local_path(f"path of {type(self).__name__}", path)
        self._begin()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Discard rows of an earlier call."""
        self._begin()

    def _begin(self) -> None:
        self._sums = np.zeros((len(SUMS), 0))
        self._sources: dict[int, str] = {}

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add a batch; the output of another kind of `predict_step` is ignored."""
        if not isinstance(outputs, dict) or not {"document_index", *SUMS} <= outputs.keys():
            return
        index = outputs["document_index"].cpu().numpy()
        real = index >= 0
        if not real.any():
            return
        self._grow(int(index.max()) + 1)
        for document, source in zip(index.tolist(), outputs.get("sources", ()), strict=False):
            if document >= 0:
                self._sources[document] = source
        for sums, name in zip(self._sums, SUMS, strict=True):
            np.add.at(sums, index[real], outputs[name].double().cpu().numpy()[real])

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sum over the processes and write the file."""
        if trainer.world_size > 1:
            self._add_processes(trainer, pl_module)
        if trainer.is_global_zero:
            path = _path(trainer, self.path or run_dir_of(trainer) / "predictions.jsonl")
            if path is None:
                return
            with atomic_file(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
                for document, (loss, tokens, num_bytes) in enumerate(self._sums.T):
                    if tokens:
                        source = self._sources.get(document)
                        file.write(json.dumps(_line(document, source, loss, int(tokens), int(num_bytes))) + "\n")
            print(f"predictions  {path}")

    def _grow(self, size: int) -> None:
        if size > self._sums.shape[1]:
            grown = np.zeros((len(SUMS), max(size, 2 * self._sums.shape[1])))
            grown[:, : self._sums.shape[1]] = self._sums
            self._sums = grown

    def _add_processes(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sum over the processes with different tokens (tensor-parallel ones have the same)."""
        group = read_data_parallel(trainer).group
        size = torch.tensor(self._sums.shape[1], device=pl_module.device)
        torch.distributed.all_reduce(size, torch.distributed.ReduceOp.MAX)
        self._grow(int(size))
        sums = torch.from_numpy(self._sums[:, : int(size)].copy()).to(pl_module.device)
        torch.distributed.all_reduce(sums, group=group)
        self._sums = sums.cpu().numpy()
        gathered: list[Any] = [None] * trainer.world_size
        torch.distributed.all_gather_object(gathered, self._sources)
        self._sources = {document: source for part in gathered for document, source in part.items()}


def _line(document: int, source: str | None, loss_sum: float, num_tokens: int, num_bytes: int) -> dict[str, Any]:
    return {
        "document": document,
        "source": source,
        "loss_nats": loss_sum / num_tokens,
        "num_tokens": num_tokens,
        "num_bytes": num_bytes,
        "bits_per_byte": loss_sum / (num_bytes * math.log(2)) if num_bytes else None,
    }


def _path(trainer: Trainer, path: Path) -> Path | None:
    """Return where to write: a few batches must not replace the predictions of a full split.

    Returns:
        `path`; with `limit_predict_batches` a file next to it that ends in `-limited`; None in a `fast_dev_run`.
    """
    if getattr(trainer, "fast_dev_run", False):
        print(f"fast_dev_run: not writing {path}")
        return None
    limit = trainer.limit_predict_batches
    everything = limit is None or (isinstance(limit, float) and limit == 1.0)  # the number 1 means one batch
    return path if everything else path.with_stem(f"{path.stem}-limited")


class ClassWriter(Callback):
    """Writes `predictions.csv`: the source of each text, its class, and the probability of every class.

    Args:
        path: path of the file; None: `predictions.csv` in the run's folder.
    """

    def __init__(self, path: str | None = None) -> None:
        self.path = None if path is None else local_path(f"path of {type(self).__name__}", path)
        self._rows: list[tuple[int, int, list[float]]] = []
        self._names: list[str] = []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Discard rows of an earlier call."""
        self._rows = []

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add a batch; the output of another kind of `predict_step` is ignored."""
        if not isinstance(outputs, dict) or not {"sample_ids", "classes", "probabilities", "names"} <= outputs.keys():
            return
        self._names = outputs["names"]
        columns = (outputs["sample_ids"].tolist(), outputs["classes"].tolist(), outputs["probabilities"].tolist())
        self._rows += zip(*columns, strict=True)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather the rows of all processes and write the file, in the order of the split."""
        rows = self._rows
        if trainer.world_size > 1:
            gathered: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(gathered, rows)
            rows = [row for part in gathered for row in part]
        if not rows or not trainer.is_global_zero:
            return
        split_rows = read_data_info(trainer).rows
        where = str if split_rows is None else split_rows("test").where
        path = _path(trainer, self.path or run_dir_of(trainer) / "predictions.csv")
        if path is None:
            return
        with atomic_file(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["source", "class", *(f"p({name})" for name in self._names)])
            for number, index, probabilities in sorted(rows):
                writer.writerow([where(number), self._names[index], *(f"{p:.6f}" for p in probabilities)])
        print(f"predictions  {path}")
