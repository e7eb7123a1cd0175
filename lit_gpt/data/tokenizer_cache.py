"""Cache of tokenizers, which are trained on a corpus's train split or copied from a given one.

A folder is named by a hash of everything that its content depends on, so its path is known before it exists.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from lit_gpt.atomic import atomic_folder
from lit_gpt.data.bpe import Pattern, check_vocab_size, train_bpe
from lit_gpt.data.cache import exclusive, print_status
from lit_gpt.data.corpus_spec import CorpusSpec, training_texts
from lit_gpt.data.records import corpus_fingerprint, total_bytes
from lit_gpt.data.tokenizers import Tokenizer
from lit_gpt.hashing import FileHashes, sha256_json
from lit_gpt.progress import Bar

TOKENIZER_SAMPLE_BYTES = 256_000_000
"""Maximum text to train a tokenizer on; more changes the merges little and costs memory."""


def trained_tokenizer_path(
    spec: CorpusSpec,
    cache_dir: Path,
    vocab_size: int,
    pattern: Pattern = "gpt2",
    special_tokens: Sequence[str] = (),
    sample_bytes: int = TOKENIZER_SAMPLE_BYTES,
) -> Path:
    """Return the folder of the tokenizer that these settings produce, whether or not it exists."""
    content = corpus_fingerprint(spec.sources, FileHashes.of_cache(cache_dir))
    key = [content, spec.val_fraction, spec.test_fraction, vocab_size, pattern, list(special_tokens), sample_bytes]
    return cache_dir / "tokenizers" / f"bpe-{vocab_size}-{sha256_json(key)[:16]}"


def prepare_tokenizer(
    spec: CorpusSpec,
    cache_dir: Path,
    vocab_size: int,
    pattern: Pattern = "gpt2",
    special_tokens: Sequence[str] = (),
    sample_bytes: int = TOKENIZER_SAMPLE_BYTES,
) -> Path:
    """Train a byte-level BPE tokenizer on the train split, unless the cache has it.

    Args:
        spec: The corpus.
        cache_dir: Root of the cache.
        vocab_size: Vocabulary size, including special tokens.
        pattern: Pattern that splits text into words.
        special_tokens: Special tokens in addition to `<|endoftext|>`.
        sample_bytes: Maximum amount of text to train on, an even sample by document hash.

    Returns:
        The Hugging Face tokenizer folder, below `cache_dir / "tokenizers"`.

    Raises:
        UserError: if the train split is empty, `vocab_size` too small, or the input bad.
    """
    check_vocab_size(vocab_size, special_tokens)
    folder = trained_tokenizer_path(spec, cache_dir, vocab_size, pattern, special_tokens, sample_bytes)
    if folder.exists():
        return folder
    with exclusive(cache_dir / "locks" / f"{folder.name}.lock", "training this tokenizer"):
        if folder.exists():
            return folder
        began = time.monotonic()
        size = total_bytes(spec.sources)
        texts = training_texts(spec, sample_bytes, size)
        total = None if size is None else min(size, sample_bytes)
        tokenizer = train_bpe(_with_progress(texts, total, "tokenizer"), vocab_size, pattern, special_tokens)
        with atomic_folder(folder) as unfinished:
            tokenizer.save(unfinished)
        seconds = time.monotonic() - began
        print_status(f"tokenizer: {tokenizer.vocab_size} entries trained in {seconds:.1f} s, stored in {folder}")
    return folder


def keep_tokenizer(tokenizer: Tokenizer, cache_dir: Path) -> Path:
    """Store a loaded tokenizer's files in the cache and return their folder."""
    folder = kept_tokenizer_path(tokenizer, cache_dir)
    if not folder.exists():
        with exclusive(cache_dir / "locks" / f"{folder.name}.lock", "copying this tokenizer"):
            if not folder.exists():
                with atomic_folder(folder) as unfinished:
                    tokenizer.save(unfinished)
    return folder


def kept_tokenizer_path(tokenizer: Tokenizer, cache_dir: Path) -> Path:
    """Return the folder in which `keep_tokenizer` stores a tokenizer."""
    content = {name: data.decode("latin-1") for name, data in tokenizer.folder_files().items()}
    return cache_dir / "tokenizers" / f"kept-{sha256_json(content)[:16]}"


def _with_progress(texts: Iterable[str], total: int | None, what: str) -> Iterator[str]:
    """Yield the texts unchanged while showing their bytes in a progress bar."""
    with Bar(total=total, unit="B", unit_scale=True, desc=what) as bar:
        for text in texts:
            yield text
            bar.update(len(text))
