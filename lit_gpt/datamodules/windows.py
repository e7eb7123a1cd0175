"""What every DataModule of packed token windows shares: sizes, ranks and loaders, whatever the tokens come from.

`TokenDataModule` makes its corpus, `PreparedDataModule` opens one, `MixtureDataModule` draws from several and
`StreamingDataModule` reads one that is larger than the disk.
"""

from abc import abstractmethod
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from lightning import LightningDataModule

from lit_gpt.batch import Batch
from lit_gpt.data.batches import BatchBuilder
from lit_gpt.data.documents import SplitName
from lit_gpt.data.evaluation_loader import DocumentLoader, EvaluationLoader, OrderedLoader
from lit_gpt.data.loader import StepLoader, TrainingLoader, check_batch_sizes
from lit_gpt.data.provenance import Piece, trace_window
from lit_gpt.data.sampler import WindowSampler
from lit_gpt.data.shards import TokenCorpus, TokenSplit
from lit_gpt.data_info import DataInfo, read_data_parallel
from lit_gpt.errors import UserError

Ordered = TypeVar("Ordered", bound=OrderedLoader)
DEFAULT_GLOBAL_BATCH_SIZE = 32


class WindowDataModule(LightningDataModule):
    """Batches of fixed-length token windows.

    A training batch is the list of micro-batches that this device contributes to one optimizer step; evaluation
    batches are single ones. Which windows a step sees depends on corpus, seed and step alone.

    The attributes `vocab_size` and `block_size` are known from the start; `corpus` is there after `setup`.

    Args:
        block_size: Tokens of a window: the context length that the model is trained on.
        global_batch_size: Sequences of one optimizer step over all devices (32 if neither this nor
            `global_batch_tokens` is given).
        global_batch_tokens: The same in tokens, a multiple of `block_size`; give one of the two.
        micro_batch_size: Sequences that a device takes at once; `auto` takes its whole share of a step. Smaller ones
            save memory and change no result.
        eval_batch_size: Sequences of an evaluation batch on each device; null takes `micro_batch_size`, at most 32.
        isolate_documents: Documents in one window do not see each other and each has positions from 0; false
            repeats recipes that pack without isolation.
        seed: Chooses the order of the training windows.
        num_workers: Processes that assemble batches ahead; 0 assembles them in this one, which is fast enough for
            all but the smallest models.
        predict_split: Split that `predict` goes through document by document.

    Raises:
        UserError: for sizes that contradict each other.
    """

    vocab_size: int

    def __init__(
        self,
        block_size: int = 256,
        global_batch_size: int | None = None,
        global_batch_tokens: int | None = None,
        micro_batch_size: int | Literal["auto"] = "auto",
        eval_batch_size: int | None = None,
        isolate_documents: bool = True,
        seed: int = 0,
        num_workers: int = 0,
        predict_split: SplitName = "test",
    ) -> None:
        super().__init__()
        sizes = {"block_size": block_size, "micro_batch_size": micro_batch_size, "eval_batch_size": eval_batch_size}
        for name, value in sizes.items():
            if isinstance(value, int) and value < 1:
                raise UserError(f"{name} is {value}; it must be at least 1")
        if num_workers < 0:
            raise UserError(f"num_workers is {num_workers}; it must be at least 0 (0: this process assembles batches)")
        self.block_size = block_size
        self.global_batch_size = _global_batch_size(block_size, global_batch_size, global_batch_tokens)
        self.micro_batch_size = micro_batch_size
        self.eval_batch_size = eval_batch_size
        self.isolate_documents = isolate_documents
        self.seed = seed
        self.num_workers = num_workers
        self.predict_split: SplitName = predict_split
        self._corpus: TokenCorpus | None = None

    # ------------------------------------------------------------------ what a subclass says

    @property
    @abstractmethod
    def tokenizer_path(self) -> Path:
        """Hugging Face folder of the tokenizer; it exists after `prepare_data`."""

    @property
    def tokens_per_step(self) -> int:
        """Input tokens of one optimizer step over all devices."""
        return self.global_batch_size * self.block_size

    @property
    def data_info(self) -> DataInfo:
        """What the module and its callbacks may know about the data; complete after `setup`."""
        return DataInfo(
            tokenizer_path=self.tokenizer_path,
            vocab_size=self.vocab_size,
            block_size=self.block_size,
            tokens_per_step=self.tokens_per_step,
            packing=self.isolate_documents,
            lineage=self.lineage,
        )

    @property
    def corpus(self) -> TokenCorpus:
        """The prepared corpus.

        Raises:
            UserError: before `setup`.
        """
        if self._corpus is None:
            raise UserError("the corpus is not open yet: call prepare_data() and setup() first")
        return self._corpus

    def lineage(self) -> dict[str, Any]:
        """Returns which documents, tokenizer and order made the batches, by content hash (JSON values)."""
        return self._order_lineage() | {
            "corpus": self.corpus.lineage(),
            "tokenizer": {
                "path": str(self.tokenizer_path),
                "vocab_size": self.corpus.vocab_size,
                "fingerprint": self.corpus.manifest["tokenizer"],
            },
        }

    def _order_lineage(self) -> dict[str, Any]:
        return {
            "class": f"{type(self).__module__}.{type(self).__qualname__}",
            "block_size": self.block_size,
            "global_batch_size": self.global_batch_size,
            "isolate_documents": self.isolate_documents,
            "seed": self.seed,
        }

    def provenance(self, batch: Batch, split: SplitName = "train") -> list[list[Piece]]:
        """Returns the documents of a batch's windows, for `python -m lit_gpt inspect`.

        Args:
            batch: Batch of a loader of this DataModule, on the CPU.
            split: Split that the loader goes through.

        Returns:
            For each row the pieces of documents that it is made of, over its T + 1 tokens; none for an empty row.
        """
        tokens, samples = self._split(split), batch["sample_ids"]
        if split != "train":
            return [self._trace_evaluation(tokens, sample) for sample in samples.tolist()]
        starts = WindowSampler(tokens.num_tokens, self.block_size, self.seed).starts(samples.numpy())
        return [trace_window(tokens, start, self.block_size + 1) for start in starts.tolist()]

    def _trace_evaluation(self, tokens: TokenSplit, sample: int, corpus: str = "") -> list[Piece]:
        start = sample * self.block_size
        return trace_window(tokens, start, min(self.block_size + 1, tokens.num_tokens - start), corpus)

    # ------------------------------------------------------------------ batches

    def train_dataloader(self) -> StepLoader:
        """Returns the resumable loader of optimizer steps."""
        return TrainingLoader(
            self._split("train"),
            self._builder(),
            block_size=self.block_size,
            micro_batch_size=self._micro_batch_size(),
            seed=self.seed,
            global_batch_size=self.global_batch_size,
            **self._processes(),
        )

    def val_dataloader(self) -> Any:
        """Returns the loader of the validation windows; none if nothing is held out."""
        return self._evaluation_loader("val") if self._split("val").num_tokens else []

    def test_dataloader(self) -> Any:
        """Returns the loader of the test windows."""
        return self._evaluation_loader("test")

    def predict_dataloader(self) -> Any:
        """Returns the loader of `predict_split`, document by document."""
        return self._ordered(DocumentLoader, self.predict_split)

    def _evaluation_loader(self, split: SplitName) -> EvaluationLoader:
        return self._ordered(EvaluationLoader, split)

    def _ordered(self, kind: type[Ordered], split: SplitName) -> Ordered:
        return kind(self._split(split), self._builder(), self.block_size, self._eval_batch_size(), **self._processes())

    def _split(self, name: SplitName) -> TokenSplit:
        return self.corpus.split(name)

    def _builder(self) -> BatchBuilder:
        return BatchBuilder(self.corpus.separator_id, self.corpus.byte_lengths, self.isolate_documents)

    def _processes(self) -> dict[str, Any]:
        """Returns what every loader has to know about the processes that share the work."""
        rank, world_size = self._ranks()
        pin_memory = torch.cuda.is_available()
        return {"rank": rank, "world_size": world_size, "num_workers": self.num_workers, "pin_memory": pin_memory}

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


def _global_batch_size(block_size: int, sequences: int | None, tokens: int | None) -> int:
    """Returns the sequences of a step from whichever of the two was given."""
    if sequences is not None and tokens is not None:
        raise UserError(
            f"global_batch_size {sequences} and global_batch_tokens {tokens} are both given; give one, and set the "
            "other to null"
        )
    if tokens is None:
        size = DEFAULT_GLOBAL_BATCH_SIZE if sequences is None else sequences
        if size < 1:
            raise UserError(f"global_batch_size is {size}; it must be at least 1")
        return size
    if tokens < 1 or tokens % block_size:
        below = max(tokens // block_size, 1) * block_size
        raise UserError(
            f"global_batch_tokens {tokens} is no multiple of block_size {block_size}; set it to {below} or "
            f"{below + block_size}"
        )
    return tokens // block_size
