import random

import pytest
from cleaning_prose import VOCABULARY, make_document
from cleaning_run import run_corpus_step, texts_by_id

from lit_gpt.data.cleaning.duplicate_passages import DuplicateSubstrings, cut_words
from lit_gpt.data.cleaning.words import split_words


def naive(texts, n):
    """Each word that lies in a window of n words of which an equal one, not overlapping it, stood before."""
    seen = {}
    removed = {}
    for number, (name, text) in enumerate(texts.items()):
        words = split_words(text)
        gone = set()
        for start in range(len(words) - n + 1):
            window = tuple(words[start : start + n])
            if any(before < number or end <= start for before, end in seen.setdefault(window, [])):
                gone |= set(range(start, start + n))
            seen[window].append((number, start + n))
        removed[name] = gone
    return removed


def words_left(text, gone):
    return [word for place, word in enumerate(split_words(text)) if place not in gone]


def corpus(seed, count=40):
    """Documents with passages of 5 to 60 words copied among them, sometimes twice, sometimes side by side."""
    rng = random.Random(seed)
    passages = [" ".join(rng.choices(VOCABULARY, k=rng.randint(5, 60))) for _ in range(10)]
    texts = []
    for _ in range(count):
        parts = [" ".join(rng.choices(VOCABULARY, k=rng.randint(0, 30))) for _ in range(4)]
        for _ in range(rng.randint(0, 3)):
            parts.insert(rng.randint(0, 4), rng.choice(passages))
        texts.append(rng.choice([" ", "\n", ". "]).join(parts))
    return texts_by_id([*texts, passages[0], "", "ha " * 200, "ha " * 75])


@pytest.mark.parametrize(("n", "num_shards"), [(8, 1), (8, 4), (20, 3), (50, 3)])
def test_agrees_with_a_naive_loop(n, num_shards, tmp_path):
    texts = corpus(n)
    removed = naive(texts, n)
    step = DuplicateSubstrings(min_tokens=n)
    outcome = run_corpus_step(step, texts, tmp_path, num_shards)
    for name, text in texts.items():
        expected = words_left(text, removed[name])
        if name in outcome.rejected:
            assert not expected
        else:
            assert split_words(outcome.kept[name]) == expected
    assert sum(map(len, removed.values())) > 0
    partly = sum(len(gone) for name, gone in removed.items() if name in outcome.kept)
    assert step.counts["words_removed"] == partly


def test_several_passes_find_the_same(tmp_path, monkeypatch):
    texts = corpus(3)
    whole = run_corpus_step(DuplicateSubstrings(8), texts, tmp_path / "a")
    monkeypatch.setattr("lit_gpt.data.cleaning.duplicates.MAX_KEYS_AT_ONCE", 10)
    assert run_corpus_step(DuplicateSubstrings(8), texts, tmp_path / "b").kept == whole.kept


def test_a_planted_passage_is_cut_once_and_clean_text_is_untouched(tmp_path, capsys):
    rng = random.Random(0)
    clean = [make_document(rng) for _ in range(30)]
    licence = " ".join(rng.choices(VOCABULARY, k=80)) + "."
    texts = texts_by_id(
        [
            text if number % 3 else f"{text} before{number}\n\n{licence}\n\nafter{number} {text[::-1]}"
            for number, text in enumerate(clean)
        ]
    )
    outcome = run_corpus_step(DuplicateSubstrings(), texts, tmp_path)
    assert outcome.dropped == set()
    with_licence = [name for name, text in outcome.kept.items() if licence in text]
    assert with_licence == ["document-00000"]
    for name, text in texts.items():
        if name not in with_licence:
            assert outcome.kept[name] == text.replace(licence + "\n\n", "")
    with capsys.disabled():
        print("\nduplicate_substrings: 9 planted copies of an 80-word passage, recall 1.000, precision 1.000")


@pytest.mark.parametrize("text", ["a b c d", "  a\tb\n\nc d  ", "a, b! c? d.", "é\u0301 漢字 ไทย a"])
def test_cut_words_keeps_all_else_as_it_is(text):
    words = split_words(text)
    for start in range(len(words)):
        for end in range(start + 1, len(words) + 1):
            left = cut_words(text, [(start, end)])
            assert split_words(left) == words[:start] + words[end:]
            assert left.startswith(text[: text.index(words[0])])


def test_white_space_does_not_hide_a_copy(tmp_path):
    rng = random.Random(2)
    passage = " ".join(rng.choices(VOCABULARY, k=60))
    texts = texts_by_id([f"start {passage} end", "other " + passage.replace(" ", "\n  ") + " tail"])
    assert run_corpus_step(DuplicateSubstrings(), texts, tmp_path).kept["document-00001"] == "other tail"
