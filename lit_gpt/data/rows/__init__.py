"""Data sets of separate rows (an instruction and its answer, a preference, a labelled text): from files to batches.

The way of a row: a source of `lit_gpt.data.records` reads it, an encoder turns it into one sequence of tokens or
several with a mask of what is learned (`encoding`), `prepare` writes all of them to the cache once, keyed by content,
and `store` opens them memory-mapped. `order` says which rows are in optimizer step s, a pure function of (seed, s);
`packing` puts short rows side by side; `batches` pads; `loader` hands out steps.
"""

from lit_gpt.data.rows.prepare import prepare_rows
from lit_gpt.data.rows.store import EncodedRow, EncodedSequence, RowEncoder, RowSplit, RowStore

__all__ = ["EncodedRow", "EncodedSequence", "RowEncoder", "RowSplit", "RowStore", "prepare_rows"]
