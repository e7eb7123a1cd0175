"""What every DataModule of separate rows shares: reading, preparing, ranks and loaders, whatever a row becomes.

`prepare_data` (one process a node) encodes what the cache lacks; `setup` opens it. A subclass says which encoder its
rows need and how a batch is made of them.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning import LightningDataModule

from lit_gpt.batch import Batch
from lit_gpt.data.cache import default_cache_dir, say
from lit_gpt.data.chat import ChatRenderer
from lit_gpt.data.documents import OnBadInput, SplitName
from lit_gpt.data.files import expand_files
from lit_gpt.data.instructions import LongRows, chat_tokenizer
from lit_gpt.data.loader import StepLoader, check_batch_sizes
from lit_gpt.data.rows import FileRows, HubRows, RowEncoder, RowSource, RowSplit, RowStore, prepare_rows
from lit_gpt.data.rows.batches import RowBatchBuilder
from lit_gpt.data.rows.loader import BuildBatch, RowEvaluationLoader, RowSteps, row_step_loader, sequences_batch
from lit_gpt.data.rows.order import SampleOrder
from lit_gpt.data.sources import HubDataset
from lit_gpt.data.tokenizer_cache import keep_tokenizer, kept_tokenizer_path
from lit_gpt.data.tokenizers import Tokenizer
from lit_gpt.data_info import DataInfo, read_data_parallel
from lit_gpt.errors import UserError


class RowDataModule(LightningDataModule):
    """Batches of rows rendered with a chat template.

    A training batch is the list of micro-batches that this device contributes to one optimizer step; evaluation
    batches are single ones. Which rows a step sees depends on rows, seed and step alone.

    `vocab_size` (the tokenizer's, with the template's tokens) and `block_size` are known from the start.

    Args:
        tokenizer: The model's: a tokenizer folder, a hub name, or a run, checkpoint or bundle, whose own is meant.
        chat_template: `chatml`, `llama3`, `gemma`, `qwen`, `mistral`, `alpaca`, or a Jinja file; null takes the
            tokenizer's own. Special tokens that it names and the tokenizer lacks are added.
        chat_tokens: Further special tokens to add.
        files: json, jsonl, csv, tsv or parquet files, folders or patterns to train on; each also as .gz or .zst.
        datasets: Hugging Face data sets: names, or mappings with `path`, `name`, `split`, ...
        val_files: Files whose rows are all for validation.
        test_files: Files whose rows are all for the test.
        columns: Our name of a field → the name that the data has for it.
        system_prompt: Given to rows that have none.
        block_size: Tokens of a row at most: the context.
        long_rows: A longer row is cut off at its end (`cut`), left out (`drop`) or an error; the first two are
            counted. Under `cut`, a row whose prompt alone is longer is bad input: nothing would be left to learn.
        global_batch_size: Rows of a batch in one optimizer step over all devices.
        micro_batch_size: Rows that a device takes at once; `auto` takes its whole share of a step. Smaller ones save
            memory and change no result.
        eval_batch_size: Rows of an evaluation batch on each device; null takes `micro_batch_size`, at most 32.
        val_fraction: Share of the rows held out for validation, chosen by the hash of each row's prompt.
        test_fraction: Share held out for the test.
        seed: Chooses the order.
        num_workers: Processes that assemble batches ahead; 0 assembles them in this one.
        on_bad_input: What happens at a file or row that cannot be used: `error` stops and names it, `skip` leaves it
            out, counts and names it.
        cache_dir: Where tokens are kept; null means `$LIT_GPT_CACHE`, else `$XDG_CACHE_HOME/lit_gpt`, else
            `~/.cache/lit_gpt`.

    Raises:
        UserError: for sizes that contradict each other, a template that cannot be learned from, and, while preparing,
            for bad or missing rows.
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
        system_prompt: str | None = None,
        block_size: int = 1024,
        long_rows: LongRows = "cut",
        global_batch_size: int = 16,
        micro_batch_size: int | Literal["auto"] = "auto",
        eval_batch_size: int | None = None,
        val_fraction: float = 0.05,
        test_fraction: float = 0.0,
        seed: int = 0,
        num_workers: int = 0,
        on_bad_input: OnBadInput = "error",
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        sizes = {
            "block_size": block_size,
            "global_batch_size": global_batch_size,
            "micro_batch_size": micro_batch_size,
            "eval_batch_size": eval_batch_size,
        }
        for name, value in sizes.items():
            if isinstance(value, int) and value < 1:
                raise UserError(f"{name} is {value}; it must be at least 1")
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        self.files = files
        self.datasets = datasets
        self.val_files = val_files
        self.test_files = test_files
        self.columns = columns
        self.system_prompt = system_prompt
        self.block_size = block_size
        self.long_rows: LongRows = long_rows
        self.global_batch_size = global_batch_size
        self.micro_batch_size = micro_batch_size
        self.eval_batch_size = eval_batch_size
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.seed = seed
        self.num_workers = num_workers
        self.on_bad_input: OnBadInput = on_bad_input
        self.cache_dir = default_cache_dir() if cache_dir is None else Path(cache_dir).expanduser()
        self.chat_tokens = tuple(chat_tokens or ())
        self.chat_tokenizer, self.new_tokens = self.load_tokenizer()
        self.vocab_size = self.chat_tokenizer.vocab_size
        self._folder: Path | None = None
        self._store: RowStore | None = None

    # ------------------------------------------------------------------ what a subclass says

    @abstractmethod
    def encoder(self) -> RowEncoder:
        """Returns what turns a row into tokens."""

    def load_tokenizer(self) -> tuple[Tokenizer, list[str]]:
        """Returns the tokenizer with the chat template in it, and the tokens that are new in it."""
        return chat_tokenizer(self.tokenizer, self.chat_template, self.chat_tokens)

    def build_batch(self, length: int | None = None) -> BuildBatch:
        """Returns how rows become a batch.

        Args:
            length: Positions of a row; None: as many as the longest needs.
        """
        return sequences_batch(self.batch_builder(length))

    def row_sources(self) -> Sequence[RowSource]:
        """Returns where rows come from: what is held out by name, then the other files, then the data sets."""
        found: list[RowSource] = []
        taken: set[Path] = set()  # a file is in one split, the first of these that names it
        named: list[tuple[str | list[str] | None, SplitName | None]] = [(self.test_files, "test")]
        for patterns, split in [*named, (self.val_files, "val"), (self.files, None)]:
            files = [(name, path) for name, path in expand_files(patterns or []) if path.resolve() not in taken]
            taken |= {path.resolve() for _, path in files}
            if files:
                found.append(FileRows(files, split))
        specs = self.datasets if isinstance(self.datasets, list) else [self.datasets] if self.datasets else []
        found += [HubRows(HubDataset(spec) if isinstance(spec, str) else spec) for spec in specs]
        if not found:
            raise UserError(
                f"{type(self).__name__} has nothing to read; set files (json, jsonl, csv, parquet) or datasets"
            )
        return found

    def samples(self, split: RowSplit) -> list[np.ndarray]:
        """Returns, for each row of a training batch, the rows of the split that are in it: one each, unpacked."""
        return [np.array([row], dtype=np.int64) for row in range(len(split))]

    # ------------------------------------------------------------------ preparing and opening

    @cached_property
    def renderer(self) -> ChatRenderer:
        """The chat template on the tokenizer."""
        return ChatRenderer(self.chat_tokenizer)

    @property
    def tokenizer_path(self) -> Path:
        """Hugging Face folder of the tokenizer with template and new tokens; it exists after `prepare_data`."""
        return kept_tokenizer_path(self.chat_tokenizer, self.cache_dir)

    @property
    def tokens_per_step(self) -> int | None:
        """Input tokens of one optimizer step over all devices, where every step has as many."""
        return None

    def prepare_data(self) -> None:
        """Keeps the tokenizer and encodes the rows, unless the cache has them."""
        self._check_batch_sizes()
        try:
            self.cache_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cache_dir {self.cache_dir} cannot be made ({error.strerror}); set it (or LIT_GPT_CACHE) to a folder "
                "that can be written"
            ) from error
        keep_tokenizer(self.chat_tokenizer, self.cache_dir)
        if self.new_tokens:
            say(f"tokenizer: added {', '.join(self.new_tokens)} for the chat template")
        fractions = (self.val_fraction, self.test_fraction)
        self._folder = prepare_rows(self.row_sources(), self.encoder(), self.cache_dir, *fractions, self.on_bad_input)

    def setup(self, stage: str) -> None:
        """Opens the rows and checks that there are some for `stage`.

        Args:
            stage: `fit`, `validate`, `test` or `predict`.
        """
        name = None if self._folder is None else self._folder.name
        if self.trainer is not None:
            name = self.trainer.strategy.broadcast(name)  # only one process has hashed the sources
        if name is None:
            raise UserError("the rows are not prepared: call prepare_data() before setup()")
        self._store = RowStore(self.cache_dir / "rows" / name)
        self._check_batch_sizes()
        needed: dict[str, list[SplitName]] = {
            "fit": ["train"],
            "validate": ["val"],
            "test": ["test"],
            "predict": ["test"],
        }
        for split in needed.get(stage, []):
            if not len(self.store.split(split)):
                raise UserError(
                    f"no row fell into the {split} split; "
                    + ("lower val_fraction and test_fraction, or add rows" if split == "train" else
                       f"raise {split}_fraction, or name {split}_files")
                )  # fmt: skip

    @property
    def data_info(self) -> DataInfo:
        """What the module and its callbacks may know about the data; complete after `setup`."""
        return DataInfo(
            tokenizer_path=self.tokenizer_path,
            vocab_size=self.vocab_size,
            block_size=self.block_size,
            tokens_per_step=self.tokens_per_step,
            max_prompt_tokens=getattr(self, "max_prompt_tokens", None),
            packing=getattr(self, "packing", False),
            classes=getattr(self, "classes", None),
            lineage=self.lineage,
            rows=lambda split: self.store.split(split),
            scoring_batches=self.scoring_batches,
        )

    @property
    def store(self) -> RowStore:
        """The prepared rows.

        Raises:
            UserError: before `setup`.
        """
        if self._store is None:
            raise UserError("the rows are not open yet: call prepare_data() and setup() first")
        return self._store

    def lineage(self) -> dict[str, Any]:
        """Returns which rows, tokenizer and order made the batches, by content hash (JSON values)."""
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
        """What the order depends on beside rows, seed and global batch size."""
        return {"block_size": self.block_size}

    # ------------------------------------------------------------------ batches

    def train_dataloader(self) -> StepLoader:
        """Returns the resumable loader of optimizer steps."""
        split = self.store.split("train")
        samples = self.samples(split)
        rank, world_size = self._ranks()
        order = SampleOrder(len(samples), self.global_batch_size, self.seed, self._lengths(split))
        build = self.build_batch(self._row_length)
        steps = RowSteps(split, samples, order, build, self._micro_batch_size(), rank, world_size)
        return row_step_loader(steps, self._identity(), world_size, self.num_workers, torch.cuda.is_available())

    def val_dataloader(self) -> Any:
        """Returns the loader of the validation rows; none if nothing is held out."""
        return self._evaluation_loader("val")

    def test_dataloader(self) -> Any:
        """Returns the loader of the test rows."""
        return self._evaluation_loader("test")

    def predict_dataloader(self) -> Any:
        """Returns the loader of the test rows."""
        return self._evaluation_loader("test")

    def scoring_batches(self, split: SplitName) -> Iterator[Batch]:
        """Yields this rank's share of all rows of a split, once, for log-probabilities computed beforehand."""
        rows = self.store.split(split)
        if len(rows):
            rank, world_size = self._ranks()
            yield from RowEvaluationLoader(rows, self.build_batch(), self._eval_batch_size(), rank, world_size)

    def _evaluation_loader(self, name: SplitName) -> Any:
        split = self.store.split(name)
        if not len(split):
            return []
        rank, world_size = self._ranks()
        pin_memory = torch.cuda.is_available()
        return RowEvaluationLoader(split, self.build_batch(), self._eval_batch_size(), rank, world_size, pin_memory)

    def batch_builder(self, length: int | None = None) -> RowBatchBuilder:
        """Returns what packs or pads sequences."""
        tokenizer: Tokenizer = self.chat_tokenizer
        return RowBatchBuilder(tokenizer.separator_id, tokenizer.byte_lengths, length)

    @property
    def _row_length(self) -> int | None:
        """Positions of a training row; None: as many as the longest of its micro-batch needs."""
        return None

    def _lengths(self, split: RowSplit) -> np.ndarray | None:
        """Lengths to group samples by; None: do not."""
        return split.lengths()

    def _check_batch_sizes(self) -> None:
        check_batch_sizes(self.global_batch_size, self._micro_batch_size(), self._ranks()[1])

    def _micro_batch_size(self) -> int:
        share = self.global_batch_size // self._ranks()[1]
        return max(1, share) if self.micro_batch_size == "auto" else self.micro_batch_size

    def _eval_batch_size(self) -> int:
        return min(self._micro_batch_size(), 32) if self.eval_batch_size is None else self.eval_batch_size

    def _ranks(self) -> tuple[int, int]:
        """Returns (rank, number) among the processes that see different data; (0, 1) without a Trainer."""
        ranks = read_data_parallel(self.trainer)
        return ranks.rank, ranks.size
