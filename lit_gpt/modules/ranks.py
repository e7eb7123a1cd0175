"""The processes that see different data, and sums over them."""

from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor

from lit_gpt.data_info import DataInfo, read_data_info


class RanksMixin(LightningModule):
    """A module that knows its place among the data-parallel ranks, on every strategy."""

    def __init__(self) -> None:
        super().__init__()
        self._data_info: DataInfo | None = None

    def setup(self, stage: str) -> None:
        """Forget an earlier run's data; the DataModule's own `setup` has run."""
        self._data_info = None

    @property
    def data_info(self) -> DataInfo:
        """What the DataModule says about the data, read once a run."""
        # Not read in `setup`, which a subclass may override without calling this one.
        if self._data_info is None:
            self._data_info = read_data_info(self.trainer)
        return self._data_info

    @property
    def data_parallel_size(self) -> int:
        """Ranks that see different data (tensor-parallel ranks see the same)."""
        return self.data_info.data_parallel.size

    @property
    def data_parallel_rank(self) -> int:
        """This process's place among them."""
        return self.data_info.data_parallel.rank

    def _sum_over_ranks(self, value: Tensor) -> Tensor:
        return self.data_info.data_parallel.sum(value)

    def _log_now(self, values: dict[str, Any]) -> None:
        """Write to the loggers without Lightning's per-step bookkeeping."""
        for logger in self.loggers:
            logger.log_metrics({name: float(value) for name, value in values.items()}, step=self.trainer.global_step)
