"""DataModules of text: documents are tokenized into cached shards, from which windows are read.

`prepare_data` (one process per node) creates what is missing in the cache: the tokenizer, then the shards. `setup`
opens them. A subclass of `TokenDataModule` provides its documents in a single method:

    class LyricsDataModule(TokenDataModule):
        def documents(self):
            for path in sorted(Path("lyrics").glob("*.txt")):
                yield path.read_text()

`TextDataModule` reads files and Hugging Face datasets, `StdlibDataModule` the Python standard library.
"""

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from lit_gpt.cache_dir import find_cache_dir, make_cache_dir
from lit_gpt.data.bpe import Pattern, check_vocab_size
from lit_gpt.data.corpus_spec import CorpusSpec
from lit_gpt.data.evaluation_loader import EvaluationLoader
from lit_gpt.data.prepare import check_space, corpus_path, prepare_corpus
from lit_gpt.data.records import (
    Document,
    FileFormat,
    HubDataset,
    IterableRecords,
    OnBadInput,
    RecordSource,
    SplitName,
    sources_of,
)
from lit_gpt.data.shards import TokenCorpus
from lit_gpt.data.stdlib import stdlib_source
from lit_gpt.data.tokenizer_cache import keep_tokenizer, kept_tokenizer_path, prepare_tokenizer, trained_tokenizer_path
from lit_gpt.data.tokenizers import Tokenizer, load_tokenizer
from lit_gpt.datamodules.windows import WindowDataModule
from lit_gpt.errors import UserError

DEFAULT_VOCAB_SIZE = 4096


class TokenDataModule(WindowDataModule):
    """Token windows from a corpus of documents.

    `tokenizer_path` (where the tokenizer will be stored) and `vocab_size` (as configured, or that of the given
    tokenizer) are available right after construction.

    Args:
        tokenizer: Tokenizer to use: a Hugging Face folder, a `tokenizer.json`, a folder with GPT-2's `encoder.json`
            and `vocab.bpe`, or a hub name. Null trains a byte-level BPE on the train split.
        vocab_size: Vocabulary size of the tokenizer to train (4,096 if null). With a given `tokenizer` it may only be
            larger than the tokenizer's, which pads the model's vocabulary.
        tokenizer_pattern: Pattern by which a tokenizer to be trained splits text into words.
        val_fraction: Fraction of the documents held out for validation, chosen by each document's hash; 0 for none.
        test_fraction: Fraction of the documents held out for testing; 0 for none.
        on_bad_input: What to do with a file or row that cannot be read: `error` stops and names it, `skip` leaves it
            out, counts it and names it.
        cache_dir: Folder in which tokenizers and shards are stored; null means `$LIT_GPT_CACHE`, else
            `$XDG_CACHE_HOME/lit_gpt`, else `~/.cache/lit_gpt`.
        prepare_threads: Number of threads that tokenize; null takes one per core.
        kwargs: Arguments of `WindowDataModule`.

    Raises:
        UserError: for sizes that contradict each other, a tokenizer that cannot be loaded, and, while preparing, for
            bad, empty or too short input or a full disk.
    """

    def __init__(
        self,
        tokenizer: str | None = None,
        vocab_size: int | None = None,
        tokenizer_pattern: Pattern = "gpt2",
        val_fraction: float = 0.01,
        test_fraction: float = 0.01,
        on_bad_input: OnBadInput = "error",
        cache_dir: str | None = None,
        prepare_threads: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.tokenizer = tokenizer
        self.tokenizer_pattern: Pattern = tokenizer_pattern
        self.vocab_size = self._resolve_vocab_size(vocab_size)
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.on_bad_input: OnBadInput = on_bad_input
        self.cache_dir = find_cache_dir(cache_dir)
        self.prepare_threads = prepare_threads
        self._folders: tuple[Path, Path] | None = None  # folders of the tokenizer and the corpus, once known

    # ------------------------------------------------------------------ to be provided by subclasses

    def documents(self) -> Iterable[str | Document]:
        """Yield the corpus's documents, always the same ones in the same order; to be implemented by subclasses.

        All documents are read once to compute the key of the cache, so this should be much cheaper than tokenizing.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement documents() or sources()")

    def sources(self) -> Sequence[RecordSource]:
        """Return the corpus's sources; by default a single one made of `documents`."""
        return [IterableRecords(self.documents, name=type(self).__name__)]

    # ------------------------------------------------------------------ preparing and opening

    @cached_property
    def spec(self) -> CorpusSpec:
        """Sources of the corpus and how it is split."""
        return CorpusSpec(self.sources(), self.val_fraction, self.test_fraction, self.on_bad_input)

    @cached_property
    def _configured_tokenizer(self) -> Tokenizer | None:
        return None if self.tokenizer is None else load_tokenizer(self.tokenizer)

    def _resolve_vocab_size(self, vocab_size: int | None) -> int:
        if self._configured_tokenizer is None:
            size = DEFAULT_VOCAB_SIZE if vocab_size is None else vocab_size
            check_vocab_size(size)
            return size
        own = self._configured_tokenizer.vocab_size
        if vocab_size is not None and vocab_size < own:
            raise UserError(
                f"vocab_size {vocab_size} is smaller than the {own} entries of the tokenizer {self.tokenizer}; set it "
                f"to null or to at least {own}"
            )
        return own if vocab_size is None else vocab_size

    @property
    def tokenizer_path(self) -> Path:
        """Hugging Face folder of the tokenizer; it exists after `prepare_data`."""
        if self._folders is not None:
            return self._folders[0]
        if self._configured_tokenizer is not None:
            return kept_tokenizer_path(self._configured_tokenizer, self.cache_dir)
        return trained_tokenizer_path(self.spec, self.cache_dir, self.vocab_size, self.tokenizer_pattern)

    def prepare_data(self) -> None:
        """Create the tokenizer and the token shards, unless they are in the cache."""
        self._check_batch_sizes()
        make_cache_dir(self.cache_dir)
        if self._configured_tokenizer is not None:
            tokenizer = self._configured_tokenizer
            tokenizer_path = keep_tokenizer(tokenizer, self.cache_dir)
        else:
            if not self.tokenizer_path.exists():
                check_space(self.spec, self.cache_dir, self.vocab_size)
            tokenizer_path = prepare_tokenizer(self.spec, self.cache_dir, self.vocab_size, self.tokenizer_pattern)
            tokenizer = load_tokenizer(tokenizer_path)
        corpus = prepare_corpus(self.spec, tokenizer, self.cache_dir, self.prepare_threads)
        self._folders = (tokenizer_path, corpus)

    def setup(self, stage: str) -> None:
        """Open the corpus and check that it has what `stage` needs.

        Args:
            stage: `fit`, `validate`, `test` or `predict`.
        """
        tokenizer, corpus = self._folder_names_from_rank_zero()
        self._folders = (self.cache_dir / "tokenizers" / tokenizer, self.cache_dir / "corpora" / corpus)
        self._corpus = TokenCorpus(self._folders[1])
        self._check_stage(stage)
        if stage == "fit" and self.val_fraction > 0:
            self._evaluation_loader(EvaluationLoader, "val")  # raises for an empty split before the first step

    def _folder_names_from_rank_zero(self) -> tuple[str, str]:
        """Return the folder names of the tokenizer and the corpus; only rank 0 hashes the sources for them."""
        trainer = self.trainer
        names = None
        if self._folders is not None:
            names = (self._folders[0].name, self._folders[1].name)
        elif trainer is None or trainer.is_global_zero:
            tokenizer = self._configured_tokenizer
            if tokenizer is None:
                if not self.tokenizer_path.exists():
                    raise UserError("the corpus is not prepared: call prepare_data() before setup()")
                tokenizer = load_tokenizer(self.tokenizer_path)
            names = (self.tokenizer_path.name, corpus_path(self.spec, tokenizer, self.cache_dir).name)
        names = self._broadcast(names)
        assert names is not None
        return names

    def lineage(self) -> dict[str, Any]:
        """Return which documents, tokenizer and sample order produced the batches, by content hash (JSON values)."""
        lineage = super().lineage()
        lineage["tokenizer"]["given"] = self.tokenizer
        return lineage

    def _holds_out(self, split: SplitName) -> bool:
        """Return whether a split is requested, by its fraction or by the files that a subclass names."""
        fraction = self.val_fraction if split == "val" else self.test_fraction
        return fraction > 0 or super()._holds_out(split)


class TextDataModule(TokenDataModule):
    r"""Text from files, folders, glob patterns and Hugging Face datasets.

    Files are read according to their suffix: JSON, JSON lines, CSV, TSV, Parquet and Arrow have one document per
        record; any other text file (txt, md, code) is one document. Each may be compressed (.gz, .zst, .bz2, .xz). A
        folder is read recursively without hidden entries. A document is assigned to train, validation or test by its
        hash, so that it stays in its split when data are added; `val_files` and `test_files` are held out regardless of
        their hash, even if `files` includes them too (with both fractions 0 only they are held out). Where no
        document of a small corpus falls into a split, the end of its longest document does, as if it were a document.

    Args:
        files: Files, folders or glob patterns (`**` crosses folders) to train on.
        datasets: Hugging Face datasets to train on: names, or mappings with `path`, `name`, `split`, `streaming`, ...
        val_files: Files, folders or patterns whose documents are all used for validation.
        test_files: Files, folders or patterns whose documents are all used for testing.
        text_field: Field or column with the text in tables, JSON and datasets, or a template of fields: "{question}
            {answer}".
        document_separator: String at which plain text files are split into documents (such as a blank line, or the
            `<|endoftext|>` between the documents of some corpora); null keeps each file whole. `\n` and `\t` mean a
            line break and a tab.
        format: File format options that the suffix does not determine: encoding, quoting, delimiter.
        kwargs: Arguments of `TokenDataModule`.

    Raises:
        UserError: Neither `files` nor `datasets` is set.

    Example:
        >>> data = TextDataModule(files="docs/**/*.md", block_size=512, global_batch_tokens=32768)
        >>> data.global_batch_size
        64
    """

    def __init__(
        self,
        files: str | list[str] | None = None,
        datasets: str | HubDataset | list[str | HubDataset] | None = None,
        val_files: str | list[str] | None = None,
        test_files: str | list[str] | None = None,
        text_field: str = "text",
        document_separator: str | None = None,
        format: FileFormat | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not files and not datasets:
            raise UserError("TextDataModule has no input; set files (files, folders, patterns) or datasets")
        self.files = files
        self.datasets = datasets
        self.val_files = val_files
        self.test_files = test_files
        self.text_field = text_field
        self.document_separator = document_separator
        self.format = format

    def sources(self) -> Sequence[RecordSource]:
        """Return the held-out files first, then the other files, then the datasets."""
        held_out = (self.val_files, self.test_files)
        return sources_of(self.files, self.datasets, *held_out, self.text_field, self.document_separator, self.format)


class StdlibDataModule(TokenDataModule):
    """The source of this machine's Python standard library, without its tests: about 12 MB in 700 files.

    Args:
        vocab_size: Vocabulary size of the byte-level BPE tokenizer that is trained on it.
        val_fraction: Fraction of the files held out for validation, chosen by each file's hash.
        test_fraction: Fraction of the files held out for testing.
        kwargs: Arguments of `TokenDataModule`.
    """

    def __init__(
        self,
        vocab_size: int | None = 4096,
        val_fraction: float = 0.05,
        test_fraction: float = 0.05,
        **kwargs: Any,
    ) -> None:
        super().__init__(vocab_size=vocab_size, val_fraction=val_fraction, test_fraction=test_fraction, **kwargs)

    def sources(self) -> Sequence[RecordSource]:
        """Return the standard library as the only source."""
        return [stdlib_source()]
