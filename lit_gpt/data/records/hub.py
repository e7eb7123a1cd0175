"""Records of Hugging Face datasets from the hub, local files or `save_to_disk` folders, loaded or streamed."""

import dataclasses
import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_gpt.data.records.files import DATASET_DICT, DATASET_STATE, expand_files
from lit_gpt.data.records.formats import FileFormat
from lit_gpt.data.records.record import BadInput, Record, SplitName, TextField, no_field
from lit_gpt.data.records.remote import list_remote
from lit_gpt.data.records.source import FileRecords, Part, RecordSource
from lit_gpt.errors import UserError
from lit_gpt.hashing import FileHashes, sha256_json


@dataclass(frozen=True)
class HubDataset:
    """A Hugging Face dataset, specified as for `datasets.load_dataset`.

    Args:
        path: Hub name (`roneneldan/TinyStories`), a local folder (including one written by `save_to_disk`), or a
            builder (`json`) with `data_files`.
        name: Configuration (`sample-10BT`), if the dataset has several.
        split: Split of the dataset to read.
        data_files: Files for a builder, or a part of the repository's files.
        revision: Commit, tag or branch to pin.
        streaming: Whether to read over the network on demand instead of downloading first.
        text_field: Column with the text; null takes the data module's `text_field`.
        max_documents: Maximum number of rows to read.
    """

    path: str
    name: str | None = None
    split: str = "train"
    data_files: str | list[str] | None = None
    revision: str | None = None
    streaming: bool = False
    text_field: str | None = None
    max_documents: int | None = None


class HubRecords(RecordSource):
    """Records of one Hugging Face dataset.

    A downloaded dataset is identified by the content hash computed by `datasets`, a streamed one by its description
    (pin `revision` there) and by name, size and date of its local files.

    Args:
        spec: Dataset to read.
        text_field: Column with the text if `spec` names none.
        split: Split that all records are assigned to; None assigns each by its hash.
        keep: Additional columns that become a document's metadata; None keeps all.
    """

    kind = "hub"

    def __init__(
        self,
        spec: HubDataset,
        text_field: str = "text",
        split: SplitName | None = None,
        keep: Sequence[str] | None = (),
    ) -> None:
        self.spec = spec
        self.text = TextField(spec.text_field or text_field, keep)
        self.split = split
        self.name = "/".join(part for part in (spec.path, spec.name, spec.split) if part)
        self._loaded: Any = None

    def load(self) -> Any:
        """Return the `datasets` object, which is loaded once.

        Raises:
            UserError: if it cannot be loaded.
        """
        if self._loaded is None:
            import datasets

            try:
                saved = self._saved()
                self._loaded = self._load() if saved is None else saved
            except (OSError, ValueError, datasets.exceptions.DatasetsError, RuntimeError) as error:
                reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                raise UserError(f"the dataset {self.name} cannot be loaded: {reason}") from error
        return self._loaded

    def _load(self) -> Any:
        import datasets

        spec = self.spec
        return datasets.load_dataset(
            spec.path,
            spec.name,
            split=spec.split,
            data_files=spec.data_files,
            revision=spec.revision,
            streaming=spec.streaming,
        )

    def _saved(self) -> Any:
        """Return the dataset in a folder written by `save_to_disk`, or None if the path is not such a folder."""
        import datasets

        folder = Path(self.spec.path).expanduser()
        if not any((folder / name).is_file() for name in (DATASET_DICT, DATASET_STATE)):
            return None
        saved = datasets.load_from_disk(str(folder))
        if isinstance(saved, dict):
            if self.spec.split not in saved:
                raise ValueError(f"it has the splits {', '.join(saved)} and none named {self.spec.split!r} (set split)")
            saved = saved[self.spec.split]
        return saved.to_iterable_dataset() if self.spec.streaming else saved

    def fingerprint(self, hashes: FileHashes) -> str:
        """Return the content hash, or for a stream the hash of its description and of its local files' versions."""
        content = self._local_versions() if self.spec.streaming else self.load()._fingerprint
        return sha256_json([self.kind, dataclasses.asdict(self.spec), self.text.text_field, self.split, content])

    def _local_versions(self) -> list[list[Any]]:
        given = [self.spec.data_files] if isinstance(self.spec.data_files, str) else self.spec.data_files or []
        # In a local folder every file counts; a builder's patterns may also be URLs or parts of a repository.
        patterns = [self.spec.path] if Path(self.spec.path).is_dir() else [url for url in given if "://" not in url]
        paths = sorted({path for pattern in patterns for path in [pattern, *glob.glob(pattern, recursive=True)]})
        files = [file for path in paths if os.path.exists(path) for file in list_remote(path)]
        return [[file.url, file.size, file.version] for file in files]

    def num_bytes(self) -> int | None:
        """Return the size that the dataset declares, or None if it declares none or only a part is read."""
        size = None if self.spec.max_documents else self.load().info.dataset_size
        return int(size) if size else None

    def parts(self) -> Iterator[Part]:
        """Yield the whole dataset as one part."""
        yield Part(self.name, None, None, None)

    def read(self, spec: Any, bad_input: BadInput, columns: Sequence[str] | None = None) -> Iterator[Record]:
        """Yield the rows in order, numbered from 1."""
        dataset = self.selected(self.load(), columns)
        for record, row in enumerate(dataset, start=1):
            if self.spec.max_documents is not None and record > self.spec.max_documents:
                return
            yield Record(dict(row), self.name, record)

    def read_from(
        self, spec: Any, position: Any, bad_input: BadInput, columns: Sequence[str] | None = None
    ) -> Iterator[tuple[Record, Any]]:
        """Yield rows with their positions; for a stream, the `IterableDataset.state_dict` and the row number.

        Such a position is exact as long as nothing is shuffled.
        """
        if not self.spec.streaming:
            yield from super().read_from(spec, position, bad_input, columns)
            return
        self._loaded = None  # the object has state: its position
        dataset = self.selected(self.load(), columns)
        record = 0
        if position is not None:
            dataset.load_state_dict(position["state"])
            record = position["record"]
        rows = iter(dataset)
        while self.spec.max_documents is None or record < self.spec.max_documents:
            here = {"state": dataset.state_dict(), "record": record}
            row = next(rows, None)
            if row is None:
                return
            record += 1
            yield Record(dict(row), self.name, record), here

    def selected(self, dataset: Any, columns: Sequence[str] | None) -> Any:
        """Return the dataset with only these columns; None keeps all.

        Raises:
            UserError: if the dataset lacks one.
        """
        if columns is None or dataset.column_names is None:
            return dataset
        for column in columns:
            if column not in dataset.column_names:
                raise UserError(f"{self.name}: {no_field(column, dataset.column_names, 'column')}")
        return dataset.select_columns(list(columns))

    def describe(self) -> dict[str, Any]:
        """Return the dataset's description and content hash."""
        content = None if self.spec.streaming else self.load()._fingerprint
        return {"kind": self.kind, "name": self.name, **dataclasses.asdict(self.spec), "fingerprint": content}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loaded": None}


def sources_of(
    files: str | Sequence[str] | None = None,
    datasets: str | HubDataset | Sequence[str | HubDataset] | None = None,
    val_files: str | Sequence[str] | None = None,
    test_files: str | Sequence[str] | None = None,
    text_field: str = "text",
    document_separator: str | None = None,
    format: FileFormat | None = None,
) -> list[RecordSource]:
    """Return the sources of a DataModule's arguments: held-out files first, then the other files, then datasets.

    A file that is named by two arguments is in one split only: test takes precedence over validation, which takes
    precedence over the rest.

    Args:
        files: Files, folders or patterns whose records are split by hash.
        datasets: Hugging Face datasets, as names or descriptions.
        val_files: Files whose records are all used for validation.
        test_files: Files whose records are all used for testing.
        text_field: Field with the text, or a template of fields.
        document_separator: String at which plain text files are split into records.
        format: File format options.
    """
    found: list[RecordSource] = []
    taken: set[str] = set()
    named: list[tuple[str | Sequence[str] | None, SplitName | None]] = [(test_files, "test"), (val_files, "val")]
    for patterns, split in [*named, (files, None)]:
        new = [(name, path) for name, path in expand_files(patterns or []) if os.path.realpath(path) not in taken]
        taken |= {os.path.realpath(path) for _, path in new}
        if new:
            name = patterns if isinstance(patterns, str) else ", ".join(patterns or ())
            found.append(FileRecords(new, text_field, document_separator, split, name, format))
    specs = [datasets] if isinstance(datasets, str | HubDataset) else datasets or []
    for spec in specs:
        found.append(HubRecords(HubDataset(spec) if isinstance(spec, str) else spec, text_field))
    return found
