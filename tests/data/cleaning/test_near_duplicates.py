import itertools
import random

import numpy as np
import pytest
from cleaning_prose import change_words, make_document
from cleaning_run import run_corpus_step, texts_by_id

from lit_gpt.data.cleaning.near_duplicates import MinHash, NearDuplicates
from lit_gpt.data.cleaning.words import match_words, n_gram_hashes, word_hashes


def n_gram_set(text, n=5):
    """The n-grams of a text by the definition: a set of tuples of words."""
    words = match_words(text)
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


def jaccard(one, other):
    return len(one & other) / len(one | other)


def family_corpus(seed=0, families=60, singles=80):
    """Originals, each with copies of which 0.5 to 12 % of the words are changed, among documents of their own."""
    rng = random.Random(seed)
    texts = []
    for _family in range(families):
        original = make_document(rng, rng.randint(8, 30))
        texts.append(original)
        texts += [
            change_words(original, share, rng) for share in rng.choices([0.005, 0.01, 0.02, 0.04, 0.06, 0.12], k=2)
        ]
    texts += [make_document(rng, rng.randint(4, 30)) for _ in range(singles)]
    rng.shuffle(texts)
    return texts_by_id(texts)


def components(pairs):
    """Connected components by a plain walk."""
    neighbours = {}
    for a, b in pairs:
        neighbours.setdefault(a, set()).add(b)
        neighbours.setdefault(b, set()).add(a)
    found, seen = [], set()
    for start in neighbours:
        if start not in seen:
            component, todo = set(), [start]
            while todo:
                node = todo.pop()
                if node not in component:
                    component.add(node)
                    todo += neighbours[node]
            seen |= component
            found.append(component)
    return found


def pairs_of(clusters):
    return {pair for cluster in clusters for pair in itertools.combinations(sorted(cluster), 2)}


def found_clusters(outcome):
    clusters = {kept: {kept} for kept in outcome.clusters}
    for name, why in outcome.rejected.items():
        clusters[why.kept].add(name)
    return list(clusters.values())


def test_recall_and_precision_against_exact_jaccard_over_all_pairs(tmp_path, capsys):
    texts = family_corpus()
    sets = {name: n_gram_set(text) for name, text in texts.items()}
    exact = {
        (a, b): jaccard(sets[a], sets[b]) for a, b in itertools.combinations(sorted(texts), 2) if sets[a] & sets[b]
    }
    threshold = (1 / 14) ** (1 / 8)
    outcome = run_corpus_step(NearDuplicates(), texts, tmp_path)
    found = pairs_of(found_clusters(outcome))
    likely = {pair for pair, s in exact.items() if s >= 0.8}
    above = {pair for pair, s in exact.items() if s >= threshold}
    recall = len(found & likely) / len(likely)
    recall_threshold = len(found & above) / len(above)
    precision = sum(exact.get(pair, 0) >= 0.5 for pair in found) / len(found)
    with capsys.disabled():
        print(
            f"\nMinHash 14x8 on {len(texts)} documents, {len(exact)} pairs with a common 5-gram: "
            f"recall {recall:.3f} at Jaccard >= 0.8 ({len(likely)} pairs), {recall_threshold:.3f} at >= {threshold:.2f} "
            f"({len(above)} pairs); precision {precision:.3f} (Jaccard >= 0.5; {len(found)} pairs found)"
        )
    assert len(likely) > 30
    assert recall >= 0.92  # 1 - (1 - 0.8**8)**14: the least of these pairs; clusters join more
    assert precision >= 0.95
    # No document without any near-duplicate was touched.
    alone = {name for name in texts if not any(name in pair and s >= 0.3 for pair, s in exact.items())}
    assert len(alone) >= 80
    assert not alone & outcome.dropped


def test_chance_of_a_shared_bucket_is_the_theory(capsys):
    """Pairs of n-gram sets with a chosen Jaccard similarity: the share that has a common key is 1 - (1 - s^r)^b."""
    minhash = MinHash(14, 8)
    rng = np.random.default_rng(0)
    for similarity in (0.5, 0.6, 0.7, 0.8, 0.9):
        common = 200
        own = round(common * (1 - similarity) / similarity / 2)
        hits, equal, trials = 0, 0.0, 400
        for _ in range(trials):
            values = rng.integers(0, 2**64, common + 2 * own, dtype=np.uint64)
            signatures = np.stack(
                [
                    minhash.signature(values[: common + own]),
                    minhash.signature(np.concatenate([values[:common], values[common + own :]])),
                ]
            )
            keys = minhash.keys(signatures)
            hits += bool((keys[0] == keys[1]).any())
            equal += float((signatures[0] == signatures[1]).mean())
        s = common / (common + 2 * own)
        expected = 1 - (1 - s**8) ** 14  # 14 buckets of 8 hashes
        with capsys.disabled():
            print(
                f"\nJaccard {s:.3f}: {hits / trials:.3f} share a bucket (theory {expected:.3f}), {equal / trials:.3f} of the hashes equal",
                end="",
            )
        assert hits / trials == pytest.approx(expected, abs=4 * (max(expected * (1 - expected), 0.002) / trials) ** 0.5)
        assert equal / trials == pytest.approx(s, abs=0.01)


def test_clusters_are_the_connected_components_of_shared_keys(tmp_path):
    texts = family_corpus(seed=3, families=25, singles=10)
    minhash = MinHash(14, 8)
    names, rows = [], []
    for name, text in texts.items():
        hashes = n_gram_hashes(word_hashes(match_words(text)), 5)
        names.append(name)
        rows.append(minhash.signature(hashes))
    keys = minhash.keys(np.stack(rows))
    pairs = [(a, b) for a, b in itertools.combinations(range(len(names)), 2) if (keys[a] == keys[b]).any()]
    expected = {frozenset(names[i] for i in component) for component in components(pairs)}
    outcome = run_corpus_step(NearDuplicates(), texts, tmp_path)
    assert {frozenset(cluster) for cluster in found_clusters(outcome)} == expected
    for cluster in expected:
        first = min(cluster)
        assert cluster - outcome.dropped == {first}
        assert outcome.clusters[first] == len(cluster)
        assert all(outcome.rejected[name].cluster_size == len(cluster) for name in cluster - {first})


@pytest.mark.parametrize("num_shards", [1, 2, 7])
def test_any_number_of_shards_drops_the_same(num_shards, tmp_path):
    texts = family_corpus(seed=5, families=15, singles=15)
    outcome = run_corpus_step(NearDuplicates(), texts, tmp_path / "a", num_shards)
    assert outcome.rejected == run_corpus_step(NearDuplicates(), texts, tmp_path / "b", 3).rejected


def test_sorting_in_several_passes_finds_the_same(tmp_path, monkeypatch):
    texts = family_corpus(seed=6, families=15, singles=15)
    whole = run_corpus_step(NearDuplicates(), texts, tmp_path / "a")
    monkeypatch.setattr("lit_gpt.data.cleaning.duplicates.MAX_KEYS_AT_ONCE", 7)
    assert run_corpus_step(NearDuplicates(), texts, tmp_path / "b").rejected == whole.rejected


def test_min_similarity_drops_only_what_is_alike(tmp_path):
    texts = family_corpus(seed=7, families=40, singles=20)
    sets = {name: n_gram_set(text) for name, text in texts.items()}
    loose = run_corpus_step(NearDuplicates(min_similarity=None), texts, tmp_path / "a")
    strict = run_corpus_step(NearDuplicates(min_similarity=0.75), texts, tmp_path / "b")
    assert strict.dropped < loose.dropped
    for cluster in found_clusters(strict):
        for name in cluster:
            assert max(jaccard(sets[name], sets[other]) for other in cluster - {name}) > 0.75 - 4 * 0.041
    certain = {name for name in loose.dropped if jaccard(sets[name], sets[loose.rejected[name].kept]) > 0.92}
    assert certain
    assert certain <= strict.dropped


def test_short_and_empty_documents_stay(tmp_path):
    texts = texts_by_id(["", "one two three four", "one two three four", " \n", "", "!!! ???"])
    outcome = run_corpus_step(NearDuplicates(), texts, tmp_path, num_shards=2)
    assert outcome.kept == texts


def test_case_accents_punctuation_and_numbers_do_not_hide_a_copy(tmp_path):
    rng = random.Random(1)
    text = make_document(rng) + " Café number 12 of 1,345."
    other = text.upper().replace(".", " !").replace("CAFÉ", "CAFE\u0301").replace("12", "99")
    texts = texts_by_id([make_document(rng), text, other])
    outcome = run_corpus_step(NearDuplicates(ignore_numbers=True), texts, tmp_path)
    assert outcome.dropped == {"document-00002"}
    assert outcome.rejected["document-00002"].kept == "document-00001"


def test_tables_of_different_numbers_are_different_documents(tmp_path):
    rng = random.Random(2)
    tables = ["\n".join(f"{rng.random():.4f}, {rng.randint(0, 10**6)}" for _ in range(150)) for _ in range(4)]
    lines = [f"run {n} took {n * 7 % 1000}.{n} seconds and read {n * 13} rows of {n * 17}" for n in range(500)]
    texts = texts_by_id([*tables, *lines, tables[2]])
    assert run_corpus_step(NearDuplicates(), texts, tmp_path / "a").dropped == {"document-00504"}
    alike = run_corpus_step(NearDuplicates(ignore_numbers=True), texts, tmp_path / "b")
    assert len(alike.kept) == 2  # one table and one line


def test_languages_without_spaces_have_n_grams(tmp_path):
    text = (
        "人之初性本善性相近習相遠苟不教性乃遷教之道貴以專昔孟母擇鄰處子不學斷機杼竇燕山有義方教五子名俱揚養不教父之過教不嚴師之惰"
        * 1
    )
    outcome = run_corpus_step(
        NearDuplicates(), texts_by_id([text, text[:-1] + "閒", "完全に別の文章です" * 3]), tmp_path
    )
    assert outcome.dropped == {"document-00001"}


def test_empty_shards_and_no_documents(tmp_path):
    assert (
        run_corpus_step(NearDuplicates(), texts_by_id(["a b c d e f"]), tmp_path / "a", num_shards=3).dropped == set()
    )
    assert run_corpus_step(NearDuplicates(), {}, tmp_path / "b", num_shards=1).kept == {}


def test_a_signature_does_not_depend_on_how_the_text_is_cut_into_blocks():
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2**64, 5000, dtype=np.uint64)
    minhash = MinHash(14, 8)
    naive = (minhash._a.astype(np.uint64) * (values >> np.uint64(32)) + minhash._b) & np.uint64(0xFFFFFFFF)
    np.testing.assert_array_equal(minhash.signature(values), naive.min(axis=1))
