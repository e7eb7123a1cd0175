"""Datasets of separate rows (an instruction and its answer, a preference, a labeled text), from files to batches.

A source of `lit_gpt.data.records` reads a row, an encoder converts it to one or several token sequences with a loss
mask, `prepare` writes all rows to the cache once, keyed by content, and `store` opens them memory-mapped. A
`RowSampler` (sampler.py) determines which rows are in optimizer step s, a pure function of (seed, s); `loader` packs or
pads the rows, and yields the steps.
"""

from lit_gpt.data.rows.prepare import prepare_rows
from lit_gpt.data.rows.store import EncodedRow, EncodedSequence, RowEncoder, RowSplit, RowStore

__all__ = ["EncodedRow", "EncodedSequence", "RowEncoder", "RowSplit", "RowStore", "prepare_rows"]
