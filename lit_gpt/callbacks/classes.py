"""What a classifier says: its confusion matrix as a picture, and each text's class as a line of csv."""

import csv
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_gpt.atomic import whole_file
from lit_gpt.callbacks.attention_picture import picture
from lit_gpt.callbacks.quiet_model import writers
from lit_gpt.callbacks.run_folder import run_dir_of
from lit_gpt.data_info import read_data_info


class ConfusionPicture(Callback):
    """Draws the module's `confusion` (true classes down, predicted ones across) into TensorBoard after each validation.

    Beside the picture stands the table with names and counts.

    Args:
        cell: pixels that a class is wide and high.
    """

    def __init__(self, cell: int = 40) -> None:
        self.cell = cell

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw, on the first process."""
        confusion = getattr(pl_module, "confusion", None)
        if confusion is None or trainer.sanity_checking or not trainer.is_global_zero:
            return
        names = [str(name) for name in getattr(pl_module, "classes", range(len(confusion)))]
        shares = confusion / confusion.sum(1, keepdim=True).clamp(min=1)
        for writer in writers(trainer, "add_image"):
            writer.add_image("confusion", picture(shares[None, None], self.cell), trainer.global_step)
        header = f"| true \\ predicted | {' | '.join(names)} |\n|{'---|' * (len(names) + 1)}\n"
        lines = "".join(
            f"| {name} | {' | '.join(map(str, row))} |\n" for name, row in zip(names, confusion.tolist(), strict=True)
        )
        for writer in writers(trainer, "add_text"):
            writer.add_text("confusion", header + lines, trainer.global_step)


class ClassWriter(Callback):
    """`predict` writes `predictions.csv`: where each text is from, its class, and the probability of every class.

    Args:
        path: of the file; None: `predictions.csv` in the run's folder.
    """

    def __init__(self, path: str | None = None) -> None:
        self.path = path
        self._rows: list[tuple[int, int, list[float]]] = []
        self._names: list[str] = []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with nothing."""
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
        """Add a batch; what another `predict_step` returns is not ours to write."""
        if not isinstance(outputs, dict) or not {"sample_ids", "classes", "probabilities", "names"} <= outputs.keys():
            return
        self._names = outputs["names"]
        columns = (outputs["sample_ids"].tolist(), outputs["classes"].tolist(), outputs["probabilities"].tolist())
        self._rows += zip(*columns, strict=True)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather the processes and write the file, in the order of the split."""
        rows = self._rows
        if trainer.world_size > 1:
            gathered: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(gathered, rows)
            rows = [row for part in gathered for row in part]
        if not rows or not trainer.is_global_zero:
            return
        split_rows = read_data_info(trainer).rows
        where = str if split_rows is None else split_rows("test").where
        path = Path(self.path) if self.path is not None else run_dir_of(trainer) / "predictions.csv"
        with whole_file(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["source", "class", *(f"p({name})" for name in self._names)])
            for number, index, probabilities in sorted(rows):
                writer.writerow([where(number), self._names[index], *(f"{p:.6f}" for p in probabilities)])
        print(f"predictions  {path}")
