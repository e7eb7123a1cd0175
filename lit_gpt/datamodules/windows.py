"""Base class of the DataModules of packed token windows, independent of where the tokens come from.

`TokenDataModule` (text.py) builds its corpus, `PreparedDataModule` opens an existing one, `MixtureDataModule` samples
from several (both in prepared.py), and `StreamingDataModule` (streaming.py) reads one that is larger than the disk.
"""

from dataclasses import replace
from typing import Any

from lit_gpt.batch import Batch
from lit_gpt.checks import check_one_of
from lit_gpt.data.batches import BatchBuilder
from lit_gpt.data.evaluation_loader import AlternatingLoader, DocumentLoader, EvaluationLoader, TokenLoader
from lit_gpt.data.loader import Mixture, StepSource, WindowOrder, WindowSteps
from lit_gpt.data.provenance import Piece, trace_window
from lit_gpt.data.records import SPLITS, SplitName
from lit_gpt.data.shards import TokenCorpus, TokenSplit
from lit_gpt.data_info import DataInfo
from lit_gpt.datamodules.base import StepDataModule
from lit_gpt.errors import UserError

DEFAULT_GLOBAL_BATCH_SIZE = 32


class WindowDataModule(StepDataModule):
    """Batches of fixed-length token windows.

    The attributes `vocab_size` and `block_size` are available right after construction, `corpus` after `setup`.

    Args:
        block_size: Window length in tokens: the context length that the model is trained on.
        global_batch_size: Sequences per optimizer step over all devices. If neither this nor `global_batch_tokens` is
            given: 32, or 16 or 8 if an epoch of a small corpus would otherwise have few steps.
        global_batch_tokens: The same in tokens, a multiple of `block_size`; set at most one of the two.
        isolate_documents: Whether tokens attend only within their own document, with positions counted from its start.
            False reproduces recipes that pack documents without isolation.
        predict_split: Split that `predict` visits document by document.
        kwargs: Arguments of `StepDataModule`.

    Raises:
        UserError: for sizes that contradict each other.
    """

    def __init__(
        self,
        block_size: int = 256,
        global_batch_size: int | None = None,
        global_batch_tokens: int | None = None,
        isolate_documents: bool = True,
        predict_split: SplitName = "test",
        **kwargs: Any,
    ) -> None:
        size = _global_batch_size(block_size, global_batch_size, global_batch_tokens)
        super().__init__(block_size=block_size, global_batch_size=size, **kwargs)
        check_one_of("predict_split", predict_split, SPLITS)
        self.isolate_documents = isolate_documents
        self.predict_split: SplitName = predict_split
        self._has_default_batch = global_batch_size is None and global_batch_tokens is None
        self._corpus: TokenCorpus | None = None
        self._order: WindowOrder | None = None

    # ------------------------------------------------------------------ hooks for subclasses

    @property
    def corpus(self) -> TokenCorpus:
        """The prepared corpus.

        Raises:
            UserError: before `setup`.
        """
        if self._corpus is None:
            raise UserError("the corpus is not open yet: call prepare_data() and setup() first")
        return self._corpus

    def make_order(self) -> WindowOrder:
        """Return the map from training samples to windows; by default the windows of `corpus`, shuffled by `seed`."""
        return Mixture(None, [self._split("train")], None, self.block_size, self.seed)

    @property
    def order(self) -> WindowOrder:
        """Order that maps training samples to windows, created by `setup("fit")`."""
        if self._order is None:
            self._order = self.make_order()
        return self._order

    def lineage(self) -> dict[str, Any]:
        """Return which documents, tokenizer and sample order produced the batches, by content hash (JSON values)."""
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

    @property
    def tokens_per_step(self) -> int:
        """Input tokens per optimizer step over all devices."""
        return self.global_batch_size * self.block_size

    @property
    def data_info(self) -> DataInfo:
        """Facts about the data for the module and its callbacks; complete after `setup`."""
        return replace(super().data_info, packing=self.isolate_documents)

    def provenance(self, batch: Batch, split: SplitName = "train") -> list[list[Piece]]:
        """Return the documents of a batch's windows, for `python -m lit_gpt inspect`.

        Args:
            batch: Batch of a loader of this DataModule, on the CPU.
            split: Split that the loader visits.

        Returns:
            For each row, the pieces of documents in its T + 1 tokens; an empty list for an empty row.
        """
        if split == "train":
            return self.order.trace(batch["sample_ids"].numpy())
        tokens = self._evaluated_split(batch, split)
        starts = [sample * self.block_size for sample in batch["sample_ids"].tolist()]
        lengths = [min(self.block_size + 1, tokens.num_tokens - start) for start in starts]
        name = batch.get("corpus", "")
        return [trace_window(tokens, *where, name) for where in zip(starts, lengths, strict=True)]

    # ------------------------------------------------------------------ stages

    def prepare_data(self) -> None:
        """Check the sizes; an existing corpus needs no other preparation."""
        self._check_batch_sizes()

    def _check_stage(self, stage: str) -> None:
        """Check that the open corpus has what a stage needs, and create the order of the training samples.

        Args:
            stage: `fit`, `validate`, `test` or `predict`.
        """
        if stage == "fit":
            if self._has_default_batch and (windows := self._num_train_windows()):
                self._shrink_default_batch(windows)
            self._check_batch_sizes()
            self._order = self.make_order()
        elif stage in ("validate", "test"):
            self._evaluation_loader(EvaluationLoader, "val" if stage == "validate" else "test")

    def _num_train_windows(self) -> int | None:
        """Return the number of windows in an epoch, or None if it is unknown."""
        return self._split("train").num_tokens // self.block_size

    # ------------------------------------------------------------------ batches

    def train_steps(self) -> StepSource:
        """Return the dataset of this rank's optimizer steps."""
        sizes = (self.global_batch_size, self._micro_batch_size())
        return WindowSteps(self.order, self._builder(), *sizes, **self._ranks(), num_steps=self._steps_per_epoch())

    def _steps_per_epoch(self) -> int | None:
        """Return the number of optimizer steps in an epoch; None: as many as the data provide."""
        return None

    def val_dataloader(self) -> Any:
        """Return the loader of the validation windows; an empty list if nothing is held out."""
        if not self._holds_out("val"):
            return self._empty_loader()
        return self._limited(self._evaluation_loader(EvaluationLoader, "val"), "val")

    def test_dataloader(self) -> Any:
        """Return the loader of the test windows."""
        return self._limited(self._evaluation_loader(EvaluationLoader, "test"), "test")

    def predict_dataloader(self) -> Any:
        """Return the loader of `predict_split`, which visits it document by document."""
        return self._evaluation_loader(DocumentLoader, self.predict_split)

    def _evaluation_loader(self, kind: type[TokenLoader], split: SplitName) -> TokenLoader | AlternatingLoader:
        """Return a loader of a split.

        Raises:
            UserError: if the split is empty.
        """
        return self._token_loader(kind, self._split(split))

    def _token_loader(self, kind: type[TokenLoader], tokens: TokenSplit) -> TokenLoader:
        size = self._eval_batch_size()
        return kind(tokens, self._builder(), self.block_size, size, **self._evaluation_processes())

    def _holds_out(self, split: SplitName) -> bool:
        """Return whether the corpus is meant to have a split."""
        return self._split(split).num_tokens > 0

    def _split(self, name: SplitName) -> TokenSplit:
        return self.corpus.split(name)

    def _evaluated_split(self, batch: Batch, split: SplitName) -> TokenSplit:
        """Return the token split that an evaluation batch was read from."""
        return self._split(split)

    def _builder(self) -> BatchBuilder:
        return BatchBuilder(self.corpus.separator_id, self.corpus.byte_lengths, self.isolate_documents)


def _global_batch_size(block_size: int, sequences: int | None, tokens: int | None) -> int:
    """Return the global batch size in sequences, from sequences or tokens, whichever was given."""
    if sequences is not None and tokens is not None:
        raise UserError(
            f"global_batch_size {sequences} and global_batch_tokens {tokens} are both set; set one, and the "
            "other to null"
        )
    if tokens is None:
        return DEFAULT_GLOBAL_BATCH_SIZE if sequences is None else sequences
    if tokens < 1 or tokens % max(block_size, 1):
        below = max(tokens // max(block_size, 1), 1) * block_size
        raise UserError(
            f"global_batch_tokens {tokens} is not a multiple of block_size {block_size}; set it to {below} or "
            f"{below + block_size}"
        )
    return tokens // max(block_size, 1)
