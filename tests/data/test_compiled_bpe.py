import json
import logging
import pickle
import random
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, decoders, models, normalizers, trainers
from tokenizers import Tokenizer as Backend
from tokenizers import pre_tokenizers as pre

from lit_gpt.data import compiled_bpe
from lit_gpt.data.compiled_bpe import GPT2_PATTERN, GPT4_PATTERN, GPT4O_PATTERN, QWEN2_PATTERN, TEKKEN_PATTERN
from lit_gpt.data.tokenizer_measure import HOSTILE
from lit_gpt.data.tokenizers import Tokenizer
from lit_gpt.errors import UserError

needs_compiler = pytest.mark.skipif(compiled_bpe._library() is None, reason="no C compiler")
BYTES = pre.ByteLevel(add_prefix_space=False, use_regex=False)
DIGITS = pre.Digits(individual_digits=True)
CL100K = (  # as in tiktoken
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
QWEN3_5 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split(pattern: str, *more: Any) -> pre.PreTokenizer:
    return pre.Sequence([pre.Split(Regex(pattern), "isolated"), *more, BYTES])


PRE_TOKENIZERS = {
    "gpt2": pre.ByteLevel(add_prefix_space=False),
    "smollm": pre.Sequence([DIGITS, pre.ByteLevel(add_prefix_space=False)]),
    "gpt2, split digits": split(GPT2_PATTERN, DIGITS),
    "llama3": split(GPT4_PATTERN),
    "gpt4, split digits": split(GPT4_PATTERN, DIGITS),
    "digits, then gpt4": split(r"\p{N}", pre.Split(Regex(GPT4_PATTERN), "isolated")),
    "tiktoken": pre.Sequence([pre.Split(Regex(CL100K), "removed", invert=True), BYTES]),
    "qwen2": split(QWEN2_PATTERN),
    "qwen3.5": split(QWEN3_5),
    "gpt4o": split(GPT4O_PATTERN),
    "tekken": split(TEKKEN_PATTERN),
}
PIECES = [
    "'s",
    "'S",
    "'ſ",
    "'t",
    "'RE",
    "'vE",
    "'ll",
    "'lL",
    "'l",
    "'d",
    "'",
    "’",
    "a",
    "B",
    "Ab",
    "ſ",
    "́",
    "ำ",
    "1",
    "23",
    "456",
    "²",
    "Ⅷ",
    "/",
    ".",
    "\u200d",
    "\ufeff",
    "🙂",
    "漢",
    "ǅ",
    "ʰ",
]
SPACES = [" ", "  ", "   ", "\n", "\r", "\r\n", " \n", "\t", "\u00a0", "\u2028", "\u0085", "\u3000"]


def make_backend(pre_tokenizer: Any, **options: Any) -> Backend:
    backend = Backend(models.BPE(**options))
    backend.pre_tokenizer, backend.decoder = pre_tokenizer, decoders.ByteLevel()
    alphabet, end = sorted(pre.ByteLevel.alphabet()), ["<|endoftext|>"]
    texts = [*HOSTILE.values(), *random_texts(300)]
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, special_tokens=end, show_progress=False)
    backend.train_from_iterator(texts, trainer)
    return backend


def random_texts(number: int) -> list[str]:
    rng = random.Random(number)
    choices = (PIECES, SPACES, list(map(chr, compiled_bpe._CHARACTERS[::7])))
    return ["".join(rng.choice(rng.choice(choices)) for _ in range(rng.randrange(16))) for _ in range(number)]


def by_library(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    return [encoding.ids for encoding in tokenizer.backend.encode_batch_fast(texts, add_special_tokens=False)]


def by_compiled(tokenizer: Tokenizer, texts: list[str]) -> list[list[int] | None]:
    found = tokenizer._compiled.encode(texts, tokenizer.dtype)
    return [None if ids is None else ids.tolist() for ids in found]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start at once, with a table that is full after some thousand words."""
    monkeypatch.setattr(compiled_bpe, "_MIN_CHARACTERS", 0)
    monkeypatch.setattr(compiled_bpe, "_SLOTS", 1 << 12)
    monkeypatch.setattr(compiled_bpe, "_ENTRIES", 1 << 14)


@needs_compiler
@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_ids_are_those_of_tokenizers(name: str) -> None:
    ignore_merges = name in ("smollm", "llama3", "gpt4o")  # a word that is a token is not built by merges
    tokenizer = Tokenizer(make_backend(PRE_TOKENIZERS[name], ignore_merges=ignore_merges))
    texts = [
        *HOSTILE.values(),
        "".join(HOSTILE.values()),
        *random_texts(2000),
        "a" * 1024,
        "a" * 1025,
        "x" + "a" * 10**5,
    ]
    found = by_compiled(tokenizer, texts)
    too_long = ("a" * 1025, "\U0001f600" * 257)  # words of more than 1,024 bytes are left to the library
    for text, ids, wanted in zip(texts, found, by_library(tokenizer, texts), strict=True):
        assert ids == (None if any(word in text for word in too_long) else wanted), ascii(text)
    encoded = tokenizer.encode_batch(texts)
    assert [ids.tolist() for ids in encoded] == by_library(tokenizer, texts)
    assert {ids.dtype for ids in encoded} == {tokenizer.dtype}


@needs_compiler
def test_classes_are_those_of_the_regular_expressions() -> None:
    for pattern in (r"\p{L}", r"\p{N}", r"\s"):
        members = compiled_bpe._in_class(pattern)
        rule = normalizers.Replace(Regex(pattern), "")
        for point in [*range(0x300), *range(0x400, 0x3000, 37), 0x3000, 0x1D7D8, 0x20000, 0xE0041, 0x10FFFD]:
            assert members[point] == (rule.normalize_str(chr(point)) == ""), (pattern, hex(point))


@needs_compiler
def test_memory_is_bounded_and_words_are_forgotten_when_it_is_full() -> None:
    tokenizer = Tokenizer(make_backend(PRE_TOKENIZERS["llama3"], ignore_merges=True))
    words = ["".join(chr(97 + int(digit)) for digit in str(number)) for number in range(10_000)]
    texts = [" ".join(words[start : start + 1000]) for start in range(0, 10_000, 1000)]
    tables: list[Any] = []
    for text in texts:
        assert by_compiled(tokenizer, [text]) == by_library(tokenizer, [text])
        tables.append(tokenizer._compiled._table)
    assert len({id(table) for table in tables}) > 1
    assert all(len(array) == size for array, size in zip(tables[-1]._growing, (1 << 12, 1 << 14), strict=True))


@needs_compiler
def test_texts_with_added_tokens_are_left_to_the_library() -> None:
    backend = make_backend(PRE_TOKENIZERS["qwen2"])
    backend.normalizer = normalizers.NFC()
    backend.add_tokens([AddedToken("<tool>"), AddedToken("re\u0301sumé", normalized=True)])
    backend.add_special_tokens([AddedToken("<|special|>")])
    tokenizer = Tokenizer(backend)
    texts = ["a<tool>b", "my résumé", "my re\u0301sume\u0301", "<|special|> e\u0301 1\u20de \u1100\u1161", "plain", ""]
    assert [ids is None for ids in by_compiled(tokenizer, texts)] == [True] * 3 + [False] * 3
    assert [ids.tolist() for ids in tokenizer.encode_batch(texts)] == by_library(tokenizer, texts)
    with pytest.raises(UserError, match="U\\+D800"):
        tokenizer.encode_batch(["plain", "a\ud800"])


@needs_compiler
def test_copies_for_other_processes_encode_special_tokens_as_text() -> None:
    tokenizer = Tokenizer(make_backend(PRE_TOKENIZERS["gpt2"]))
    wanted = tokenizer.encode("a<|endoftext|>")
    assert tokenizer.separator_id not in wanted
    copy = pickle.loads(pickle.dumps(tokenizer))
    np.testing.assert_array_equal(copy.encode("a<|endoftext|>"), wanted)
    copy._compiled._characters = None
    np.testing.assert_array_equal(copy.encode("a<|endoftext|>"), wanted)


def without_exclamation_mark() -> dict[str, int]:
    return {"<|endoftext|>": 0} | {c: n for n, c in enumerate(sorted(pre.ByteLevel.alphabet())[1:], 1)}


@needs_compiler
def test_bytes_that_are_not_in_the_vocabulary_are_dropped() -> None:
    backend = make_backend(PRE_TOKENIZERS["gpt2"])
    backend.model = models.BPE(without_exclamation_mark() | {"ab": 256, "!!": 257}, [("a", "b")])
    texts = ["a!b ab", "!", "!!", ""]
    tokenizer = Tokenizer(backend)
    assert by_compiled(tokenizer, texts) == by_library(tokenizer, texts)


def other(kind: str) -> Backend:
    backend = make_backend(PRE_TOKENIZERS["gpt2"], **({"dropout": 0.1} if kind == "dropout" else {}))
    match kind:
        case "normalizer":
            backend.normalizer = normalizers.Lowercase()
        case "prefix":
            backend.pre_tokenizer = pre.ByteLevel(add_prefix_space=True)
        case "pattern":
            backend.pre_tokenizer = split(r"\w+|\W+")
        case "two patterns":
            backend.pre_tokenizer = split(GPT4_PATTERN, pre.Split(Regex(GPT2_PATTERN), "isolated"))
        case "no bytes":
            backend.pre_tokenizer = pre.Split(Regex(GPT4_PATTERN), "isolated")
        case "none":
            backend.pre_tokenizer = None
        case "added":
            backend.add_tokens([f"<{number}>" for number in range(65)])
        case "model":
            backend.model = models.WordLevel({"<|endoftext|>": 0, "a": 1}, unk_token="<|endoftext|>")
        case "unknown":
            backend.model = models.BPE(without_exclamation_mark(), [], unk_token="<|endoftext|>")
    return backend


@needs_compiler
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("dropout", "dropout"),
        ("normalizer", "Lowercase"),
        ("prefix", "add_prefix_space"),
        ("pattern", "W+"),
        ("two patterns", "Split"),
        ("no bytes", "Split"),
        ("none", "null"),
        ("added", "65"),
        ("model", "WordLevel"),
        ("unknown", "byte 33"),
    ],
)
def test_other_tokenizers_are_left_to_the_library(kind: str, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = Tokenizer(other(kind))
    with caplog.at_level(logging.INFO):
        assert by_compiled(tokenizer, ["a", "b"]) == by_compiled(tokenizer, ["a", "b"]) == [None, None]
    (record,) = caplog.records
    assert reason in record.getMessage()
    if kind != "dropout":
        assert [ids.tolist() for ids in tokenizer.encode_batch(["a", "b c"])] == by_library(tokenizer, ["a", "b c"])


@needs_compiler
def test_an_encoder_that_differs_is_not_used(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = Tokenizer(make_backend(PRE_TOKENIZERS["gpt2"]))
    state = json.loads(tokenizer.backend.to_str())
    state["model"]["merges"] = []
    monkeypatch.setattr(compiled_bpe.json, "loads", lambda _: state)
    with caplog.at_level(logging.INFO):
        assert by_compiled(tokenizer, ["a"]) == [None]
    assert "differ" in caplog.text


def test_without_a_compiler_the_library_encodes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("LIT_GPT_NATIVE", "0")
    compiled_bpe._library.cache_clear()
    tokenizer = Tokenizer(make_backend(PRE_TOKENIZERS["gpt2"]))
    with caplog.at_level(logging.INFO):
        assert [ids.tolist() for ids in tokenizer.encode_batch(["a b"])] == by_library(tokenizer, ["a b"])
    assert "LIT_GPT_NATIVE" in caplog.text
    compiled_bpe._library.cache_clear()


def test_little_text_is_left_to_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled_bpe, "_MIN_CHARACTERS", 10)
    tokenizer = Tokenizer(make_backend(PRE_TOKENIZERS["gpt2"]))
    assert by_compiled(tokenizer, ["abcd", "abcde"]) == [None, None]
    if compiled_bpe._library() is not None:
        assert by_compiled(tokenizer, ["a"]) == by_library(tokenizer, ["a"])
