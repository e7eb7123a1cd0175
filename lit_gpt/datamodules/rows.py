"""Base class of the DataModules of separate rows: reading, encoding and evaluating them.

`prepare_data` (one process per node) encodes the rows that are missing in the cache; `setup` opens them. A subclass
provides the encoder of its rows and the collator of its batches.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lit_gpt.batch import Batch
from lit_gpt.cache_dir import find_cache_dir, make_cache_dir
from lit_gpt.checkpoints.resolve import check_folder_or_hub
from lit_gpt.data.batches import RowBatchBuilder
from lit_gpt.data.cache import print_status
from lit_gpt.data.chat import ChatRenderer
from lit_gpt.data.evaluation_loader import OrderedLoader
from lit_gpt.data.instructions import LongRows, chat_tokenizer
from lit_gpt.data.loader import StepSource
from lit_gpt.data.records import (
    FileFormat,
    HubDataset,
    OnBadInput,
    RecordSource,
    SplitName,
    sources_of,
)
from lit_gpt.data.rows import RowEncoder, RowSplit, RowStore, prepare_rows
from lit_gpt.data.rows.loader import Collator, RowEvaluationLoader, RowSteps, SequenceCollator
from lit_gpt.data.sampler import RowSampler
from lit_gpt.data.tokenizer_cache import keep_tokenizer, kept_tokenizer_path
from lit_gpt.data.tokenizers import Tokenizer
from lit_gpt.data_info import DataInfo
from lit_gpt.datamodules.base import StepDataModule
from lit_gpt.errors import UserError

DEFAULT_GLOBAL_BATCH_SIZE = 16


class RowDataModule(StepDataModule):
    """Batches of rows rendered with a chat template.

    `vocab_size` (that of the tokenizer with the template's tokens) and `block_size` are available right after
    construction.

    Args:
        tokenizer: The model's tokenizer: a tokenizer folder, a hub name, or a run, checkpoint or bundle that contains
            one.
        chat_template: `chatml`, `llama3`, `gemma`, `qwen`, `mistral`, `alpaca`, or a Jinja file; null takes the
            tokenizer's own template. Special tokens of the template that the tokenizer lacks are added.
        chat_tokens: Additional special tokens to add.
        files: JSON, JSON lines, CSV, TSV, Parquet or Arrow files, folders or glob patterns to train on; each may be
            compressed (.gz, .zst, .bz2, .xz).
        datasets: Hugging Face datasets: names, or mappings with `path`, `name`, `split`, ...
        val_files: Files whose rows are all used for validation.
        test_files: Files whose rows are all used for testing.
        columns: Mapping from the expected field name to the name in the data.
        ignore_fields: Fields of rows and turns to leave out, by name or pattern (`meta_*`). Any other field that is
            neither read nor known to be about the row (`id`, `source`, a score) is bad input.
        format: File format options that the suffix does not determine: encoding, quoting, delimiter.
        system_prompt: System prompt for rows that have none.
        block_size: Maximum row length in tokens: the context length.
        long_rows: What to do with rows longer than `block_size`: truncate them (`cut`), leave them out (`drop`) or
            raise an error (`error`); truncated and dropped rows are counted. With `cut`, a row whose prompt alone is
            too long is treated as bad input, because no target tokens would be left.
        global_batch_size: Rows per optimizer step over all devices; null takes 16, or 8 if an epoch would otherwise
            have few steps.
        val_fraction: Fraction of the rows held out for validation, chosen by the hash of each row's prompt.
        test_fraction: Fraction of the rows held out for testing.
        on_bad_input: What to do with a file or row that cannot be used: `error` stops and names it, `skip` leaves it
            out, counts it and names it.
        cache_dir: Folder of the token cache; null means `$LIT_GPT_CACHE`, else `$XDG_CACHE_HOME/lit_gpt`, else
            `~/.cache/lit_gpt`.
        kwargs: Arguments of `StepDataModule`.

    Raises:
        UserError: for sizes that contradict each other, a template that does not mark the assistant's tokens, and,
            while preparing, for bad or missing rows.
    """

    def __init__(
        self,
        tokenizer: str,
        chat_template: str | None = None,
        chat_tokens: list[str] | None = None,
        files: str | list[str] | None = None,
        datasets: str | HubDataset | list[str | HubDataset] | None = None,
        val_files: str | list[str] | None = None,
        test_files: str | list[str] | None = None,
        columns: dict[str, str] | None = None,
        ignore_fields: list[str] | None = None,
        format: FileFormat | None = None,
        system_prompt: str | None = None,
        block_size: int = 1024,
        long_rows: LongRows = "cut",
        global_batch_size: int | None = None,
        val_fraction: float = 0.05,
        test_fraction: float = 0.0,
        on_bad_input: OnBadInput = "error",
        cache_dir: str | None = None,
        **kwargs: Any,
    ) -> None:
        size = DEFAULT_GLOBAL_BATCH_SIZE if global_batch_size is None else global_batch_size
        super().__init__(block_size=block_size, global_batch_size=size, **kwargs)
        self._has_default_batch = global_batch_size is None
        if not Path(tokenizer).expanduser().exists():
            check_folder_or_hub("tokenizer", str(tokenizer), "name a tokenizer folder, a run, a checkpoint or a bundle")
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        self.files = files
        self.datasets = datasets
        self.val_files = val_files
        self.test_files = test_files
        self.columns = columns
        self.ignore_fields = list(ignore_fields or ())
        self.format = format
        self.system_prompt = system_prompt
        self.long_rows: LongRows = long_rows
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.on_bad_input: OnBadInput = on_bad_input
        self.cache_dir = find_cache_dir(cache_dir)
        self.chat_tokens = tuple(chat_tokens or ())
        self.chat_tokenizer, self.new_tokens = self.load_tokenizer()
        self.vocab_size = self.chat_tokenizer.vocab_size
        self._folder: Path | None = None
        self._store: RowStore | None = None
        self._train_samples: list[np.ndarray] | None = None

    # ------------------------------------------------------------------ to be provided by subclasses

    @abstractmethod
    def encoder(self) -> RowEncoder:
        """Return the encoder that turns a row into tokens."""

    def _encoding(self) -> tuple[Any, ...]:
        """Return the arguments of an `InstructionEncoder`."""
        options = (self.block_size, self.long_rows, self.columns, self.system_prompt, self.ignore_fields)
        return self.renderer, *options

    def load_tokenizer(self) -> tuple[Tokenizer, list[str]]:
        """Return the tokenizer with the chat template applied, and the tokens that were added to it."""
        return chat_tokenizer(self.tokenizer, self.chat_template, self.chat_tokens)

    def collator(self, length: int | None = None) -> Collator:
        """Return the collator of rows; it must be picklable, because workers may be spawned.

        Args:
            length: Row length in positions; None: the length of the longest row of the batch.
        """
        return SequenceCollator(self.batch_builder(length))

    def row_sources(self) -> Sequence[RecordSource]:
        """Return the sources of the rows: held-out files first, then the other files, then the datasets.

        Raises:
            UserError: if neither files nor datasets are set.
        """
        found = sources_of(self.files, self.datasets, self.val_files, self.test_files, format=self.format)
        if not found:
            raise UserError(f"{type(self).__name__} has no input; set files (json, jsonl, csv, parquet) or datasets")
        return found

    def samples(self, split: RowSplit) -> list[np.ndarray]:
        """Return, for each row of a training batch, the split rows that it contains: one each, unless packed."""
        return [np.array([row], dtype=np.int64) for row in range(len(split))]

    # ------------------------------------------------------------------ preparing and opening

    @cached_property
    def renderer(self) -> ChatRenderer:
        """The chat template bound to the tokenizer."""
        return ChatRenderer(self.chat_tokenizer)

    @property
    def tokenizer_path(self) -> Path:
        """Hugging Face folder of the tokenizer with template and added tokens; it exists after `prepare_data`."""
        return kept_tokenizer_path(self.chat_tokenizer, self.cache_dir)

    def prepare_data(self) -> None:
        """Store the tokenizer and encode the rows, unless they are in the cache."""
        self._check_batch_sizes()
        make_cache_dir(self.cache_dir)
        keep_tokenizer(self.chat_tokenizer, self.cache_dir)
        if self.new_tokens:
            print_status(f"tokenizer: added {', '.join(self.new_tokens)} for the chat template")
        fractions = (self.val_fraction, self.test_fraction)
        self._folder = prepare_rows(self.row_sources(), self.encoder(), self.cache_dir, *fractions, self.on_bad_input)

    def setup(self, stage: str) -> None:
        """Open the rows and check that the split that `stage` needs is not empty.

        Args:
            stage: `fit`, `validate`, `test` or `predict`.

        Raises:
            UserError: if the split is empty, or the rows are not prepared.
        """
        name = self._broadcast(None if self._folder is None else self._folder.name)
        if name is None:
            raise UserError("the rows are not prepared: call prepare_data() before setup()")
        self._store = RowStore(self.cache_dir / "rows" / name)
        self._train_samples = None
        needed: dict[str, SplitName] = {"fit": "train", "validate": "val", "test": "test", "predict": "test"}
        split = needed.get(stage)
        if split is not None and not len(self._split(split)):
            remedy = f"raise {split}_fraction, or name {split}_files"
            if split == "train":
                remedy = "lower val_fraction and test_fraction, or add rows"
            raise UserError(f"no row fell into the {split} split; {remedy}")
        if stage == "fit" and self._has_default_batch:
            self._shrink_default_batch(len(self._samples()))
        self._check_batch_sizes()

    @property
    def data_info(self) -> DataInfo:
        """Facts about the data for the module and its callbacks; complete after `setup`."""
        return replace(super().data_info, rows=self._split, scoring_batches=self.scoring_batches)

    @property
    def store(self) -> RowStore:
        """The prepared rows.

        Raises:
            UserError: before `setup`.
        """
        if self._store is None:
            raise UserError("the rows are not open yet: call prepare_data() and setup() first")
        return self._store

    def _split(self, name: SplitName) -> RowSplit:
        return self.store.split(name)

    def lineage(self) -> dict[str, Any]:
        """Return which rows, tokenizer and sample order produced the batches, by content hash (JSON values)."""
        return {
            "class": f"{type(self).__module__}.{type(self).__qualname__}",
            **self._identity(),
            "global_batch_size": self.global_batch_size,
            "seed": self.seed,
            "rows": self.store.lineage(),
            "tokenizer": {
                "given": self.tokenizer,
                "vocab_size": self.vocab_size,
                "fingerprint": self.chat_tokenizer.fingerprint,
                "chat_template": self.chat_template,
                "new_tokens": self.new_tokens,
            },
        }

    def _identity(self) -> dict[str, Any]:
        """Return what the order depends on in addition to rows, seed and global batch size."""
        return {"block_size": self.block_size}

    # ------------------------------------------------------------------ batches

    def train_steps(self) -> StepSource:
        """Return the dataset of this rank's optimizer steps."""
        split, samples = self._split("train"), self._samples()
        sampler = RowSampler(len(samples), self.global_batch_size, self.seed, self._lengths(split))
        collate = self.collator(self._row_length)
        options = self._identity()
        return RowSteps(split, samples, sampler, collate, self._micro_batch_size(), **self._ranks(), options=options)

    def _samples(self) -> list[np.ndarray]:
        """Return the samples of the train split; computed once, because packing many rows takes seconds."""
        if self._train_samples is None:
            self._train_samples = self.samples(self._split("train"))
        return self._train_samples

    def val_dataloader(self) -> Any:
        """Return the loader of the validation rows; an empty list if nothing is held out."""
        return self._limited(self._evaluation_loader("val"), "val") if len(self._split("val")) else self._empty_loader()

    def test_dataloader(self) -> Any:
        """Return the loader of the test rows."""
        return self._limited(self._evaluation_loader("test"), "test") if len(self._split("test")) else []

    def predict_dataloader(self) -> Any:
        """Return the loader of the test rows."""
        return self._evaluation_loader("test") if len(self._split("test")) else []

    def scoring_batches(self, split: SplitName) -> Iterator[Batch]:
        """Yield this rank's share of all rows of a split once, to compute log-probabilities beforehand."""
        rows = self._split(split)
        if len(rows):
            yield from RowEvaluationLoader(rows, self.collator(), self._eval_batch_size(), **self._ranks())

    def _evaluation_loader(self, split: SplitName) -> OrderedLoader:
        rows, size = self._split(split), self._eval_batch_size()
        return RowEvaluationLoader(rows, self.collator(), size, **self._evaluation_processes())

    def batch_builder(self, length: int | None = None) -> RowBatchBuilder:
        """Return the builder that packs or pads sequences."""
        tokenizer: Tokenizer = self.chat_tokenizer
        return RowBatchBuilder(tokenizer.separator_id, tokenizer.byte_lengths, length)

    @property
    def _row_length(self) -> int | None:
        """Length of a training row; None: the length of the longest row of its micro-batch."""
        return None

    def _lengths(self, split: RowSplit) -> np.ndarray | None:
        """Return the lengths by which samples are grouped; None disables grouping."""
        return split.lengths()
