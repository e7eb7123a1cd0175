"""`duplicate_lines`: lines that stand in many documents are boilerplate (menus, licences, banners) and are removed.

Llama 3 removed the lines that "appeared more than 6 times in each bucket of 30M documents" (Grattafiori et al. 2024,
arXiv:2407.21783, section 3.1.1); here a line is counted once a document, over the whole corpus, and short lines stay,
because closing brackets and `return None` are no boilerplate.

Two stages: the lines' 64-bit hashes (a task a shard), then those that are frequent (16 tasks, each a sixteenth of the
hashes). 8 bytes a line on disk and, a sixteenth at a time, in memory.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from lit_gpt.atomic import whole_file
from lit_gpt.data.cleaning.base import CorpusWideStep, check_at_least
from lit_gpt.data.cleaning.document_table import UInt64Array, map_array, write_bytes
from lit_gpt.data.cleaning.step import Doc, Rejected, Stage
from lit_gpt.extras import need

NUM_PARTS = 16
_DOCUMENTS_AT_ONCE = 1024


def line_hashes(lines: list[str], min_chars: int) -> UInt64Array:
    """Returns one hash a line, with 0 for lines that are too short to count.

    Args:
        lines: Lines; white space at both ends does not count.
        min_chars: Least length that counts.
    """
    xxh3 = need("xxhash", "data", "the step duplicate_lines").xxh3_64_intdigest
    visible = (line.strip() for line in lines)
    return np.fromiter(
        (xxh3(line.encode("utf-8", "surrogatepass")) or 1 if len(line) >= min_chars else 0 for line in visible),
        np.uint64,
        len(lines),
    )


class DuplicateLines(CorpusWideStep):
    """Removes the lines that stand in more than `max_documents` documents, and documents of nothing else.

    Counts `lines_removed`.

    Args:
        max_documents: A line may stand in so many documents (Llama 3: 6).
        min_chars: Shorter lines always stay; white space around a line does not count.
    """

    name = "duplicate_lines"

    def __init__(self, max_documents: int = 6, min_chars: int = 30) -> None:
        super().__init__()
        check_at_least("duplicate_lines: max_documents", max_documents, 1)
        check_at_least("duplicate_lines: min_chars", min_chars, 1)
        self.max_documents = max_documents
        self.min_chars = min_chars

    def stages(self, folder: Path, documents: Path, num_tasks: int) -> list[Stage]:
        """Returns the two stages."""
        from lit_gpt.data.pipeline.document_shards import ReadDocuments

        return [
            Stage("hashes", [ReadDocuments(documents), WriteLines(folder, self.min_chars)], num_tasks),
            Stage("frequent", [FindFrequent(folder, self.max_documents)], NUM_PARTS),
        ]

    def begin(self, folder: Path, rank: int) -> None:
        """Loads the hashes of the frequent lines."""
        parts = [map_array(path, np.uint64) for path in sorted((folder / "frequent").glob("*.hashes"))]
        self._frequent: UInt64Array = np.concatenate(parts)  # sorted: each part holds one range

    def apply(self, document: Doc) -> Doc | Rejected:
        """Returns the document without its frequent lines."""
        if not len(self._frequent):
            return document
        lines = document.text.split("\n")
        hashes = line_hashes(lines, self.min_chars)
        places = np.minimum(np.searchsorted(self._frequent, hashes), len(self._frequent) - 1)
        frequent = self._frequent[places] == hashes
        number = int(frequent.sum())
        if not number:
            return document
        text = "\n".join(line for line, gone in zip(lines, frequent, strict=True) if not gone)
        if not text.strip():
            return Rejected("duplicate_lines_only", f"all {number} lines stand in over {self.max_documents} documents")
        document.text = text
        self.counts["lines_removed"] += number
        return document


class WriteLines:
    """Stage 1: one shard's documents → `lines/<rank>.hashes`, each line once a document, uint64."""

    def __init__(self, folder: Path, min_chars: int) -> None:
        self.folder = Path(folder)
        self.min_chars = min_chars

    def __call__(self, data: Iterable[Any] | None, rank: int = 0, world_size: int = 1) -> None:
        """Reads the documents that reach it and writes the hashes of their lines."""
        with whole_file(self.folder / "lines" / f"{rank:05d}.hashes") as beside, open(beside, "wb") as file:
            waiting: list[UInt64Array] = []
            for document in data or ():
                hashes = np.unique(line_hashes(document.text.split("\n"), self.min_chars))
                waiting.append(hashes[hashes != 0])
                if len(waiting) == _DOCUMENTS_AT_ONCE:
                    file.write(np.concatenate(waiting).tobytes())
                    waiting.clear()
            if waiting:
                file.write(np.concatenate(waiting).tobytes())


class FindFrequent:
    """Stage 2: task p → `frequent/<p>.hashes`, the frequent hashes of the p-th sixteenth of the range, sorted."""

    def __init__(self, folder: Path, max_documents: int) -> None:
        self.folder = Path(folder)
        self.max_documents = max_documents

    def __call__(self, data: Iterable[Any] | None = None, rank: int = 0, world_size: int = NUM_PARTS) -> None:
        """Counts this part's hashes over all shards."""
        chosen = [np.empty(0, np.uint64)]
        for path in sorted((self.folder / "lines").glob("*.hashes")):
            hashes = map_array(path, np.uint64)
            chosen.append(hashes[hashes >> np.uint64(60) == rank])
        values, counts = np.unique(np.concatenate(chosen), return_counts=True)
        frequent = values[counts > self.max_documents]
        write_bytes(self.folder / "frequent" / f"{rank:05d}.hashes", frequent.tobytes())
