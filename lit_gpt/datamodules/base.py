"""The DataModule under all others: documents in, token shards in a cache, batches out.

`prepare_data` (one process a node) makes what is missing in the cache: the tokenizer, then the shards. `setup` opens
them. A subclass says where its documents come from, in one method:

    class LyricsDataModule(TokenDataModule):
        def documents(self):
            for path in sorted(Path("lyrics").glob("*.txt")):
                yield path.read_text()

Everything works with a stock `lightning.Trainer`, and with none: `dm.prepare_data(); dm.setup("fit");
dm.train_dataloader()`.
"""

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from lit_gpt.data.bpe import Pattern, check_vocab_size
from lit_gpt.data.cache import default_cache_dir
from lit_gpt.data.corpus_spec import CorpusSpec
from lit_gpt.data.documents import Document, OnBadInput, Source, SplitName
from lit_gpt.data.prepare import check_room, corpus_path, prepare_corpus
from lit_gpt.data.sampler import WindowSampler
from lit_gpt.data.shards import TokenCorpus
from lit_gpt.data.sources import IterableSource
from lit_gpt.data.tokenizer_cache import keep_tokenizer, kept_tokenizer_path, prepare_tokenizer, trained_tokenizer_path
from lit_gpt.data.tokenizers import Tokenizer, load_tokenizer
from lit_gpt.datamodules.windows import WindowDataModule
from lit_gpt.errors import UserError

DEFAULT_VOCAB_SIZE = 4096


class TokenDataModule(WindowDataModule):
    """Batches of fixed-length token windows from a corpus of documents.

    A training batch is the list of micro-batches that this device contributes to one optimizer step; evaluation
    batches are single ones. Which windows a step sees depends on corpus, seed and step alone.

    The attributes `vocab_size` (what the model needs: as configured, or that of the tokenizer) and `block_size` are
    known from the start, and `tokenizer_path` says where the tokenizer will be; `corpus` is there after `setup`.

    Args:
        block_size: Tokens of a window: the context length that the model is trained on.
        global_batch_size: Sequences of one optimizer step over all devices (32 if neither this nor
            `global_batch_tokens` is given).
        global_batch_tokens: The same in tokens, a multiple of `block_size`; give one of the two.
        micro_batch_size: Sequences that a device takes at once; `auto` takes its whole share of a step. Smaller ones
            save memory and change no result.
        eval_batch_size: Sequences of an evaluation batch on each device; null takes `micro_batch_size`, at most 32.
        tokenizer: Tokenizer to use: a Hugging Face folder, a `tokenizer.json`, a folder with GPT-2's `encoder.json`
            and `vocab.bpe`, or a name on the hub. Null trains a byte-level BPE on the train split.
        vocab_size: Entries of the tokenizer to train (4,096 if null). With a `tokenizer` it may only be larger than
            that one's, which pads the model's vocabulary.
        tokenizer_pattern: How a tokenizer that is trained splits text into words.
        val_fraction: Share of the documents held out for validation, chosen by each document's hash; 0 for none.
        test_fraction: Share held out for the test; 0 for none.
        isolate_documents: Documents in one window do not see each other and each has positions from 0; false
            repeats recipes that pack without isolation.
        seed: Chooses the order of the training windows.
        num_workers: Processes that assemble batches ahead; 0 assembles them in this one, which is fast enough for
            all but the smallest models.
        on_bad_input: What happens at a file or row that cannot be read: `error` stops and names it, `skip` leaves it
            out, counts and names it.
        predict_split: Split that `predict` goes through document by document.
        cache_dir: Where tokenizers and shards are kept; null means `$LIT_GPT_CACHE`, else
            `$XDG_CACHE_HOME/lit_gpt`, else `~/.cache/lit_gpt`.
        prepare_threads: Threads that tokenise; null takes one a core.

    Raises:
        UserError: for sizes that contradict each other, a tokenizer that cannot be loaded, and, while preparing, for
            bad, empty or too short input and a disk without room.
    """

    def __init__(
        self,
        block_size: int = 256,
        global_batch_size: int | None = None,
        global_batch_tokens: int | None = None,
        micro_batch_size: int | Literal["auto"] = "auto",
        eval_batch_size: int | None = None,
        tokenizer: str | None = None,
        vocab_size: int | None = None,
        tokenizer_pattern: Pattern = "gpt2",
        val_fraction: float = 0.01,
        test_fraction: float = 0.01,
        isolate_documents: bool = True,
        seed: int = 0,
        num_workers: int = 0,
        on_bad_input: OnBadInput = "error",
        predict_split: SplitName = "test",
        cache_dir: str | None = None,
        prepare_threads: int | None = None,
    ) -> None:
        super().__init__(
            block_size=block_size,
            global_batch_size=global_batch_size,
            global_batch_tokens=global_batch_tokens,
            micro_batch_size=micro_batch_size,
            eval_batch_size=eval_batch_size,
            isolate_documents=isolate_documents,
            seed=seed,
            num_workers=num_workers,
            predict_split=predict_split,
        )
        self.tokenizer = tokenizer
        self.tokenizer_pattern: Pattern = tokenizer_pattern
        self.vocab_size = self._resolve_vocab_size(vocab_size)
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.on_bad_input: OnBadInput = on_bad_input
        self.cache_dir = default_cache_dir() if cache_dir is None else Path(cache_dir).expanduser()
        self.prepare_threads = prepare_threads
        self._folders: tuple[Path, Path] | None = None

    # ------------------------------------------------------------------ what a subclass says

    def documents(self) -> Iterable[str | Document]:
        """Yields the corpus's documents, each time the same ones in the same order; subclasses implement it.

        A pass over all of them finds their hash, which the cache goes by: it should be much cheaper than tokenising.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement documents() or sources()")

    def sources(self) -> Sequence[Source]:
        """Returns the corpus's sources; by default one made of `documents`. Override it for several, or for files."""
        return [IterableSource(self.documents, name=type(self).__name__)]

    # ------------------------------------------------------------------ preparing and opening

    @cached_property
    def spec(self) -> CorpusSpec:
        """What the corpus is made of."""
        return CorpusSpec(self.sources(), self.val_fraction, self.test_fraction, self.on_bad_input)

    @cached_property
    def _given_tokenizer(self) -> Tokenizer | None:
        return None if self.tokenizer is None else load_tokenizer(self.tokenizer)

    def _resolve_vocab_size(self, vocab_size: int | None) -> int:
        if self._given_tokenizer is None:
            size = DEFAULT_VOCAB_SIZE if vocab_size is None else vocab_size
            check_vocab_size(size)
            return size
        own = self._given_tokenizer.vocab_size
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
        if self._given_tokenizer is not None:
            return kept_tokenizer_path(self._given_tokenizer, self.cache_dir)
        return trained_tokenizer_path(self.spec, self.cache_dir, self.vocab_size, self.tokenizer_pattern)

    def prepare_data(self) -> None:
        """Makes the tokenizer and the token shards, unless the cache has them."""
        self._check_batch_sizes()
        try:
            self.cache_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cache_dir {self.cache_dir} cannot be made ({error.strerror}); set it (or LIT_GPT_CACHE) to a folder "
                "that can be written"
            ) from error
        if self._given_tokenizer is not None:
            tokenizer = self._given_tokenizer
            tokenizer_path = keep_tokenizer(tokenizer, self.cache_dir)
        else:
            if not self.tokenizer_path.exists():
                check_room(self.spec, self.cache_dir, self.vocab_size)
            tokenizer_path = prepare_tokenizer(self.spec, self.cache_dir, self.vocab_size, self.tokenizer_pattern)
            tokenizer = load_tokenizer(tokenizer_path)
        corpus = prepare_corpus(self.spec, tokenizer, self.cache_dir, self.prepare_threads)
        self._folders = (tokenizer_path, corpus)

    def setup(self, stage: str) -> None:
        """Opens the corpus and checks that it has what `stage` needs.

        Args:
            stage: `fit`, `validate`, `test` or `predict`.
        """
        tokenizer, corpus = self._names_of_rank_zero()
        self._folders = (self.cache_dir / "tokenizers" / tokenizer, self.cache_dir / "corpora" / corpus)
        self._corpus = TokenCorpus(self._folders[1])
        if stage == "fit":
            self._check_batch_sizes()
            WindowSampler(self.corpus.split("train").num_tokens, self.block_size, self.seed)
        if stage == "validate" or (stage == "fit" and self.val_fraction > 0):
            self._evaluation_loader("val")
        if stage == "test":
            self._evaluation_loader("test")

    def _names_of_rank_zero(self) -> tuple[str, str]:
        """Returns the names of the tokenizer's and the corpus's folder; only rank 0 hashes the sources for them."""
        trainer = self.trainer
        names = None
        if self._folders is not None:
            names = (self._folders[0].name, self._folders[1].name)
        elif trainer is None or trainer.is_global_zero:
            tokenizer = self._given_tokenizer
            if tokenizer is None:
                if not self.tokenizer_path.exists():
                    raise UserError("the corpus is not prepared: call prepare_data() before setup()")
                tokenizer = load_tokenizer(self.tokenizer_path)
            names = (self.tokenizer_path.name, corpus_path(self.spec, tokenizer, self.cache_dir).name)
        if trainer is not None:
            names = trainer.strategy.broadcast(names)
        assert names is not None
        return names

    def lineage(self) -> dict[str, Any]:
        """Returns which documents, tokenizer and order made the batches, by content hash (JSON values)."""
        lineage = super().lineage()
        lineage["tokenizer"]["given"] = self.tokenizer
        return lineage

    def val_dataloader(self) -> Any:
        """Returns the loader of the validation windows; none if `val_fraction` is 0 and no file is held out."""
        return super().val_dataloader() if self.val_fraction == 0 else self._evaluation_loader("val")
