"""The last pass, which tokenizes the clean documents into a `TokenCorpus` with the same code as all other corpora.

A document keeps the source and record from which it was read, so that a window of tokens can be traced back to a line
of a file or a row of a dataset.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lit_gpt.atomic import atomic_folder
from lit_gpt.data.bpe import train_bpe
from lit_gpt.data.cache import print_status
from lit_gpt.data.corpus_spec import CorpusSpec, training_texts
from lit_gpt.data.pipeline.document_shards import read_lines, shard_paths
from lit_gpt.data.pipeline.recipe import Recipe, tokenizer_settings
from lit_gpt.data.prepare import prepare_corpus
from lit_gpt.data.records import BadInput, Part, Record, RecordSource
from lit_gpt.data.tokenizers import Tokenizer, load_tokenizer
from lit_gpt.hashing import FileHashes, sha256_json

SAMPLE_MEGABYTES = 256


class CleanDocuments(RecordSource):
    """The documents that remain after all steps, as a source.

    Args:
        folder: Folder of the document shards.
        num_bytes: UTF-8 bytes of all texts.
        one_source: Whether the recipe has a single source, whose name need not precede each path.
    """

    kind = "prepared"

    def __init__(self, folder: Path, num_bytes: int, one_source: bool) -> None:
        self.folder = folder
        self.name = folder.as_posix()
        self._num_bytes = num_bytes
        self._one_source = one_source

    def parts(self) -> Iterator[Part]:
        """Yield the shards."""
        for path in shard_paths(self.folder):
            yield Part(path.name, str(path), None, None, path)

    def read(self, spec: Any, bad_input: BadInput, columns: Sequence[str] | None = None) -> Iterator[Record]:
        """Yield a shard's documents with their original source names and records."""
        for line in read_lines(Path(spec)):
            metadata = line["metadata"]
            yield Record({"text": line["text"]}, token_source(metadata, self._one_source), int(metadata["record"]))

    def fingerprint(self, hashes: FileHashes) -> str:
        """Return a hash of the shards."""
        return sha256_json(["clean", [hashes.sha256(path) for path in shard_paths(self.folder)]])

    def num_bytes(self) -> int:
        """Return the bytes of all texts."""
        return self._num_bytes

    def describe(self) -> dict[str, Any]:
        """Return what lineage records about the source."""
        return {"kind": self.kind, "name": "documents", "bytes": self._num_bytes}


def token_source(metadata: dict[str, Any], one_source: bool) -> str:
    """Return the source name of a document in the token shards."""
    return str(metadata["path"]) if one_source else f"{metadata['source']}/{metadata['path']}"


def clean_spec(recipe: Recipe, documents: Path, num_bytes: int) -> CorpusSpec:
    """Return the spec of the corpus of clean documents."""
    source = CleanDocuments(documents, num_bytes, len(recipe.sources) == 1)
    return CorpusSpec([source], recipe.val_fraction, recipe.test_fraction, "error")


def make_tokenizer(recipe: Recipe, spec: CorpusSpec, folder: Path) -> Tokenizer:
    """Train or copy the recipe's tokenizer into `folder`, unless it exists there."""
    if folder.exists():
        return load_tokenizer(folder)
    if isinstance(recipe.tokenizer, str):
        tokenizer = load_tokenizer(recipe.tokenizer)
    else:
        settings = tokenizer_settings(recipe.tokenizer or {})
        sample_bytes = settings.pop("sample_megabytes", SAMPLE_MEGABYTES) * 1_000_000
        texts = training_texts(spec, sample_bytes, spec.sources[0].num_bytes())
        tokenizer = train_bpe(texts, **settings)
        print_status(f"tokenizer: {tokenizer.vocab_size:,} entries trained")
    with atomic_folder(folder) as unfinished:
        tokenizer.save(unfinished)
    return load_tokenizer(folder)


def tokenise(recipe: Recipe, spec: CorpusSpec, tokenizer: Tokenizer, folder: Path, work: Path, key: str) -> Path:
    """Write the token shards, resuming an interrupted run.

    Args:
        recipe: The recipe.
        spec: The clean documents.
        tokenizer: Tokenizer to use.
        folder: Folder of the corpus.
        work: Folder of the lock.
        key: Key of the recipe, for the manifest.
    """
    threads = recipe.executor.workers if recipe.executor.kind == "local" else None
    return prepare_corpus(spec, tokenizer, work, threads, folder=folder, key=key)
