"""A tiny tokenizer and a maker of corpora, for all tests of the data room."""

from collections.abc import Callable
from pathlib import Path

import pytest
from small_texts import make_texts

from lit_gpt.data.bpe import train_bpe
from lit_gpt.data.corpus_spec import CorpusSpec
from lit_gpt.data.prepare import prepare_corpus
from lit_gpt.data.records import IterableRecords
from lit_gpt.data.shards import TokenCorpus
from lit_gpt.data.tokenizers import Tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_bpe(make_texts(200, seed=99), 320)


@pytest.fixture
def make_corpus(tmp_path: Path, tokenizer: Tokenizer) -> Callable[..., TokenCorpus]:
    """Prepares texts and opens the corpus; all go to `split` if it is named."""

    def make(texts: list[str], shard_tokens: int = 500, **fractions: float) -> TokenCorpus:
        spec = CorpusSpec([IterableRecords(lambda: texts, "texts")], **fractions)
        return TokenCorpus(prepare_corpus(spec, tokenizer, tmp_path / "cache", 2, shard_tokens))

    return make
