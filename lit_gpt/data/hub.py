"""Hugging Face data sets as a source, by name or from local files, downloaded or streamed."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lit_gpt.data.documents import BadInput, Document, SplitName
from lit_gpt.errors import UserError
from lit_gpt.hashing import FileHashes, sha256_json


@dataclass(frozen=True)
class HubDataset:
    """A Hugging Face data set, as `datasets.load_dataset` takes it.

    Args:
        path: Name on the hub (`roneneldan/TinyStories`), a local folder, or a builder (`json`) with `data_files`.
        name: Configuration (`sample-10BT`), where the data set has several.
        split: Split of the data set to read.
        data_files: Files for a builder, or a part of the repository's files.
        revision: Commit, tag or branch to pin.
        streaming: Read over the network as it goes instead of downloading first.
        text_field: Column that holds the text; the data module's `text_field` if null.
        max_documents: Read at most so many rows.
    """

    path: str
    name: str | None = None
    split: str = "train"
    data_files: str | list[str] | None = None
    revision: str | None = None
    streaming: bool = False
    text_field: str | None = None
    max_documents: int | None = None


class HubSource:
    """Documents of one Hugging Face data set.

    A downloaded data set is identified by the content hash that `datasets` gives it, a streamed one by its
    description alone: pin `revision` there.

    Args:
        spec: Which data set.
        text_field: Column of the text where `spec` names none.
        split: Our split that all documents go to; None decides each by its hash.
    """

    def __init__(self, spec: HubDataset, text_field: str = "text", split: SplitName | None = None) -> None:
        self.spec = spec
        self.text_field = spec.text_field or text_field
        self.split: SplitName | None = split
        self.name = "/".join(part for part in (spec.path, spec.name, spec.split) if part)
        self._loaded: Any = None

    def load(self) -> Any:
        """Returns the data set as `datasets` gives it, loaded once.

        Raises:
            UserError: if it cannot be loaded.
        """
        if self._loaded is None:
            import datasets

            spec = self.spec
            try:
                self._loaded = datasets.load_dataset(
                    spec.path,
                    spec.name,
                    split=spec.split,
                    data_files=spec.data_files,
                    revision=spec.revision,
                    streaming=spec.streaming,
                )
            except (OSError, ValueError, datasets.exceptions.DatasetsError, RuntimeError) as error:
                reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                raise UserError(f"the data set {self.name} cannot be loaded: {reason}") from error
        return self._loaded

    def fingerprint(self, hashes: FileHashes) -> str:
        """Returns the content's hash, or for a stream that of its description."""
        content = None if self.spec.streaming else self.load()._fingerprint
        description = dataclasses.asdict(self.spec)
        return sha256_json(["hub", description, self.text_field, self.split, content])

    def num_bytes(self) -> int | None:
        """Returns the size that the data set declares, None where it declares none or a part is read."""
        size = None if self.spec.max_documents else self.load().info.dataset_size
        return int(size) if size else None

    def documents(self, bad_input: BadInput) -> Iterator[Document]:
        """Yields the rows' texts in order."""
        dataset = self.load()
        columns = dataset.column_names
        if columns is not None and self.text_field not in columns:
            names = ", ".join(map(repr, columns))
            raise UserError(f"{self.name}: no column {self.text_field!r}; its columns are {names} (set text_field)")
        if columns is not None:
            dataset = dataset.select_columns([self.text_field])
        for record, row in enumerate(dataset, start=1):
            if self.spec.max_documents is not None and record > self.spec.max_documents:
                return
            text = row.get(self.text_field)
            if isinstance(text, str):
                yield Document(text, self.name, record)
            elif self.text_field in row:
                problem = f"the column {self.text_field!r} holds {type(text).__name__}, not text"
                bad_input.reject(f"{self.name}:{record}", problem)
            else:
                names = ", ".join(map(repr, row))
                problem = f"no column {self.text_field!r}; its columns are {names} (set text_field)"
                bad_input.reject(f"{self.name}:{record}", problem)

    def describe(self) -> dict[str, Any]:
        """Returns the data set's description and content hash."""
        content = None if self.spec.streaming else self.load()._fingerprint
        return {"kind": "hub", "name": self.name, **dataclasses.asdict(self.spec), "fingerprint": content}
