import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from small_texts import make_texts

from lit_gpt.data import shards
from lit_gpt.data.corpus_spec import CorpusSpec
from lit_gpt.data.prepare import prepare_corpus
from lit_gpt.data.records import Document, IterableRecords
from lit_gpt.data.shards import TokenCorpus, TokenSplit
from lit_gpt.data.tokenizers import Tokenizer
from lit_gpt.errors import UserError


def flat(texts: list[str], tokenizer: Tokenizer) -> np.ndarray:
    """The stream as it should be: separator and tokens of each text, one after another."""
    return np.concatenate([[tokenizer.separator_id, *tokenizer.encode(text)] for text in texts])


@pytest.fixture
def texts() -> list[str]:
    return make_texts(60, seed=1)


@pytest.fixture
def corpus(make_corpus: Callable[..., TokenCorpus], texts: list[str]) -> TokenCorpus:
    return make_corpus(texts)


def test_reading_anywhere_over_several_shards_and_round_the_end(
    corpus: TokenCorpus, texts: list[str], tokenizer: Tokenizer
) -> None:
    split = corpus.split("train")
    expected = flat(texts, tokenizer)
    assert len(split.shards) > 3
    assert split.num_tokens == len(expected)
    assert np.array_equal(split.read(0, split.num_tokens), expected)
    doubled = np.concatenate([expected, expected])
    rng = np.random.default_rng(0)
    for start, length in zip(rng.integers(0, len(expected), 200), rng.integers(1, len(expected), 200), strict=True):
        assert np.array_equal(split.read(int(start), int(length)), doubled[start : start + length])
    assert np.array_equal(split.read(split.num_tokens + 5, 3), expected[5:8])


def test_documents_lead_back_to_their_source(corpus: TokenCorpus, texts: list[str], tokenizer: Tokenizer) -> None:
    split = corpus.split("train")
    assert split.num_documents == len(texts)
    assert split.num_bytes == sum(len(text.encode()) for text in texts)
    start = 0
    for index, text in enumerate(texts):
        span = split.document(index)
        assert (span.start, span.record, span.source) == (start, index + 1, "texts")
        assert span.num_bytes == len(text.encode())
        assert tokenizer.decode(split.read(span.start + 1, span.num_tokens)) == text
        assert split.document_at(span.start) == split.document_at(span.start + span.num_tokens) == index
        assert split.document_lengths()[index] == span.num_tokens
        start += span.num_tokens + 1
    with pytest.raises(IndexError):
        split.document(len(texts))


def test_manifest_says_what_the_tokens_are(corpus: TokenCorpus, tokenizer: Tokenizer) -> None:
    assert corpus.separator_id == tokenizer.separator_id
    assert corpus.vocab_size == tokenizer.vocab_size
    assert corpus.manifest["dtype"] == "<u2"
    assert corpus.manifest["tokenizer"] == tokenizer.fingerprint
    assert np.array_equal(corpus.byte_lengths, tokenizer.byte_lengths)
    corpus.verify()
    json.dumps(corpus.lineage())
    assert corpus.lineage()["splits"]["train"]["tokens"] == corpus.split("train").num_tokens


def test_a_split_travels_to_other_processes_and_keeps_few_files_open(
    corpus: TokenCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "_MAX_OPEN_SHARDS", 2)
    split = corpus.split("train")
    whole = split.read(0, split.num_tokens)
    copy: TokenSplit = pickle.loads(pickle.dumps(split))
    assert np.array_equal(copy.read(0, copy.num_tokens), whole)
    assert len(copy._maps) == 2
    assert len(pickle.dumps(split)) < 20_000


def test_damage_is_named(corpus: TokenCorpus) -> None:
    tokens = corpus.path / corpus.split("train").shards[1].tokens
    data = tokens.read_bytes()
    tokens.write_bytes(data[:20] + bytes([data[20] ^ 1]) + data[21:])
    TokenCorpus(corpus.path)  # a flipped bit shows only in its hash
    with pytest.raises(UserError, match=r"train/tokens-00001\.bin is damaged"):
        corpus.verify()
    tokens.write_bytes(data[:-2])
    with pytest.raises(UserError, match=r"train/tokens-00001\.bin is damaged: \d+ bytes instead of"):
        TokenCorpus(corpus.path)
    (corpus.path / "manifest.json").write_text('{"format":')
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        TokenCorpus(corpus.path)
    (corpus.path / "manifest.json").write_text('{"format": "lit_gpt.tokens", "version": 99}')
    with pytest.raises(UserError, match="prepare it again"):
        TokenCorpus(corpus.path)
    (corpus.path / "manifest.json").unlink()
    with pytest.raises(UserError, match="not a prepared corpus"):
        TokenCorpus(corpus.path)


def test_sources_are_numbered_once(tmp_path: Path, tokenizer: Tokenizer) -> None:
    documents = [Document(f"text {i}", f"file {i % 3}") for i in range(9)]
    spec = CorpusSpec([IterableRecords(lambda: documents, "mine")])
    split = TokenCorpus(prepare_corpus(spec, tokenizer, tmp_path)).split("train")
    assert split.source_names == ["file 0", "file 1", "file 2"]
    assert [split.document(i).source for i in range(9)] == [d.source for d in documents]
