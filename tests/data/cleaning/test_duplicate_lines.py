import random
from collections import Counter

from cleaning_prose import make_document
from cleaning_run import run_corpus_step, texts_by_id

from lit_gpt.data.cleaning.duplicate_passages import DuplicateLines

BOILERPLATE = "All rights reserved by the company that made this page."
RARE = "A line of some length that stands in exactly six documents."
SHORT = "    return None"


def corpus(seed=0, count=40):
    rng = random.Random(seed)
    texts = []
    for number in range(count):
        lines = make_document(rng, 10).split("\n")
        lines += [SHORT, "", SHORT]
        if number % 2:
            lines.insert(rng.randint(0, 2), "  " + BOILERPLATE)
        if number in range(0, 12, 2):
            lines.insert(1, RARE)
        texts.append("\n".join(lines))
    texts.append("\n".join([BOILERPLATE] * 9))
    texts.append("\n".join(["Many times in one document only, so it is no boilerplate."] * 9))
    return texts_by_id(texts)


def naive(texts, max_documents, min_chars):
    counts = Counter(line for text in texts.values() for line in {line.strip() for line in text.split("\n")})
    kept = {}
    for name, text in texts.items():
        lines = [
            line for line in text.split("\n") if len(line.strip()) < min_chars or counts[line.strip()] <= max_documents
        ]
        if "".join(lines).strip():
            kept[name] = "\n".join(lines)
    return kept


def test_agrees_with_a_naive_count(tmp_path, capsys):
    texts = corpus()
    step = DuplicateLines()
    outcome = run_corpus_step(step, texts, tmp_path, num_shards=4)
    assert outcome.kept == naive(texts, 6, 30)
    planted = sum(BOILERPLATE in text for text in texts.values()) - 1
    assert step.counts["lines_removed"] == planted == 20
    assert [why.reason for why in outcome.rejected.values()] == ["duplicate_lines_only"]
    with capsys.disabled():
        print(f"\nduplicate_lines: {planted} planted boilerplate lines, recall 1.000, precision 1.000")


def test_options_and_shards(tmp_path):
    texts = corpus(1)
    for number, (max_documents, min_chars, num_shards) in enumerate([(1, 1, 1), (5, 30, 3), (40, 10, 5)]):
        outcome = run_corpus_step(DuplicateLines(max_documents, min_chars), texts, tmp_path / str(number), num_shards)
        assert outcome.kept == naive(texts, max_documents, min_chars)


def test_nothing_to_remove(tmp_path):
    texts = texts_by_id(["One line that is long enough to be counted.", "", "\n\n"])
    assert run_corpus_step(DuplicateLines(), texts, tmp_path).kept == texts
