import random

from cleaning_prose import make_document
from cleaning_run import run_corpus_step, texts_by_id

from lit_gpt.data.cleaning.duplicates import ExactDuplicates


def corpus(seed=0):
    rng = random.Random(seed)
    originals = [make_document(rng, rng.randint(1, 6)) for _ in range(60)] + ["", " ", "x"]
    texts = originals + rng.choices(originals, k=80)
    rng.shuffle(texts)
    return texts_by_id(texts)


def test_keeps_the_first_of_each_text_and_nothing_else(tmp_path):
    texts = corpus()
    outcome = run_corpus_step(ExactDuplicates(), texts, tmp_path, num_shards=4)
    first = {}
    for name, text in texts.items():
        first.setdefault(text, name)
    assert set(outcome.kept) == set(first.values())
    sizes = {text: list(texts.values()).count(text) for text in first}
    for name, why in outcome.rejected.items():
        assert (why.reason, why.kept, why.cluster) == ("exact_duplicate", first[texts[name]], first[texts[name]])
        assert why.cluster_size == sizes[texts[name]]
    assert outcome.clusters == {first[text]: size for text, size in sizes.items() if size > 1}


def test_any_number_of_shards_and_passes_drops_the_same(tmp_path, monkeypatch):
    texts = corpus(1)
    one = run_corpus_step(ExactDuplicates(), texts, tmp_path / "1", num_shards=1).rejected
    assert run_corpus_step(ExactDuplicates(), texts, tmp_path / "7", num_shards=7).rejected == one
    monkeypatch.setattr("lit_gpt.data.cleaning.duplicates.MAX_KEYS_AT_ONCE", 10)
    assert run_corpus_step(ExactDuplicates(), texts, tmp_path / "3", num_shards=3).rejected == one


def test_case_and_white_space_count_unless_told_otherwise(tmp_path):
    texts = texts_by_id(["One two.", "one two.", " One\t two.\n", "One two", "ONE  TWO."])
    name = "document-0000{}".format
    assert run_corpus_step(ExactDuplicates(), texts, tmp_path / "a").dropped == set()
    assert run_corpus_step(ExactDuplicates(ignore_case=True), texts, tmp_path / "b").dropped == {name(1)}
    assert run_corpus_step(ExactDuplicates(ignore_whitespace=True), texts, tmp_path / "c").dropped == {name(2)}
    both = ExactDuplicates(ignore_case=True, ignore_whitespace=True)
    assert run_corpus_step(both, texts, tmp_path / "d").dropped == {name(1), name(2), name(4)}


def test_a_hash_that_is_half_equal_is_no_duplicate(tmp_path, monkeypatch):
    """Documents are the same only if all 128 bits are: the first 64 alone would join these."""
    digests = {"a": bytes(16), "b": bytes(8) + b"12345678", "c": bytes(16)}
    monkeypatch.setattr("lit_gpt.data.cleaning.duplicates.digest", lambda text, *_: digests[text])
    outcome = run_corpus_step(ExactDuplicates(), texts_by_id(["a", "b", "c"]), tmp_path)
    assert outcome.dropped == {"document-00002"}
