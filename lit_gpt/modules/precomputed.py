"""What a reference model thinks of every row, computed once before the first step and kept in the run's folder."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.trainer.states import TrainerFn
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lit_gpt.atomic import whole_file
from lit_gpt.batch import Batch
from lit_gpt.data_info import DataInfo
from lit_gpt.errors import UserError
from lit_gpt.modules.reference import ReferencedModule

SPLITS = ("train", "val", "test")


class PrecomputedReference(ReferencedModule):
    """A `ReferencedModule` that can be told `reference: precomputed`: no second model in memory while it trains.

    A subclass says in `reference_numbers` which two log-probabilities it needs of each row.
    """

    references = ("auto", "frozen", "precomputed", "disabled_adapter")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._tables: dict[str, Tensor] = {}

    def reference_numbers(self, model: Any, batch: Batch) -> Tensor:
        """(rows, 2) float32: log-probabilities under the reference; called without gradients."""
        raise NotImplementedError

    def rows_of(self, batch: Batch) -> Tensor:
        """(rows,) int64: numbers of the batch's rows in their split; -1 is padding."""
        return batch["sample_ids"]

    def of_reference(self, batch: Batch) -> Tensor:
        """(rows, 2) float32: from the tables where there are such, else from the reference itself."""
        if self._tables:
            split = "train" if self.training else "test" if self.trainer.testing else "val"
            return self._tables[split][self.rows_of(batch).clamp(min=0)]
        with self.reference_model() as model, torch.no_grad():
            return self.reference_numbers(model, batch)

    def on_fit_start(self) -> None:
        """Compute or read the tables, if they are to be there beforehand."""
        super().on_fit_start()
        if not self.uses_reference or self.reference != "precomputed":
            return
        info = self.data_info
        if info.rows is None or info.scoring_batches is None:
            raise UserError(
                "reference: precomputed needs a DataModule of rows, such as PreferenceDataModule; set reference: frozen"
            )
        self._tables = {split: self._table(info, split).to(self.device) for split in SPLITS}
        self.__dict__["_frozen"] = None  # its memory is free from here on

    def on_validation_start(self) -> None:
        """Outside a fit, ask the reference itself."""
        super().on_validation_start()
        self._leave_tables()

    def on_test_start(self) -> None:
        """The same."""
        super().on_test_start()
        self._leave_tables()

    def _leave_tables(self) -> None:
        if self.trainer.state.fn != TrainerFn.FITTING:  # perhaps of other rows than those of the last fit
            self._tables = {}

    @torch.no_grad()
    def _table(self, info: DataInfo, split: str) -> Tensor:
        """(rows, 2) float32, from the run's folder if it is there for these rows and weights."""
        assert info.rows is not None
        assert info.scoring_batches is not None
        rows = info.rows(split)
        path = Path(self.trainer.default_root_dir) / "reference" / f"{split}.safetensors"
        key = {"rows": rows.fingerprint, "weights": str(self._first_sha256), "kind": type(self).__name__}
        if path.exists() and _metadata(path) == key:
            return load_file(path)["log_probs"]
        table = torch.zeros(len(rows), 2, device=self.device)
        for batch in info.scoring_batches(split):
            batch = self.transfer_batch_to_device(batch, self.device, 0)
            numbers = self.rows_of(batch)
            here = numbers >= 0
            with self.reference_model() as model:
                table[numbers[here]] = self.reference_numbers(model, batch)[here]
        table = self._sum_over_ranks(table)
        if self.trainer.is_global_zero:
            with whole_file(path) as beside:
                save_file({"log_probs": table.cpu()}, beside, metadata=key)
        return table


def _metadata(path: Path) -> dict[str, str] | None:
    with safe_open(path, framework="pt") as file:
        metadata: dict[str, str] | None = file.metadata()
        return metadata
