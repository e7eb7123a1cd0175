"""What the card says about a token corpus, counted from its shards in one pass, a few megabytes at a time."""

from pathlib import Path
from typing import Any

import numpy as np

from lit_gpt.data.documents import SPLITS
from lit_gpt.data.shards import DOCUMENT, TokenCorpus
from lit_gpt.data.tokenizers import Tokenizer

_CHUNK_TOKENS = 1 << 22
_CURVE_POINTS = 60
_TOP_TOKENS = 24


def token_statistics(corpus: TokenCorpus, tokenizer: Tokenizer, source_of: dict[str, str]) -> dict[str, Any]:
    """Counts a corpus.

    Args:
        corpus: The corpus.
        tokenizer: Its tokenizer, to show tokens as text.
        source_of: Prefix of the names in the shards → source of the recipe; "" stands for all.

    Returns:
        JSON values: splits, bytes per token, lengths of documents in tokens by their number of bits, use of the
        vocabulary, how often the tokens occur by rank, the most frequent ones, and tokens by source.
    """
    counts = np.zeros(corpus.vocab_size, dtype=np.int64)
    lengths = np.zeros(64, dtype=np.int64)
    splits: dict[str, Any] = {}
    by_source: dict[str, list[int]] = {}
    for name in SPLITS:
        split = corpus.split(name)
        splits[name] = {"documents": split.num_documents, "tokens": split.num_tokens, "bytes": split.num_bytes}
        owners = _owners(split.source_names, source_of)
        for shard in split.shards:
            _count_tokens(corpus.path / shard.tokens, split.dtype, counts)
            records = np.memmap(corpus.path / shard.documents, dtype=DOCUMENT, mode="r")
            offsets = records["offset"].astype(np.int64)
            tokens = np.diff(offsets, append=shard.num_tokens) - 1
            lengths += np.bincount(_num_bits(tokens), minlength=64)
            per_source = np.bincount(records["source"], weights=tokens, minlength=len(owners))
            size_of_source = np.bincount(records["source"], weights=records["num_bytes"], minlength=len(owners))
            for owner, num_tokens, size in zip(owners, per_source, size_of_source, strict=True):
                entry = by_source.setdefault(owner, [0, 0])
                entry[0] += int(num_tokens)
                entry[1] += int(size)
    num_documents = sum(split["documents"] for split in splits.values())
    text_tokens = int(counts.sum()) - num_documents  # one separator a document
    num_bytes = sum(split["bytes"] for split in splits.values())
    counts[corpus.separator_id] -= num_documents
    order = np.argsort(-counts, kind="stable")
    used = int((counts > 0).sum())
    ranks = np.unique(np.geomspace(1, max(used, 1), _CURVE_POINTS).astype(int))
    return {
        "splits": splits,
        "vocab_size": corpus.vocab_size,
        "used": used,
        "text_tokens": text_tokens,
        "bytes_per_token": num_bytes / max(text_tokens, 1),
        "lengths": {str(bits): int(count) for bits, count in enumerate(lengths) if count},
        "curve": [[int(rank), int(counts[order[rank - 1]])] for rank in ranks if used],
        "top": [[tokenizer.decode([index]), int(counts[index])] for index in order[:_TOP_TOKENS] if counts[index]],
        "by_source": {name: by_source[name] for name in sorted(by_source) if by_source[name][0]},
        "tokenizer": corpus.manifest["tokenizer"],
        "fingerprint": corpus.fingerprint,
    }


def _owners(names: list[str], source_of: dict[str, str]) -> list[str]:
    prefixes = sorted(source_of, key=len, reverse=True)
    return [next((source_of[p] for p in prefixes if name.startswith(p)), "unknown") for name in names]


def _count_tokens(path: Path, dtype: np.dtype[Any], counts: np.ndarray) -> None:
    with open(path, "rb") as file:
        while len(chunk := np.fromfile(file, dtype=dtype, count=_CHUNK_TOKENS)):
            counts += np.bincount(chunk, minlength=len(counts))


def _num_bits(values: np.ndarray) -> np.ndarray:
    """Returns the number of bits of each value: (n,) int64, exact below 2^53."""
    return np.where(values > 0, np.frexp(values.astype(np.float64))[1], 0).astype(np.int64)
