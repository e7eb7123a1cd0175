"""DataModule that streams text from remote shards or the Hugging Face hub during training."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

from lit_gpt.cache_dir import find_cache_dir, make_cache_dir
from lit_gpt.checks import check_at_least
from lit_gpt.data.batches import BatchBuilder
from lit_gpt.data.corpus_spec import CorpusSpec
from lit_gpt.data.prepare import prepare_corpus
from lit_gpt.data.prepared import padded_vocab_size
from lit_gpt.data.records import (
    SPLITS,
    BadInput,
    Document,
    FileFormat,
    HubDataset,
    HubRecords,
    IterableRecords,
    OnBadInput,
    SplitName,
)
from lit_gpt.data.records.remote import RemoteRecords
from lit_gpt.data.shards import TokenCorpus
from lit_gpt.data.streaming.blocks import BlockStore, StreamOrder
from lit_gpt.data.streaming.documents import DocumentStream
from lit_gpt.data.streaming.tokens import Cursor, TokenReader
from lit_gpt.data.tokenizer_cache import keep_tokenizer, kept_tokenizer_path
from lit_gpt.data.tokenizers import Tokenizer, load_tokenizer
from lit_gpt.datamodules.windows import WindowDataModule
from lit_gpt.errors import UserError
from lit_gpt.hashing import sha256_json

ENDLESS_STEPS = 1_000_000_000
"""Steps per epoch if nothing else determines the length of an epoch."""


class StreamingDataModule(WindowDataModule):
    r"""Training windows from a stream that is tokenized on the fly.

    The stream is cut into blocks of `block_windows` windows, and the windows of each block are permuted. The order is
        therefore a pure function of stream, seed and step: a run is resumed exactly from (block, offset) without
        reading the stream from its start, with any number of devices and workers. Memory is bounded by one block and
        the documents being encoded. The disk holds the most recent blocks, up to `cache_gigabytes`, and a remote shard
        while it is read. Each machine of a cluster reads the whole stream once, regardless of its number of devices. At
        its end the stream starts over.

    The first documents of the stream are held out for validation and testing; they and exact copies of them are not
    trained on.

    Args:
        files: URLs that fsspec opens (`s3://bucket/*.jsonl.zst`, `hf://datasets/<name>/<folder>/*.parquet`, plain
            paths): files, folders or patterns. `seed` determines the order of the shards, which differs in each pass.
        dataset: Alternative to `files`: a Hugging Face dataset, by name or as a mapping (`path`, `name`, `split`,
            `revision`, ...), read in its own order.
        tokenizer: Tokenizer folder, `tokenizer.json`, or name on the hub; `tokenizer train` makes one.
        vocab_size: Vocabulary size of the model; null takes the tokenizer's, a larger value pads it.
        text_field: Field or column with the text, or a template of fields: "{question} {answer}".
        document_separator: String at which plain text files are split into documents; `\n` means a line break.
        format: File format options that the suffix does not determine: encoding, quoting, delimiter.
        block_windows: Windows per block. Larger blocks shuffle better, but need more disk space and start later.
        val_documents: Number of documents to hold out for validation; 0 for none.
        test_documents: Number of documents to hold out for testing; 0 for none.
        steps_per_epoch: Optimizer steps that count as an epoch for the Trainer; null takes `trainer.max_steps`.
        cache_dir: Folder in which blocks are stored; null means `$LIT_GPT_CACHE`, else `$XDG_CACHE_HOME/lit_gpt`, else
            `~/.cache/lit_gpt`.
        cache_gigabytes: Maximum disk space for blocks, at least the size of two blocks.
        on_bad_input: What to do with a row that cannot be read: `error` stops and names it, `skip` leaves it out.
        prepare_threads: Number of threads that tokenize in advance.
        kwargs: Arguments of `WindowDataModule`.

    Raises:
        UserError: for sources or sizes that contradict each other, and during reading for unreadable input.
    """

    def __init__(
        self,
        files: str | list[str] | None = None,
        dataset: str | HubDataset | None = None,
        tokenizer: str | None = None,
        vocab_size: int | None = None,
        text_field: str = "text",
        document_separator: str | None = None,
        format: FileFormat | None = None,
        block_windows: int = 8192,
        val_documents: int = 1000,
        test_documents: int = 0,
        steps_per_epoch: int | None = None,
        cache_dir: str | None = None,
        cache_gigabytes: float = 10.0,
        on_bad_input: OnBadInput = "error",
        prepare_threads: int = 2,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if bool(files) == bool(dataset):
            raise UserError("StreamingDataModule reads either files (URLs) or a dataset; set exactly one of them")
        if tokenizer is None:
            raise UserError(
                "StreamingDataModule needs a tokenizer before it can read: give tokenizer a folder (python -m lit_gpt "
                "tokenizer train makes one from a sample) or a name on the hub"
            )
        check_at_least("block_windows", block_windows, 1)
        check_at_least("val_documents", val_documents, 0)
        check_at_least("test_documents", test_documents, 0)
        check_at_least("prepare_threads", prepare_threads, 1)
        check_at_least("steps_per_epoch", steps_per_epoch, 1)
        BadInput(on_bad_input)
        self.files = files
        self.dataset = dataset
        self.tokenizer = tokenizer
        self.vocab_size = padded_vocab_size(vocab_size, self._tokenizer.vocab_size, f"the tokenizer {tokenizer}")
        self.text_field = text_field
        self.document_separator = document_separator
        self.format = format
        self.block_windows = block_windows
        self.val_documents = val_documents
        self.test_documents = test_documents
        self.steps_per_epoch = steps_per_epoch
        self.cache_dir = find_cache_dir(cache_dir)
        self.cache_gigabytes = cache_gigabytes
        self.on_bad_input: OnBadInput = on_bad_input
        self.prepare_threads = prepare_threads
        self._held_out: Path | None = None

    # ------------------------------------------------------------------ the stream

    def stream(self, shuffled: bool = True) -> DocumentStream:
        """Return the documents; override it to read another stream.

        Args:
            shuffled: Whether to read the shards in the order given by the seed, or as they are listed (which determines
                the held-out documents).
        """
        if self.dataset:
            spec = HubDataset(self.dataset) if isinstance(self.dataset, str) else self.dataset
            return DocumentStream(HubRecords(replace(spec, streaming=True), self.text_field))
        assert self.files
        files = RemoteRecords(
            self.files, self.cache_dir / "streams", self.text_field, self.document_separator, self.format
        )
        return DocumentStream(files, shuffled, self.seed)

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.tokenizer)

    @property
    def tokenizer_path(self) -> Path:
        """Hugging Face folder of the tokenizer; it exists after `prepare_data`."""
        return kept_tokenizer_path(self._tokenizer, self.cache_dir)

    def _first_documents(self, begin: int, count: int) -> Iterator[Document]:
        """Yield the non-empty documents from index `begin` on, in the order in which the stream lists them."""
        bad_input = BadInput(self.on_bad_input)
        with closing(self.stream(shuffled=False).documents(0, None, bad_input)) as documents:  # type: ignore[type-var]
            with_text = (document for document, _ in documents if document.text)
            yield from islice(with_text, begin, begin + count)

    # ------------------------------------------------------------------ preparing and opening

    def prepare_data(self) -> None:
        """Store the tokenizer and tokenize the held-out documents; the stream itself is read on demand."""
        self._check_batch_sizes()
        make_cache_dir(self.cache_dir)
        keep_tokenizer(self._tokenizer, self.cache_dir)
        if self.val_documents + self.test_documents == 0:
            return
        version = self.stream(shuffled=False).fingerprint()
        held_out: list[tuple[SplitName, int, int]] = [
            ("val", 0, self.val_documents),
            ("test", self.val_documents, self.test_documents),
        ]
        sources = [
            IterableRecords(
                partial(self._first_documents, begin, count),
                name=f"held out for {split}",
                version=sha256_json([version, begin, count]),
                split=split,
            )
            for split, begin, count in held_out
            if count
        ]
        spec = CorpusSpec(sources, on_bad_input=self.on_bad_input)
        self._held_out = prepare_corpus(spec, self._tokenizer, self.cache_dir, self.prepare_threads)

    def setup(self, stage: str) -> None:
        """Open the held-out documents and, for training, the stream.

        Args:
            stage: `fit`, `validate`, `test` or `predict`.

        Raises:
            UserError: if the held-out documents are not prepared.
        """
        if self.val_documents + self.test_documents:
            name = self._broadcast(None if self._held_out is None else self._held_out.name)
            if name is None:
                raise UserError("the held-out documents are not prepared: call prepare_data() before setup()")
            self._held_out = self.cache_dir / "corpora" / name
            self._corpus = TokenCorpus(self._held_out)
        self._check_stage(stage)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything that the stream's tokens depend on."""
        held_out = [self.val_documents, self.test_documents]
        return sha256_json([self.stream().fingerprint(), self._tokenizer.fingerprint, held_out, self.on_bad_input])

    def make_order(self) -> StreamOrder:
        """Return the order that maps training samples to windows of the stream."""
        tokens = self.block_windows * self.block_size
        key = sha256_json([self.fingerprint, tokens])[:24]
        dtype = self._tokenizer.dtype
        keep = int(self.cache_gigabytes * 1e9) // (tokens * dtype.itemsize)
        held_out: set[str] = set()
        if self._corpus is not None:
            splits = [self._corpus.split(name) for name in SPLITS]
            held_out = {split.document(i).sha256 for split in splits for i in range(split.num_documents)}
        # A function, not a method: spawned workers get a pickled copy, and this DataModule references its Trainer.
        open_reader = partial(
            _open_reader, self.stream(), self._tokenizer, frozenset(held_out), self.on_bad_input, self.prepare_threads
        )
        store = BlockStore(self.cache_dir / "streams" / key, open_reader, tokens, dtype, keep)
        return StreamOrder(store, self.block_size, self.block_windows, self.seed, self.fingerprint)

    def lineage(self) -> dict[str, Any]:
        """Return which stream, tokenizer and sample order produced the batches (JSON values)."""
        return self._order_lineage() | {
            "stream": self.stream().describe(),
            "fingerprint": self.fingerprint,
            "block_windows": self.block_windows,
            "held_out": None if self._corpus is None else self._corpus.lineage(),
            "tokenizer": {
                "path": str(self.tokenizer_path),
                "given": self.tokenizer,
                "vocab_size": self._tokenizer.vocab_size,
                "fingerprint": self._tokenizer.fingerprint,
            },
        }

    # ------------------------------------------------------------------ batches

    def _num_train_windows(self) -> None:
        """Return None: the length of a stream is unknown."""

    def _steps_per_epoch(self) -> int:
        """Return the optimizer steps that count as an epoch for the Trainer."""
        return self.steps_per_epoch or self._trainer_steps() or ENDLESS_STEPS

    def _holds_out(self, split: SplitName) -> bool:
        """Return whether documents are held out for the given split."""
        return (self.val_documents if split == "val" else self.test_documents) > 0

    def _builder(self) -> BatchBuilder:
        return BatchBuilder(self._tokenizer.separator_id, self._tokenizer.byte_lengths, self.isolate_documents)


def _open_reader(
    stream: DocumentStream,
    tokenizer: Tokenizer,
    held_out: frozenset[str],
    on_bad_input: OnBadInput,
    num_threads: int,
    cursor: Cursor,
) -> TokenReader:
    """Return a reader of the stream's tokens, starting at a cursor."""
    return TokenReader(stream, tokenizer, cursor, BadInput(on_bad_input), held_out, num_threads)
