from collections.abc import Callable

import numpy as np
import pytest
from small_texts import make_texts

from lit_gpt.batch import IGNORE_INDEX, Batch
from lit_gpt.data.batches import BatchBuilder
from lit_gpt.data.evaluation_loader import DocumentLoader, EvaluationLoader
from lit_gpt.data.shards import TokenCorpus
from lit_gpt.data.tokenizers import Tokenizer
from lit_gpt.errors import UserError


@pytest.fixture
def texts() -> list[str]:
    return make_texts(40, seed=6)


@pytest.fixture
def corpus(make_corpus: Callable[..., TokenCorpus], texts: list[str]) -> TokenCorpus:
    return make_corpus(texts)


def ranks(kind: type, corpus: TokenCorpus, world_size: int = 1, block_size: int = 16, **kwargs) -> list:
    builder = BatchBuilder(corpus.separator_id, corpus.byte_lengths, True)
    split = corpus.split("train")
    return [kind(split, builder, block_size, 3, r, world_size, **kwargs) for r in range(world_size)]


def supervised(batch: Batch) -> list[list[int]]:
    return [[i for i in row.tolist() if i != IGNORE_INDEX] for row in batch["labels"]]


@pytest.mark.parametrize("world_size", [1, 2, 5])
@pytest.mark.parametrize("block_size", [7, 16, 100_000])
def test_every_target_once_and_all_bytes(
    corpus: TokenCorpus, texts: list[str], world_size: int, block_size: int
) -> None:
    loaders = ranks(EvaluationLoader, corpus, world_size, block_size)
    assert len({len(made) for made in loaders}) == 1
    batches = [list(made) for made in loaders]
    assert all(len(each) == len(made) for each, made in zip(batches, loaders, strict=True))
    by_window = {
        int(sample): (row, int(num_bytes))
        for each in batches
        for batch in each
        for sample, row, num_bytes in zip(batch["sample_ids"], supervised(batch), batch["num_bytes"], strict=True)
    }
    split = corpus.split("train")
    targets = [token for window in sorted(by_window) for token in by_window[window][0]]
    assert targets == split.read(0, split.num_tokens)[1:].tolist()
    assert sum(num_bytes for _, num_bytes in by_window.values()) == sum(len(text.encode()) for text in texts)


def test_evaluation_is_the_same_each_time_and_with_workers(corpus: TokenCorpus) -> None:
    (here,), (workers,) = ranks(EvaluationLoader, corpus), ranks(EvaluationLoader, corpus, num_workers=2)
    first, second, third = list(here), list(here), list(workers)
    for a, b, c in zip(first, second, third, strict=True):
        assert all(np.array_equal(a[key], b[key]) and np.array_equal(a[key], c[key]) for key in a)


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_limited_evaluation_sees_a_random_sample(corpus: TokenCorpus, world_size: int) -> None:
    def windows(limit: int | None) -> list[int]:
        loaders = ranks(EvaluationLoader, corpus, world_size)
        for made in loaders:
            if limit is not None:
                made.sample_first(limit)
        rounds = zip(*loaders, strict=True)
        return [window for batches in rounds for batch in batches for window in batch["sample_ids"].tolist()]

    whole, limited = windows(None), windows(3)
    assert whole == list(range(len(whole)))
    assert sorted(limited) == whole, "still every window once"
    first = limited[: 3 * 3 * world_size]
    assert max(first) > len(whole) // 2, "not only the split's beginning"
    assert windows(2)[: 6 * world_size] == first[: 6 * world_size], "the same sample, whatever the limit"
    assert windows(len(whole)) == whole, "no limit: no other order"


def test_inputs_are_what_stands_before_the_targets(corpus: TokenCorpus) -> None:
    (made,) = ranks(EvaluationLoader, corpus)
    split = corpus.split("train")
    for batch in made:
        for window, row in zip(batch["sample_ids"].tolist(), batch["input_ids"], strict=True):
            count = max(0, min(16, split.num_tokens - 1 - window * 16))
            if count:
                assert row[:count].tolist() == split.read(window * 16, count).tolist()


@pytest.mark.parametrize("world_size", [1, 3])
def test_documents_one_by_one(corpus: TokenCorpus, texts: list[str], tokenizer: Tokenizer, world_size: int) -> None:
    loaders = ranks(DocumentLoader, corpus, world_size, block_size=20)
    assert len({len(made) for made in loaders}) == 1
    rows: dict[int, tuple] = {}
    for made in loaders:
        for batch in made:
            assert batch["input_ids"].shape == batch["labels"].shape
            per_row = zip(
                batch["document_index"].tolist(),
                batch["sources"],
                supervised(batch),
                batch["num_bytes"].tolist(),
                batch["input_ids"].tolist(),
                strict=True,
            )
            rows |= dict(zip(batch["sample_ids"].tolist(), per_row, strict=True))
            assert set(batch["document_ids"].unique().tolist()) <= {0, -1}  # no row holds two documents
    for index, text in enumerate(texts):
        windows = [rows[w] for w in sorted(rows) if rows[w][0] == index]
        ids = tokenizer.encode(text).tolist()
        assert [token for window in windows for token in window[2]] == [*ids, tokenizer.separator_id]
        assert sum(window[3] for window in windows) == len(text.encode())
        assert {window[1] for window in windows} == {f"texts:{index + 1}"}
        inputs = [token for window in windows for token in window[4][: len(window[2])]]
        assert inputs == [tokenizer.separator_id, *ids]
    empty = [row for row in rows.values() if row[0] == -1]
    assert all(row[1:4] == ("", [], 0) for row in empty)


def test_an_empty_split_is_an_error_with_a_remedy(make_corpus: Callable[..., TokenCorpus]) -> None:
    corpus = make_corpus(["only one"])
    builder = BatchBuilder(corpus.separator_id, corpus.byte_lengths, True)
    for kind in (EvaluationLoader, DocumentLoader):
        with pytest.raises(UserError, match=r"val split; .*val_files.*document_separator.*val_fraction"):
            kind(corpus.split("val"), builder, 8, 2)
