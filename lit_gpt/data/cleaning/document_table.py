"""Which documents a corpus step has seen: their ids, by shard and place, on disk.

Documents have a number: their place in the corpus, shard after shard. Finding duplicates works on numbers alone; ids
come in only when a dropped document names the one that stays for it. Per shard there are `<rank>.ids` (the ids, one
after another) and `<rank>.ends` (where each ends, uint64), so that one id is read without the others.
"""

from array import array
from pathlib import Path
from typing import Any

import numpy as np

from lit_gpt.atomic import whole_file

UInt64Array = np.ndarray[Any, np.dtype[np.uint64]]


class IdWriter:
    """Collects the ids of one shard; `close` writes them.

    Args:
        folder: The table's folder.
        rank: The shard.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self._folder = folder
        self._rank = rank
        self._ids = bytearray()
        self._ends = array("Q")

    def add(self, document_id: str) -> None:
        """Appends the next document's id."""
        self._ids += document_id.encode("utf-8", "surrogatepass")
        self._ends.append(len(self._ids))

    def close(self) -> None:
        """Writes the shard's ids, each file whole or not at all."""
        write_bytes(self._folder / f"{self._rank:05d}.ids", bytes(self._ids))
        write_bytes(self._folder / f"{self._rank:05d}.ends", np.asarray(self._ends, np.uint64).tobytes())


class DocumentTable:
    """Reads the ids of all shards.

    Args:
        folder: The table's folder.
    """

    def __init__(self, folder: Path) -> None:
        self._paths = sorted(folder.glob("*.ends"))
        counts = [path.stat().st_size // 8 for path in self._paths]
        self.starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
        """Number of each shard's first document, and at the end the number of all documents, (shards + 1,)."""

    @property
    def num_documents(self) -> int:
        """Documents in all shards."""
        return int(self.starts[-1])

    def id_of(self, number: int) -> str:
        """Returns the id of a document."""
        rank = int(np.searchsorted(self.starts, number, side="right")) - 1
        place = number - int(self.starts[rank])
        ends = map_array(self._paths[rank], np.uint64)
        start = int(ends[place - 1]) if place else 0
        with open(self._paths[rank].with_suffix(".ids"), "rb") as file:
            file.seek(start)
            return file.read(int(ends[place]) - start).decode("utf-8", "surrogatepass")


def map_array(path: Path, dtype: Any) -> Any:
    """Returns a file's numbers without reading them into memory."""
    if path.stat().st_size == 0:
        return np.empty(0, dtype)
    return np.memmap(path, dtype, mode="r")


def write_bytes(path: Path, data: bytes | bytearray | memoryview) -> None:
    """Writes a file whole or not at all."""
    with whole_file(path) as beside:
        beside.write_bytes(data)
