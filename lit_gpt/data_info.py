"""`DataInfo`: the information about the data that a LightningModule and its callbacks may use, as one value.

Modules, DataModules and callbacks do not import one another. Apart from the batch (`lit_gpt.batch`), this value is all
that they share: a DataModule provides it as its property `data_info`, and `read_data_info` is the only place that
reads `trainer.datamodule`. A third-party DataModule may provide its own `DataInfo`, or simply have attributes with the
names of its fields (`tokenizer_path`, `block_size`, ...), or none of them: every field is optional, and code that needs
a missing one raises an error that names it.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from lit_gpt.batch import Batch


@dataclass(frozen=True)
class DataParallel:
    """Rank of this process among those that hold different tokens.

    Tensor-parallel processes see the same data, so they share a rank. Losses, counts and statistics are summed over
    these ranks.

    Attributes:
        rank: rank of this process, from 0.
        size: number of ranks.
        group: torch process group of the ranks; None: all processes.
        stages: torch process group of the ranks that hold the other stages of a pipeline and see the same data; None:
            no pipeline.
    """

    rank: int = 0
    size: int = 1
    group: Any = None
    stages: Any = None

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum of a tensor over the ranks; the argument is not modified."""
        if self.size == 1:
            return value
        value = value.clone()
        torch.distributed.all_reduce(value, group=self.group)
        return value

    def total(self, value: Tensor) -> Tensor:
        """Return the sum of a logged value over the ranks and the stages of a pipeline, each of which adds its own."""
        value = self.sum(value)
        if self.stages is not None:
            value = value.clone()
            torch.distributed.all_reduce(value, group=self.stages)
        return value

    def union(self, names: Iterable[str], device: torch.device) -> list[str]:
        """Return the sorted union of the names of all ranks and stages, the same list everywhere; all must call it.

        Args:
            names: names of this rank.
            device: device on which collectives of the group work.
        """
        own = sorted(names)
        if self.size > 1:
            own = _union(own, self.size, self.group, device)
        if self.stages is not None:
            own = _union(own, self.stages.size(), self.stages, device)
        return own


def _union(own: list[str], size: int, group: Any, device: torch.device) -> list[str]:
    # Nearly always all ranks have the same names, so compare a single number instead of exchanging them.
    digest = int.from_bytes(hashlib.sha256("\n".join(own).encode()).digest()[:7], "little")
    extremes = torch.tensor([digest, -digest], device=device)
    torch.distributed.all_reduce(extremes, torch.distributed.ReduceOp.MAX, group=group)
    if int(extremes[0]) == -int(extremes[1]):
        return own
    everyone: list[Any] = [None] * size
    torch.distributed.all_gather_object(everyone, own, group=group)
    return sorted(set().union(*everyone))


class Rows(Protocol):
    """The rows of one split, with the same indices as in a batch's `sample_ids`."""

    fingerprint: str
    """Content hash of the rows and of their encoding."""

    def __len__(self) -> int:
        """Return the number of rows."""

    def where(self, row: int) -> str:
        """Return the source of a row, such as `file.jsonl:12`."""

    def attached(self, row: int) -> str:
        """Return the extra data that was stored with a row, as JSON; empty if there is none."""


class CorpusMixture(Protocol):
    """Several corpora from which training samples are drawn."""

    @property
    def names(self) -> Sequence[str]:
        """Names of the corpora, indexed by `corpus_ids` of a batch."""

    @property
    def num_windows(self) -> Sequence[int]:
        """Number of windows in one epoch of each corpus."""

    def wanted(self, num_samples: int) -> Mapping[str, float]:
        """Return each corpus's target number of samples, by name, among the first `num_samples` of the run."""


@dataclass(frozen=True)
class DataInfo:
    """Information about the data, provided by a DataModule.

    Attributes:
        tokenizer_path: Hugging Face folder of the tokenizer.
        vocab_size: number of tokens in the vocabulary.
        block_size: maximum sequence length in tokens.
        tokens_per_step: input tokens per optimizer step over all ranks, if this number is constant.
        max_prompt_tokens: maximum prompt length in tokens, if the model is to answer prompts.
        packing: whether a row of a batch may contain several documents or conversations.
        classes: names of the classes, for classification.
        data_parallel: rank of this process among those that see different data.
        lineage: returns the documents, tokenizer and order behind the batches, by content hash (JSON values).
        mixture: the corpora of a mixture.
        rows: returns the rows of a split (`train`, `val`, `test`), if the data consists of rows.
        scoring_batches: returns this rank's share of all rows of a split, each once, as batches.
    """

    tokenizer_path: Path | None = None
    vocab_size: int | None = None
    block_size: int | None = None
    tokens_per_step: int | None = None
    max_prompt_tokens: int | None = None
    packing: bool = False
    classes: Sequence[str] | None = None
    data_parallel: DataParallel = field(default_factory=DataParallel)
    lineage: Callable[[], Mapping[str, Any]] | None = None
    mixture: CorpusMixture | None = None
    rows: Callable[[Any], Rows] | None = None
    scoring_batches: Callable[[Any], Iterable[Batch]] | None = None


def read_data_parallel(trainer: Any) -> DataParallel:
    """Return the rank of this process among those that hold different tokens, for any strategy.

    Args:
        trainer: a Lightning Trainer; None: a single process.
    """
    strategy = getattr(trainer, "strategy", None)
    group = getattr(strategy, "loss_group", None)  # of `ParallelStrategy`
    if group is not None:
        return DataParallel(group.rank(), group.size(), group, getattr(strategy, "stage_group", None))
    rank, size = read_sample_rank(trainer)
    mesh = getattr(strategy, "device_mesh", None)  # of Lightning's ModelParallelStrategy
    return DataParallel(rank, size, None if mesh is None else mesh["data_parallel"].get_group())


def read_sample_rank(trainer: Any) -> tuple[int, int]:
    """Return the rank of this process among those that load different samples, and their number.

    Args:
        trainer: a Lightning Trainer; None: a single process.
    """
    ranks = getattr(getattr(trainer, "strategy", None), "distributed_sampler_kwargs", None)
    return (0, 1) if ranks is None else (int(ranks["rank"]), int(ranks["num_replicas"]))


def read_data_info(trainer: Any) -> DataInfo:
    """Return the information that the Trainer's DataModule provides; complete after the DataModule's `setup`.

    Args:
        trainer: a Lightning Trainer, with any DataModule or only loaders.
    """
    datamodule = getattr(trainer, "datamodule", None)
    info = getattr(datamodule, "data_info", None)
    if not isinstance(info, DataInfo):
        # A third-party DataModule: use its attributes that have these names.
        known = {f.name: getattr(datamodule, f.name) for f in fields(DataInfo) if hasattr(datamodule, f.name)}
        known.pop("data_parallel", None)
        if known.get("tokenizer_path") is not None:
            known["tokenizer_path"] = Path(known["tokenizer_path"])
        info = DataInfo(**known)
    return replace(info, data_parallel=read_data_parallel(trainer))
