"""The processes that see different data, and sums over them."""

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor


class RanksMixin(LightningModule):
    """A module that knows its place among the data-parallel ranks, on every strategy."""

    @property
    def _data_parallel(self) -> dict[str, int]:
        return getattr(self.trainer.strategy, "distributed_sampler_kwargs", None) or {"num_replicas": 1, "rank": 0}

    @property
    def data_parallel_size(self) -> int:
        """Ranks that see different data (tensor-parallel ranks see the same)."""
        return self._data_parallel["num_replicas"]

    @property
    def data_parallel_rank(self) -> int:
        """This process's place among them."""
        return self._data_parallel["rank"]

    def _sum_over_ranks(self, value: Tensor) -> Tensor:
        if self.data_parallel_size == 1:
            return value
        value = value.clone()
        group = self.device_mesh["data_parallel"].get_group() if self.device_mesh is not None else None
        torch.distributed.all_reduce(value, group=group)
        return value

    def _log_now(self, values: dict[str, Any]) -> None:
        """Write to the loggers without Lightning's per-step bookkeeping."""
        for logger in self.loggers:
            logger.log_metrics({name: float(value) for name, value in values.items()}, step=self.trainer.global_step)
