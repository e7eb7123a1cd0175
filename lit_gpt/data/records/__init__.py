"""Reads files and datasets as records, and extracts texts from records.

- `record.py`: `Record` (fields and position in the source), `Document` (the text of a record), `BadInput` (error or
skip).
- `formats.py`: reads the records of one file, by suffix; built on `compression.py` and `encoding.py`.
- `files.py`: expands files, folders and patterns to a sorted list of files.
- `source.py`: `RecordSource` (list parts, read a part, fingerprint), `FileRecords` and `IterableRecords`;
 `hub.py`: `HubRecords`; `remote.py`: `RemoteRecords`.

All user input is read through this package, so a file yields the same records everywhere.
"""

from lit_gpt.data.records.files import expand_files
from lit_gpt.data.records.formats import FileFormat, read_records
from lit_gpt.data.records.hub import HubDataset, HubRecords, sources_of
from lit_gpt.data.records.record import (
    SPLITS,
    BadInput,
    Document,
    OnBadInput,
    Record,
    SplitName,
    TextField,
    skipped_line,
)
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
    "skipped_line",
    "sources_of",
    "total_bytes",
]
