"""The batch: the data structure shared by DataModules and LightningModules.

Shapes: B sequences, T tokens. Within a packed row, attention never crosses document boundaries, and positions restart
at 0 in each document.
"""

from typing import Any, TypedDict

from torch import Tensor

IGNORE_INDEX = -100
"""Label of a position that is not supervised (`torch.nn.functional.cross_entropy`'s default)."""


class Batch(TypedDict, total=False):
    """One micro-batch. Objectives may add keys, but never change the meaning of these."""

    input_ids: Tensor
    """(B, T) int64 token ids."""
    labels: Tensor
    """(B, T) int64, already shifted: `labels[:, t]` is the token after `input_ids[:, t]`; -100 = not supervised."""
    position_ids: Tensor
    """(B, T) int64, 0 at the start of each document."""
    document_ids: Tensor
    """(B, T) int64: 0, 1, 2, ... within the row, -1 on padding."""
    sample_ids: Tensor
    """(B,) int64: the window's index in the global order of samples."""
    num_bytes: Tensor
    """(B,) int64: UTF-8 bytes of the supervised tokens, for bits per byte."""
    corpus_ids: Tensor
    """(B,) int64: index of the corpus that each row is from, if a DataModule mixes several."""
    corpus: str
    """Name of the corpus that an evaluation batch is from, if there are several."""
    sequence: Any
    """A `models.mixers.SequencePart`, if rows are divided over processes (context parallelism): then this process has
    only its own tokens in every tensor of (B, T, ...), and `num_bytes` only on the first of the processes."""


StepBatch = list[Batch]
"""A training batch: the micro-batches that one device contributes to one optimizer step.

Lightning therefore counts optimizer steps wherever it counts batches, no checkpoint can fall inside a gradient
accumulation, and a run may be resumed on another number of devices.
"""
