"""The one reader of files and datasets: they become records, and a text is taken from a record.

- `record.py`: a `Record` (its fields and its place), a `Document` (the text of one), `BadInput` (error or skip).
- `formats.py`: one file → its records, by suffix; on top of `compression.py` and `encoding.py`.
- `files.py`: from files, folders and patterns to a sorted list of files.
- `source.py`: `RecordSource` (list parts, read a part, fingerprint) and its kinds: `FileRecords`, `IterableRecords`;
  `hub.py`: `HubRecords`; `remote.py`: `RemoteRecords`.

All input from users is read through this package, so the same file means the same records everywhere.
"""

from lit_gpt.data.records.files import expand_files
from lit_gpt.data.records.formats import FileFormat, read_records
from lit_gpt.data.records.hub import HubDataset, HubRecords, sources_of
from lit_gpt.data.records.record import SPLITS, BadInput, Document, OnBadInput, Record, SplitName, TextField
from lit_gpt.data.records.source import (
    FileRecords,
    GeneratedRecords,
    IterableRecords,
    Part,
    RecordSource,
    corpus_fingerprint,
    total_bytes,
)

__all__ = [
    "SPLITS",
    "BadInput",
    "Document",
    "FileFormat",
    "FileRecords",
    "GeneratedRecords",
    "HubDataset",
    "HubRecords",
    "IterableRecords",
    "OnBadInput",
    "Part",
    "Record",
    "RecordSource",
    "SplitName",
    "TextField",
    "corpus_fingerprint",
    "expand_files",
    "read_records",
    "sources_of",
    "total_bytes",
]
