"""The trained merges against byte-pair encoding as the paper states it, in loops."""

import argparse
import inspect
import itertools

import pytest
import regex

from lit_gpt.data.bpe import train_bpe
from lit_gpt.data.compiled_bpe import byte_alphabet

# Written out again, from the two papers' code, so that a slip in ours shows.
GPT2 = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
GPT4 = (
    r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"""
    r"""\s+(?!\S)|\s+"""
)


def naive_bpe(text: str, pattern: str, num_merges: int, split_digits: bool) -> list[tuple[bytes, bytes]]:
    """Sennrich et al. 2016, algorithm 1, on bytes: merge the most frequent pair of neighbours, again and again.

    Ties go to the pair whose parts were there first: bytes in the order of GPT-2's alphabet, then tokens as they came.
    """
    words = regex.findall(pattern, text)
    if split_digits:
        words = [part for word in words for part in regex.findall(r"\p{N}|\P{N}+", word)]
    counts: dict[tuple[bytes, ...], int] = {}
    for word in words:
        symbols = tuple(bytes([byte]) for byte in word.encode())
        counts[symbols] = counts.get(symbols, 0) + 1
    rank = {bytes([byte]): place for place, (_, byte) in enumerate(sorted(byte_alphabet().items()))}
    merges: list[tuple[bytes, bytes]] = []
    for _ in range(num_merges):
        pairs: dict[tuple[bytes, bytes], int] = {}
        for symbols, count in counts.items():
            for pair in itertools.pairwise(symbols):
                pairs[pair] = pairs.get(pair, 0) + count
        best = min(pairs, key=lambda pair: (-pairs[pair], rank[pair[0]], rank[pair[1]]))
        merges.append(best)
        rank.setdefault(best[0] + best[1], len(rank))
        merged: dict[tuple[bytes, ...], int] = {}
        for symbols, count in counts.items():
            new: list[bytes] = []
            joined = False
            for symbol in symbols:
                # Pairs are joined from the left; what was joined does not join again in this round.
                if new and not joined and (new[-1], symbol) == best:
                    new[-1], joined = new[-1] + symbol, True
                else:
                    new.append(symbol)
                    joined = False
            merged[tuple(new)] = merged.get(tuple(new), 0) + count
        counts = merged
    return merges


@pytest.mark.parametrize("split_digits", [False, True])
@pytest.mark.parametrize("pattern", ["gpt2", "gpt4"])
def test_merges_are_those_of_the_naive_loop(pattern: str, split_digits: bool) -> None:
    text = inspect.getsource(argparse)[:30_000] + "naïve 漢字 漢字 1999 2024 ²³ don't DON'T\r\n" * 40
    num_merges = 250
    trained = train_bpe([text], 257 + num_merges, pattern, split_digits=split_digits)  # type: ignore[arg-type]
    expected = naive_bpe(text, {"gpt2": GPT2, "gpt4": GPT4}[pattern], num_merges, split_digits)
    alphabet = byte_alphabet()
    tokens = sorted((i, token) for token, i in trained.backend.get_vocab().items() if i >= 257)
    learned = [bytes(alphabet[character] for character in token) for _, token in tokens]
    assert learned == [left + right for left, right in expected]
