"""Byte-level BPE in compiled code (`compiled_bpe.c`): the ids of `tokenizers` at a multiple of its speed.

Most words of a text were seen before, so the ids of words are kept in a hash table of bounded size. What remains is
splitting text into words. That is written out in C for the patterns of byte-level tokenizers; the classes of characters
are asked of `tokenizers`, so that they are those of its Unicode version.

Whatever differs from these patterns is left to `tokenizers`, with the reason in the log (level INFO): tokenizers of
another kind, and texts that contain an added token or a very long word. Before its first use, the encoder is compared
with `tokenizers` on hostile texts and on the beginning of the caller's own.
"""

import copy
import ctypes
import json
import logging
import platform
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lit_gpt.compiled import load_compiled
from lit_gpt.data.hostile_texts import HOSTILE

_log = logging.getLogger(__name__)

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_CASED_WORDS = (
    r"[^\r\n\p{{L}}\p{{N}}]?[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}]*[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]+{0}"
    r"|[^\r\n\p{{L}}\p{{N}}]?[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}]+[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]*{0}"
)
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"

# GPT-2's pattern, which is built into `ByteLevel`.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# cl100k_base of tiktoken, also used by Llama 3: digits in groups of up to three, line ends kept with punctuation.
GPT4_PATTERN = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
QWEN2_PATTERN = GPT4_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")
_QWEN3_5_PATTERN = QWEN2_PATTERN.replace(r"\p{L}+", r"[\p{L}\p{M}]+").replace(r"[^\s\p{L}", r"[^\s\p{L}\p{M}")
# o200k_base of tiktoken: a word also starts where upper case follows lower case.
GPT4O_PATTERN = _CASED_WORDS.format(f"{_CONTRACTIONS}?") + rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
TEKKEN_PATTERN = _CASED_WORDS.format("") + rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"

_ORIGINAL_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_ORIGINAL_CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)


class _Pattern(NamedTuple):
    kind: int
    """GPT2, GPT4 or GPT4O in compiled_bpe.c."""
    contractions: bool = True
    longest_number: int = 3
    letters: str = r"\p{L}"


_PATTERNS = {
    GPT2_PATTERN: _Pattern(0, longest_number=1 << 62),
    GPT4_PATTERN: _Pattern(1),
    QWEN2_PATTERN: _Pattern(1, longest_number=1),
    _QWEN3_5_PATTERN: _Pattern(1, longest_number=1, letters=r"[\p{L}\p{M}]"),
    GPT4O_PATTERN: _Pattern(2),
    TEKKEN_PATTERN: _Pattern(2, contractions=False, longest_number=1),
}


def canonical_pattern(pattern: str) -> str:
    """Return the form that is used here of a pattern that has several equivalent ones."""
    return {_ORIGINAL_GPT2: GPT2_PATTERN, _ORIGINAL_CL100K: GPT4_PATTERN}.get(pattern, pattern)


def byte_alphabet() -> dict[str, int]:
    """Return the byte of each character in byte-level BPE's alphabet (GPT-2's `bytes_to_unicode`, inverted)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(256 + position): byte for position, byte in enumerate(others)}


class UnsupportedTokenizerError(Exception):
    """The reason why a tokenizer is left to `tokenizers`."""


# ---- what a tokenizer.json says ------------------------------------------------------------------------------------

_DIGITS = r"\p{N}"


def _rules(rule: Mapping[str, Any]) -> Iterator[str]:
    """Yield the patterns that a pre-tokenizer applies, in order; `Digits` and "bytes" for what is no pattern."""
    kind = rule["type"]
    if kind == "Sequence":
        for inner in rule["pretokenizers"]:
            yield from _rules(inner)
    elif kind == "ByteLevel" and not rule["add_prefix_space"]:
        yield from [GPT2_PATTERN] if rule["use_regex"] else []
        yield "bytes"
    elif kind == "Digits" and rule["individual_digits"]:
        yield "Digits"
    elif (
        kind == "Split"
        and "Regex" in rule["pattern"]
        and (rule["behavior"], rule["invert"]) in (("Isolated", False), ("Removed", True))
    ):
        yield canonical_pattern(rule["pattern"]["Regex"])
    else:
        raise UnsupportedTokenizerError(f"its pre-tokenizer is {json.dumps(rule)}")


def _read_rules(state: Mapping[str, Any]) -> tuple[_Pattern, str | None, bool]:
    """Return the pattern, the digits that are words of their own, and whether they are split off before it applies."""
    *rules, last = _rules(state["pre_tokenizer"] or {"type": None})
    patterns = [_PATTERNS[rule] for rule in rules if rule in _PATTERNS]
    digits = [rule for rule in rules if rule in ("Digits", _DIGITS)]
    if last != "bytes" or len(patterns) != 1 or len(digits) > 1 or len(patterns) + len(digits) != len(rules):
        raise UnsupportedTokenizerError(f"its pre-tokenizer is {json.dumps(state['pre_tokenizer'])}")
    return patterns[0], digits[0] if digits else None, bool(digits) and rules[0] in digits


def _check_model(state: Mapping[str, Any]) -> None:
    model, normalizer = state["model"], (state["normalizer"] or {}).get("type")
    if model["type"] != "BPE":
        raise UnsupportedTokenizerError(f"its model is {model['type']}, not BPE")
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model[option]:
            raise UnsupportedTokenizerError(f"its model sets {option}")
    if normalizer not in (None, "NFC"):
        raise UnsupportedTokenizerError(f"its normalizer is {normalizer}")
    missing = [byte for character, byte in byte_alphabet().items() if character not in model["vocab"]]
    if missing and (model["unk_token"] is not None or model["byte_fallback"]):
        raise UnsupportedTokenizerError(f"byte {min(missing)} is not in its vocabulary")


# ---- classes of characters -----------------------------------------------------------------------------------------

_LETTER, _NUMBER, _SPACE, _CUT, _UPPER, _LOWER, _END = (1 << bit for bit in range(7))
# The planes of Unicode that have assigned characters; the others are private or empty, thus in no class.
_CHARACTERS = np.concatenate([np.arange(0xD800), np.arange(0xE000, 0x40000), np.arange(0xE0000, 0xF0000)])


@cache
def _in_class(pattern: str) -> np.ndarray:
    """Return which code points belong to a class: a regular expression, or `Digits`."""
    from tokenizers import PreTokenizedString, Regex, pre_tokenizers

    runs = Regex(f"{pattern}+")
    rule: Any = pre_tokenizers.Digits() if pattern == "Digits" else pre_tokenizers.Split(runs, "isolated")
    text = PreTokenizedString(_CHARACTERS.astype("<u4").tobytes().decode("utf-32-le"))
    rule.pre_tokenize(text)
    # Runs inside and outside of the class alternate; U+0000 is in none. Offsets in bytes need no conversion there.
    starts = [start for _, (start, _), _ in text.get_splits("original", "byte")]
    widths = 1 + (_CHARACTERS > 0x7F) + (_CHARACTERS > 0x7FF) + (_CHARACTERS > 0xFFFF)
    found = np.zeros(0x110000, dtype=bool)
    found[_CHARACTERS] = np.searchsorted(starts, np.cumsum(widths) - widths, side="right") % 2 == 0
    return found


def _classes(pattern: _Pattern, digits: str | None, before: bool) -> np.ndarray:
    table = np.zeros(0x110000, dtype=np.uint8)
    names = {_LETTER: pattern.letters, _NUMBER: r"\p{N}", _SPACE: r"\s"}
    if pattern.kind == _PATTERNS[GPT4O_PATTERN].kind:
        names |= {_UPPER: r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", _LOWER: r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"}
    for bit, name in names.items():
        table[_in_class(name)] |= bit
    if digits and before:  # each digit is a text of its own, and ends the one before it
        table[_in_class(digits)] = _END
    elif digits:
        table[_in_class(digits)] |= _CUT
    return table


# ---- the compiled encoder ------------------------------------------------------------------------------------------

_LONGEST, _NONE = 1 << 10, (1 << 32) - 1
_SLOTS, _ENTRIES = 1 << 20, 1 << 22
"""Size of the table of words: 8 and 16 MiB, which hold about 700,000 words."""


class _Encoder(ctypes.Structure):
    """`Encoder` in compiled_bpe.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("classes", "bytes", "merges", "slots", "entries")),
        *((name, ctypes.c_int64) for name in ("merge_mask", "slot_mask", "capacity", "used")),
        *((name, ctypes.c_int64) for name in ("kind", "contractions", "digits", "cut")),
    )


@cache
def _library() -> Any:
    if sys.byteorder != "little":
        return None
    library = load_compiled(Path(__file__).with_name("compiled_bpe.c"), platform.machine())
    if library is not None:
        address: Any = ctypes.c_void_p
        library.add_merges.argtypes = [address, address, ctypes.c_int64]
        library.add_words.argtypes = [address, ctypes.c_char_p, ctypes.c_int64, address]
        library.encode.argtypes = [address, ctypes.c_char_p, ctypes.c_int64, address, address]
        library.add_merges.restype = library.encode.restype = None
    return library


def _joined(texts: Sequence[bytes]) -> bytes:
    """Return the texts as compiled_bpe.c reads them."""
    return b"\xff".join([*texts, bytes(8)])


class _Table:
    """A tokenizer for compiled_bpe.c, with the words that were seen.

    Args:
        state: Content of its tokenizer.json.

    Raises:
        UnsupportedTokenizerError: if the compiled code does not reproduce it.
    """

    def __init__(self, state: Mapping[str, Any]) -> None:
        _check_model(state)
        pattern, digits, before = _read_rules(state)
        if _library() is None:
            raise UnsupportedTokenizerError("LIT_GPT_NATIVE is 0, or there is no C compiler")
        vocabulary, alphabet = state["model"]["vocab"], byte_alphabet()
        ids = {byte: vocabulary.get(character, _NONE) for character, byte in alphabet.items()}
        merges = [(vocabulary[a], vocabulary[b], vocabulary[a + b]) for a, b in state["model"]["merges"]]
        merge_slots = 1 << (2 * len(merges) + 1).bit_length()
        self._fixed = {
            "classes": _classes(pattern, digits, before),
            "bytes": np.array([ids[byte] for byte in range(256)], dtype=np.uint32),
            "merges": np.full((merge_slots, 2), -1, dtype=np.int64),
        }
        self._rules = pattern.kind, pattern.contractions, pattern.longest_number, digits is not None and not before
        tokens = vocabulary.items() if state["model"]["ignore_merges"] else ()  # a word that is a token is that token
        words = {_token_bytes(token, alphabet): index for token, index in tokens}
        self._words = {word: i for word, i in words.items() if 0 < len(word) <= _LONGEST and b"\xff" not in word}
        self._clear()
        numbers = np.array(merges, dtype=np.uint32)
        _library().add_merges(self._address, numbers.ctypes.data, len(merges))

    def _clear(self) -> None:
        self._growing = np.zeros(_SLOTS, dtype=np.uint64), np.empty(_ENTRIES, dtype=np.uint32)
        arrays = (*self._fixed.values(), *self._growing)
        sizes = len(self._fixed["merges"]) - 1, _SLOTS - 1, _ENTRIES, 1
        self._encoder = _Encoder(*(array.ctypes.data for array in arrays), *sizes, *self._rules)
        self._address = ctypes.addressof(self._encoder)
        numbers = np.array(list(self._words.values()), dtype=np.uint32)
        if not _library().add_words(self._address, _joined(list(self._words)), len(numbers), numbers.ctypes.data):
            raise UnsupportedTokenizerError("its vocabulary is too large")

    def cleared(self) -> "_Table":
        """Return this table without the words that were seen if it is full, else itself."""
        if self._encoder.used <= _ENTRIES:
            return self
        table = copy.copy(self)  # other threads may still read the old one
        table._clear()
        return table

    def encode(self, texts: Sequence[bytes], dtype: np.dtype[Any]) -> list[np.ndarray | None]:
        """Return the ids of each text; None for one that has a longer word than the compiled code encodes."""
        data = _joined(texts)
        ids, ends = np.empty(len(data), dtype=np.uint32), np.empty(len(texts), dtype=np.int64)
        _library().encode(self._address, data, len(texts), ids.ctypes.data, ends.ctypes.data)
        encoded: list[np.ndarray | None] = []
        start = 0
        for end in ends.tolist():
            encoded.append(None if end < 0 else ids[start:end].astype(dtype))
            start = start if end < 0 else end
        return encoded


def _token_bytes(token: str, alphabet: Mapping[str, int]) -> bytes:
    """Return the bytes of a token of the vocabulary; none if no byte-level text contains it."""
    return bytes(alphabet[character] for character in token) if all(c in alphabet for c in token) else b""


# ---- when it is used -----------------------------------------------------------------------------------------------

_MIN_CHARACTERS = 1 << 20
"""Less text is left to `tokenizers`, which takes less time for it than the preparation here."""
_CHUNK = 1 << 18
"""Bytes encoded at a time, which bounds the memory."""
_CHECKED = 1 << 16
"""Characters of the caller's texts that are compared."""
_MAX_ADDED = 64
_starting = threading.Lock()


class CompiledBPE:
    """Encodes the texts of a tokenizer as far as the compiled code can.

    Args:
        backend: A `tokenizers.Tokenizer` that encodes special tokens as ordinary text.
    """

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._table: _Table | None = None
        self._added: list[str] = []
        self._characters: int | None = 0  # seen so far; None: the tokenizer is not supported

    def __reduce__(self) -> tuple[type["CompiledBPE"], tuple[Any]]:
        return CompiledBPE, (self._backend,)

    def encode(self, texts: Sequence[str], dtype: np.dtype[Any]) -> list[np.ndarray | None]:
        """Return the ids of each text as `dtype`, or None for one that is left to `tokenizers`."""
        if self._table is None:
            self._try_to_start(texts)
        encoded: list[np.ndarray | None] = [None] * len(texts)
        if self._table is None:
            return encoded
        chunk: dict[int, bytes] = {}
        size = 0
        for place, text in enumerate(texts):
            data = self._read(text)
            if data is not None:
                chunk[place] = data
                size += len(data)
            if chunk and (size >= _CHUNK or place == len(texts) - 1):
                self._table = table = self._table.cleared()
                for at, ids in zip(chunk, table.encode(list(chunk.values()), dtype), strict=True):
                    encoded[at] = ids
                chunk, size = {}, 0
        return encoded

    def _read(self, text: str) -> bytes | None:
        """Return the normalized text; None if it contains an added token or a lone surrogate."""
        if any(token in text for token in self._added):
            return None
        try:
            if self._backend.normalizer is not None and not text.isascii():
                text = self._backend.normalizer.normalize_str(text)
                if any(token in text for token in self._added):
                    return None
            return text.encode()
        except (UnicodeEncodeError, TypeError):
            return None

    def _try_to_start(self, texts: Sequence[str]) -> None:
        if self._characters is None:
            return
        self._characters += sum(map(len, texts))
        # One thread prepares the encoder; meanwhile the others use `tokenizers`, so that nobody waits for a lock that
        # another thread may hold when the process forks.
        if self._characters < _MIN_CHARACTERS or not _starting.acquire(blocking=False):
            return
        try:
            if self._table is None:
                self._start(texts)
        except UnsupportedTokenizerError as reason:
            self._characters = None
            _log.info("text is encoded by `tokenizers` alone: %s", reason)
        finally:
            _starting.release()

    def _start(self, texts: Sequence[str]) -> None:
        state = json.loads(self._backend.to_str())
        # Special tokens are encoded as text, so only the others matter.
        plain = [token["content"] for token in state["added_tokens"] if not token["special"]]
        if len(plain) > _MAX_ADDED:
            raise UnsupportedTokenizerError(f"{len(plain)} tokens were added to its vocabulary, more than {_MAX_ADDED}")
        normalizer = self._backend.normalizer
        self._added = plain + ([] if normalizer is None else [normalizer.normalize_str(token) for token in plain])
        table = _Table(state)
        words = list(state["model"]["vocab"])
        sample = [self._backend.decode([state["model"]["vocab"][word]]) for word in words[:: len(words) // 4000 + 1]]
        checked = [*HOSTILE.values(), "".join(HOSTILE.values()), *sample, "".join(sample), " ".join(sample)]
        room = _CHECKED
        for text in texts:
            checked.append(text[:room])
            room -= len(checked[-1])
            if room <= 0:
                break
        given = [(text, data) for text in checked if (data := self._read(text)) is not None]
        found = table.encode([data for _, data in given], np.dtype("<u4"))
        wanted = self._backend.encode_batch_fast([text for text, _ in given], add_special_tokens=False)
        for (text, _), ids, encoding in zip(given, found, wanted, strict=True):
            if ids is not None and ids.tolist() != encoding.ids:
                raise UnsupportedTokenizerError(f"its ids differ in the text {text[:60]!r}")
        self._table = table
