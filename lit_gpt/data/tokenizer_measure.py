"""Measure tokenizers in order to choose between them: compression, speed, and whether texts round-trip."""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from lit_gpt.data.hostile_texts import HOSTILE
from lit_gpt.data.tokenizers import Tokenizer

# A word is a run of letters, marks and digits. In scripts without spaces between words, each character counts as one.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")
_TIMING_SECONDS = 1.0


"""Maps the name of a difficulty to a text that has it."""


def failures(encode_decode: Mapping[str, str]) -> list[str]:
    """Return the names of the texts that did not round-trip.

    Args:
        encode_decode: Decoded texts by name.
    """
    return [name for name, text in HOSTILE.items() if encode_decode[name] != text]


@dataclass
class TokenizerMeasure:
    """Measurements of one tokenizer.

    Attributes:
        name: Name given by the user.
        vocab_size: Number of entries.
        num_bytes: UTF-8 bytes of the texts.
        num_tokens: Number of tokens after encoding.
        bytes_per_token: Bytes per token over all texts; higher means shorter sequences.
        fertility: Tokens per word, by source (Rust et al. 2021, arXiv:2012.15613); 1 means one token per word.
        bytes_per_token_of: Bytes per token by source.
        unused_share: Fraction of the entries, excluding special tokens, that no text uses.
        megabytes_per_second: Encoding speed of one thread, in 10⁶ bytes of text per second.
        exact: Number of documents that round-trip exactly.
        num_documents: Number of documents.
        hostile_failures: Names of the hostile texts that do not round-trip.
    """

    name: str
    vocab_size: int
    num_bytes: int
    num_tokens: int
    bytes_per_token: float
    fertility: dict[str, float | None]
    bytes_per_token_of: dict[str, float | None]
    unused_share: float
    megabytes_per_second: float
    exact: int
    num_documents: int
    hostile_failures: list[str] = field(default_factory=list)

    @property
    def hostile_exact(self) -> int:
        """Number of hostile texts that round-trip exactly."""
        return len(HOSTILE) - len(self.hostile_failures)

    def to_json(self) -> dict[str, Any]:
        """Return the measurements as JSON values."""
        return asdict(self) | {"hostile_exact": self.hostile_exact, "num_hostile": len(HOSTILE)}


def count_words(text: str) -> int:
    """Count the words of a text: runs of letters and digits, and single characters of scripts without spaces."""
    return sum(1 for _ in _WORD.finditer(text))


def measure_tokenizer(name: str, tokenizer: Tokenizer, sources: Mapping[str, Sequence[str]]) -> TokenizerMeasure:
    """Encode and decode texts and return the measurements.

    Args:
        name: Name of the tokenizer.
        tokenizer: The tokenizer.
        sources: Texts by source or language.

    Returns:
        The measurements; a source without words has fertility None.
    """
    counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    fertility: dict[str, float | None] = {}
    per_source: dict[str, float | None] = {}
    total_bytes = exact = num_documents = 0
    for source, texts in sources.items():
        source_tokens = source_bytes = words = 0
        for text in texts:
            ids = tokenizer.encode(text)
            counts += np.bincount(ids, minlength=len(counts))
            source_tokens += len(ids)
            source_bytes += len(text.encode())
            words += count_words(text)
            exact += tokenizer.decode(ids) == text
            num_documents += 1
        total_bytes += source_bytes
        fertility[source] = source_tokens / words if words else None
        per_source[source] = source_bytes / source_tokens if source_tokens else None
    num_tokens = int(counts.sum())
    special = {index for index, token in tokenizer.backend.get_added_tokens_decoder().items() if token.special}
    entries = set(tokenizer.backend.get_vocab(with_added_tokens=True).values()) - special
    unused = sum(1 for index in entries if counts[index] == 0)
    return TokenizerMeasure(
        name=name,
        vocab_size=tokenizer.vocab_size,
        num_bytes=total_bytes,
        num_tokens=num_tokens,
        bytes_per_token=total_bytes / num_tokens if num_tokens else 0.0,
        fertility=fertility,
        bytes_per_token_of=per_source,
        unused_share=unused / max(len(entries), 1),
        megabytes_per_second=encoding_speed(tokenizer, [text for texts in sources.values() for text in texts]),
        exact=exact,
        num_documents=num_documents,
        hostile_failures=failures({key: tokenizer.decode(tokenizer.encode(text)) for key, text in HOSTILE.items()}),
    )


def encoding_speed(tokenizer: Tokenizer, texts: Sequence[str], seconds: float | None = None) -> float:
    """Return the encoding speed of one thread in 10⁶ bytes per second: the fastest pass within the time limit.

    Texts are encoded one at a time, for which the library uses one thread. They have been encoded before, so the
    tokenizer's word cache is warm, as in any long run.
    """
    seconds = _TIMING_SECONDS if seconds is None else seconds
    size = sum(len(text.encode()) for text in texts)
    best = float("inf")
    spent = 0.0
    while spent < seconds and size:
        began = time.perf_counter()
        for text in texts:
            tokenizer.encode(text)
        passed = time.perf_counter() - began
        best, spent = min(best, passed), spent + passed
    return size / best / 1e6 if size else 0.0


def table(measures: Sequence[TokenizerMeasure]) -> str:
    """Return one table of all tokenizers, one row each; with several sources each has a column of two numbers."""
    sources = list(measures[0].fertility)
    several = len(sources) > 1
    header = ["tokenizer", "entries", "bytes/token"]
    header += sources if several else ["tokens/word"]
    header += ["unused", "MB/s", "texts exact", "hostile exact"]
    rows = [header]
    for measure in measures:
        row = [measure.name, f"{measure.vocab_size:,}", f"{measure.bytes_per_token:.3f}"]
        for source in sources:
            fertility = _number(measure.fertility[source])
            row.append(f"{_number(measure.bytes_per_token_of[source])} | {fertility}" if several else fertility)
        row += [f"{100 * measure.unused_share:.1f} %", f"{measure.megabytes_per_second:.2f}"]
        row += [f"{measure.exact}/{measure.num_documents}", f"{measure.hostile_exact}/{len(HOSTILE)}"]
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if position == 0 else cell.rjust(width) for position, (cell, width) in enumerate(cells)
        )
        for cells in (list(zip(row, widths, strict=True)) for row in rows)
    ]
    legend = ["by source: bytes per token | tokens per word"] if several else []
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:], *legend])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
