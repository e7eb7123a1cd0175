"""Parquet files in batches of rows that are bounded in bytes, whatever the size of a row.

Two kinds of file are small on disk and large in memory: rows of megabytes, of which a fixed number of rows is a
gigabyte; and columns that say one long text many times, which Parquet keeps once (its dictionary) and Arrow would copy
for each row. So the number of rows follows from the sizes that the file declares, and dictionaries stay dictionaries.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

BATCH_BYTES = 8 << 20
_MAX_ROWS = 256


def parquet_batches(path: Path, columns: Sequence[str] | None = None) -> Iterator[Any]:
    """Yields the `pyarrow.RecordBatch`es of a file, in order.

    Args:
        path: The file.
        columns: Columns to read; None reads all.

    Raises:
        pyarrow.ArrowException: if it is damaged, or no Parquet file.
    """
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        names = [name for name in (columns or file.schema_arrow.names) if name in file.schema_arrow.names]
        repeated = [name for name in names if _is_text(file.schema_arrow.field(name).type)]
        metadata = file.metadata
        places = [
            place
            for place in range(metadata.num_columns)
            if metadata.schema.column(place).path.partition(".")[0] in names
        ]
    # A buffered stream decodes page by page instead of loading whole row groups.
    with pyarrow.parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False, read_dictionary=repeated) as file:
        for group in range(metadata.num_row_groups):
            rows = metadata.row_group(group)
            size = sum(rows.column(place).total_uncompressed_size for place in places)
            batch_rows = max(1, min(_MAX_ROWS, BATCH_BYTES * rows.num_rows // max(size, 1)))
            yield from file.iter_batches(batch_size=batch_rows, row_groups=[group], columns=columns)


def _is_text(kind: Any) -> bool:
    import pyarrow

    return bool(pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind))
