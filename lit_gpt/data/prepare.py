"""Tokenize raw documents into shards in a cache that is keyed by content.

In stages: one reader visits the documents in order and assigns each to its split; batches of them are encoded by
several threads; one writer appends the results to the shards of each split in reading order; a manifest, which is
written last, makes the folder a corpus. The bytes are therefore the same for any number of threads. After an
interruption, everything is read again (cheap) but only documents that are not in a finished shard are encoded again
(expensive).

Threads rather than processes, because the tokenizer releases Python's GIL: two threads of `tokenizers` encode at 1.75
times the speed of one (6.4 vs. 3.7 MB/s at 4,096 entries), and only 4 % of the work holds the GIL; `compiled_bpe` is
faster than the reader. This avoids forks, repeated imports and `if __name__ == "__main__"` in the user's script.
"""

import contextlib
import errno
import json
import os
import shutil
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from lit_gpt.data.cache import check_disk_space, exclusive, print_status, write_atomic, write_json
from lit_gpt.data.corpus_spec import Admitted, CorpusSpec, Reading
from lit_gpt.data.records import SPLITS, SplitName, corpus_fingerprint, skipped_line, total_bytes
from lit_gpt.data.shard_writer import SHARD_TOKENS, SplitWriter, remove_progress_records
from lit_gpt.data.shards import FORMAT, FORMAT_VERSION, TokenCorpus
from lit_gpt.data.tokenizers import Tokenizer
from lit_gpt.errors import UserError
from lit_gpt.hashing import FileHashes, sha256_json
from lit_gpt.pages.text import human_bytes
from lit_gpt.progress import Bar

_BATCH_BYTES = 1 << 18
_IN_FLIGHT_BYTES = 32 << 20  # text submitted to the threads but not yet written


def corpus_path(spec: CorpusSpec, tokenizer: Tokenizer, cache_dir: Path, shard_tokens: int = SHARD_TOKENS) -> Path:
    """Return the folder of the corpus that these settings produce, whether or not it exists."""
    content = corpus_fingerprint(spec.sources, FileHashes.of_cache(cache_dir))
    key = [content, tokenizer.fingerprint, spec.val_fraction, spec.test_fraction, shard_tokens, FORMAT_VERSION]
    return cache_dir / "corpora" / sha256_json(key)[:24]


def check_space(spec: CorpusSpec, cache_dir: Path, vocab_size: int, present_bytes: int = 0) -> None:
    """Raise a `UserError` if the shards would not fit on the disk.

    Args:
        spec: The corpus.
        cache_dir: Root of the cache.
        vocab_size: Vocabulary size, which determines whether a token takes two or four bytes. Two bytes of text per
            token are assumed, which ordinary tokenizers exceed.
        present_bytes: Size of the shards that are already written.
    """
    text_bytes = total_bytes(spec.sources)
    if text_bytes is not None:
        needed = text_bytes // 2 * (2 if vocab_size <= 1 << 16 else 4) - present_bytes
        check_disk_space(cache_dir, needed, f"tokenizing {human_bytes(text_bytes)} of text")


def prepare_corpus(
    spec: CorpusSpec,
    tokenizer: Tokenizer,
    cache_dir: Path,
    num_threads: int | None = None,
    shard_tokens: int = SHARD_TOKENS,
    folder: Path | None = None,
    key: str | None = None,
) -> Path:
    """Tokenize a corpus into shards unless the cache has it; an interrupted preparation is continued.

    Args:
        spec: The corpus.
        tokenizer: Tokenizer to use.
        cache_dir: Root of the cache.
        num_threads: Number of encoding threads; None takes one per core.
        shard_tokens: Shard size in tokens.
        folder: Folder of the corpus; None: its folder in the cache. The caller guarantees that existing files there
            were made from the same documents with the same tokenizer.
        key: Key of the corpus in the manifest; None: the folder's name.

    Returns:
        The corpus folder, for `TokenCorpus`.

    Raises:
        UserError: for bad or empty input and for a full disk. No unfinished file is left behind.
    """
    folder = corpus_path(spec, tokenizer, cache_dir, shard_tokens) if folder is None else folder
    key = folder.name if key is None else key
    if _is_complete(folder, spec):
        return folder
    with exclusive(cache_dir / "locks" / f"{folder.name}.lock", "preparing this corpus"):
        if _is_complete(folder, spec):
            return folder
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            if path.name not in SPLITS:
                path.unlink()
        writers = {name: SplitWriter(folder / name, tokenizer.dtype, shard_tokens) for name in SPLITS}
        started = False
        try:
            present = sum(done.shard.num_tokens for writer in writers.values() for done in writer.finished)
            check_space(spec, cache_dir, tokenizer.vocab_size, present * tokenizer.dtype.itemsize)
            started = True
            _fill(folder, key, spec, tokenizer, writers, num_threads or os.cpu_count() or 1)
        except BaseException as error:
            for writer in writers.values():
                writer.abandon()
            # Bad input will be fixed, which changes the key; after a kill or a full disk the shards are continued.
            bad_input = started and isinstance(error, UserError)
            if bad_input or not any(writer.finished for writer in writers.values()):
                shutil.rmtree(folder)
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise UserError(
                    f"the disk of {folder} is full; free some space and start again (finished shards are kept), or set "
                    "cache_dir (or LIT_GPT_CACHE) to a larger disk"
                ) from error
            raise
    return folder


def _is_complete(folder: Path, spec: CorpusSpec) -> bool:
    """Return whether the folder is a complete corpus; a damaged one is reported and prepared again."""
    if not (folder / "manifest.json").exists():
        return False
    try:
        corpus = TokenCorpus(folder)
    except UserError as error:
        print_status(f"{error}; preparing it again")
        return False
    skipped = corpus.manifest["num_skipped"]
    if skipped and spec.on_bad_input == "error":
        first = corpus.manifest["skipped"][0]
        raise UserError(f"{first}; fix or remove it, or set on_bad_input: skip ({skipped} bad records in total)")
    for name in SPLITS:
        remove_progress_records(folder / name)  # left over if the process was killed right after writing the manifest
    return True


def _fill(
    folder: Path,
    key: str,
    spec: CorpusSpec,
    tokenizer: Tokenizer,
    writers: dict[SplitName, SplitWriter],
    num_threads: int,
) -> None:
    began = time.monotonic()
    reading = Reading(spec)
    sources: dict[str, int] = {}
    text_bytes = 0
    with Bar(total=total_bytes(spec.sources), unit="B", unit_scale=True, desc="tokenizing") as bar:

        def todo() -> Iterator[Admitted]:
            nonlocal text_bytes
            for admitted in reading:
                sources.setdefault(admitted.document.source, len(sources))
                text_bytes += admitted.num_bytes
                if admitted.number >= writers[admitted.split].next_document:
                    yield admitted
                else:
                    bar.update(admitted.num_bytes)

        with contextlib.closing(_encoded(todo(), tokenizer, num_threads)) as encoded:
            for admitted, tokens in encoded:
                document = admitted.document
                source = sources[document.source]
                writers[admitted.split].add(
                    tokens, admitted.num_bytes, source, document.record, admitted.digest, admitted.number
                )
                bar.update(admitted.num_bytes)
    for writer in writers.values():
        writer.finish_shard()
    if not any(writer.finished for writer in writers.values()):
        raise UserError(spec.nothing_found(reading.bad_input))
    _write_manifest(folder, key, spec, tokenizer, writers, reading, list(sources))
    seconds = time.monotonic() - began
    counts = ", ".join(
        f"{name} {sum(done.shard.num_tokens for done in writer.finished):,}" for name, writer in writers.items()
    )
    print_status(f"corpus: {human_bytes(text_bytes)} of text, tokens: {counts}; {seconds:.1f} s, stored in {folder}")
    bad = reading.bad_input
    for note in (skipped_line(bad.num_skipped, bad.named), *bad.encoding_notes()):
        if note:
            print_status(note)


def _encoded(
    documents: Iterable[Admitted], tokenizer: Tokenizer, num_threads: int
) -> Generator[tuple[Admitted, np.ndarray], None, None]:
    """Yield each document with its ids (separator first), in order, while threads encode the next ones."""
    # These threads replace those of the library, which would warn at every later fork.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    separator = np.array([tokenizer.separator_id], dtype=tokenizer.dtype)

    def encode(batch: list[Admitted]) -> list[np.ndarray]:
        ids = tokenizer.encode_batch([admitted.document.text for admitted in batch])
        return [np.concatenate([separator, document_ids]) for document_ids in ids]

    pool = ThreadPoolExecutor(num_threads)
    pending: deque[tuple[list[Admitted], int, Future[list[np.ndarray]]]] = deque()
    in_flight = 0
    try:
        for batch, size in _batches(documents):
            pending.append((batch, size, pool.submit(encode, batch)))
            in_flight += size
            while len(pending) > 2 * num_threads or (in_flight > _IN_FLIGHT_BYTES and pending):
                batch, size, future = pending.popleft()
                in_flight -= size
                yield from zip(batch, future.result(), strict=True)
        while pending:
            batch, _, future = pending.popleft()
            yield from zip(batch, future.result(), strict=True)
    finally:
        pool.shutdown(cancel_futures=True)


def _batches(documents: Iterable[Admitted]) -> Iterator[tuple[list[Admitted], int]]:
    batch: list[Admitted] = []
    size = 0
    for admitted in documents:
        batch.append(admitted)
        size += admitted.num_bytes
        if size >= _BATCH_BYTES:
            yield batch, size
            batch, size = [], 0
    if batch:
        yield batch, size


def _write_manifest(
    folder: Path,
    key: str,
    spec: CorpusSpec,
    tokenizer: Tokenizer,
    writers: dict[SplitName, SplitWriter],
    reading: Reading,
    sources: list[str],
) -> None:
    write_json(folder / "sources.json", sources)
    write_atomic(folder / "byte_lengths.bin", tokenizer.byte_lengths.astype("<i8").tobytes())
    splits = {name: [vars(done.shard) for done in writer.finished] for name, writer in writers.items()}
    manifest = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "key": key,
        "fingerprint": sha256_json([tokenizer.fingerprint, tokenizer.dtype.str, splits]),
        "dtype": tokenizer.dtype.str,
        "vocab_size": tokenizer.vocab_size,
        "separator_id": tokenizer.separator_id,
        "tokenizer": tokenizer.fingerprint,
        "val_fraction": spec.val_fraction,
        "test_fraction": spec.test_fraction,
        "splits": splits,
        "sources": [source.describe() for source in spec.sources],
        "num_empty": reading.num_empty,
        "num_skipped": reading.bad_input.num_skipped,
        "skipped": reading.bad_input.named,
    }
    json.dumps(manifest)  # fail before writing if a source's description is not JSON
    write_json(folder / "manifest.json", manifest)
    for name in SPLITS:
        remove_progress_records(folder / name)
