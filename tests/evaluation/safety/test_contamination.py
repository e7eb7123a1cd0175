"""Benchmarks pasted into training text are found, whole or in part, and a naive search agrees."""

import json
import random

import pytest

from lit_gpt.data.cleaning.words import match_words
from lit_gpt.data.records.benchmarks import read_benchmark
from lit_gpt.errors import UserError
from lit_gpt.evaluation.result import Result, Score
from lit_gpt.evaluation.safety.contamination import Benchmark, Contamination, Overlap, read_records, records_of
from lit_gpt.evaluation.safety.rows import embedded_set
from lit_gpt.evaluation.texts import Texts

WORDS = [f"word{n}" for n in range(300)]


def questions(count, seed, num_words=20):
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=num_words)) for _ in range(count)]


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def pasted(tmp_path):
    """Thirty items; the text has ten of them whole, one half of each of five more, and the rest not at all."""
    items = questions(30, 1)
    draw = random.Random(2)
    texts = questions(40, 3, 100)
    for number in range(10):
        words = texts[number].split()
        words.insert(draw.randrange(100), items[number].upper().replace(" ", ", ") + "!")
        texts[number] = " ".join(words)
    for number in range(10, 15):
        texts[number] += " " + " ".join(items[number].split()[:14]) + " and so on"
    benchmark = write_rows(tmp_path / "quiz.jsonl", [{"question": item} for item in items])
    return (
        Texts(files=write_rows(tmp_path / "training.jsonl", [{"text": text} for text in texts])),
        benchmark,
        items,
        texts,
    )


def test_pasted_items_are_found_and_no_others(pasted):
    training, file, items, _ = pasted
    (result,) = Contamination([Benchmark(file)], training).run(None)
    assert result.name == "contamination_quiz"
    assert result.score("contaminated").value == 0.5
    assert result.score("dirty").value == pytest.approx(10 / 30)
    assert result.score("covered").value == pytest.approx((10 + 5 * 14 / 20) / 30)
    hits = {item for item, hit in result.score("contaminated").per_item.items() if hit}
    assert hits == {str(number) for number in range(1, 16)}
    assert result.score("contaminated").interval.low > 0.3
    assert result.examples[0].fields["found"] == items[int(result.examples[0].item) - 1]
    assert "training.jsonl:" in result.examples[0].title


def test_the_overlap_is_that_of_a_naive_search(tmp_path):
    """Words of a small vocabulary, so that runs overlap in all sorts of ways; runs of 3."""
    draw = random.Random(7)
    small = [f"w{n}" for n in range(9)]
    items = [
        [" ".join(draw.choices(small, k=draw.randint(1, 12))) for _ in range(draw.randint(1, 3))] for _ in range(60)
    ]
    texts = [" ".join(draw.choices(small, k=30)) for _ in range(6)]
    path = tmp_path / "b.jsonl"
    write_rows(path, [{"parts": item} for item in items])
    records = read_records(path, None, n_gram=3, min_words=2)
    overlap = Overlap([records], n_gram=3, max_records=10**9)
    for text in texts:
        overlap.search(text, "here")
    found = {record.number: record for record in overlap.found(0)}
    for number, parts in enumerate(items, start=1):
        covered = total = 0
        for part in parts:
            words = match_words(part)
            if len(words) < 2:
                continue
            total += len(words)
            length = min(3, len(words))
            inside = set()
            for at in range(len(words) - length + 1):
                run = words[at : at + length]
                if any(run == match_words(text)[k : k + length] for text in texts for k in range(30 - length + 1)):
                    inside |= set(range(at, at + length))
            covered += len(inside)
        assert (found[number].num_words, found[number].num_covered) == (total, covered)


def test_instructions_that_all_items_share_are_no_contamination(tmp_path):
    instruction = "answer the following question with one of the letters a b c or d as you see fit"
    items = [f"{instruction} {question}" for question in questions(12, 5)]
    file = write_rows(tmp_path / "b.jsonl", [{"q": item} for item in items])
    training = Texts(files=write_rows(tmp_path / "t.jsonl", [{"text": f"so {instruction} he said"}]))
    (strict,) = Contamination([Benchmark(file)], training).run(None)
    (lenient,) = Contamination([Benchmark(file)], training, max_records=5).run(None)
    assert strict.score("contaminated").value == 1
    assert lenient.score("contaminated").value == 0


def scored(name, values):
    mean = sum(values.values()) / len(values)
    return Result(name, name, "d", "s", (Score("accuracy", mean, len(values), None, "share", "higher", values),))


@pytest.mark.parametrize("ids", ["{n}", "quiz.jsonl:{line}", "Quiz/{n}"])
def test_scores_are_told_again_without_the_contaminated_items(pasted, ids):
    """The model is right on contaminated items alone."""
    training, file, items, _ = pasted
    measure = Contamination([Benchmark(file, result="quiz")], training)
    values = {ids.format(n=n, line=n + 1): float(n < 15) for n in range(30)}
    own = measure.run(None)
    (result,) = measure.finish(own, [scored("other", {"0": 1.0}), scored("quiz", values)])
    assert result.score("accuracy_on_clean").value == 0
    assert result.score("accuracy_on_clean").count == 15
    assert result.score("accuracy_on_contaminated").value == 1
    assert result.scores[0] == own[0].scores[0]


def test_what_cannot_be_told_again_is_noted(pasted):
    training, file, *_ = pasted
    measure = Contamination([Benchmark(file, result="quiz")], training)
    own = measure.run(None)
    assert "There is no result quiz" in measure.finish(own, [])[0].notes[-1]
    assert "cannot be matched" in measure.finish(own, [scored("quiz", {"a": 1.0, "b": 0.0})])[0].notes[-1]


def test_lines_of_a_csv_count_its_header(tmp_path):
    file = tmp_path / "b.csv"
    file.write_text("q\n" + "\n".join(questions(3, 1)) + "\n")
    assert records_of(["b.csv:2", "b.csv:4"], file) == {"b.csv:2": "2", "b.csv:4": "4"}
    assert records_of(["0", "2"], file) == {"0": "2", "2": "4"}


def test_bad_settings(pasted, tmp_path):
    training, file, *_ = pasted
    with pytest.raises(UserError, match="benchmarks is empty"):
        Contamination([], training)
    with pytest.raises(UserError, match="the same name"):
        Contamination([Benchmark(file), Benchmark(file)], training)
    with pytest.raises(UserError, match="there is no benchmark file"):
        Contamination([Benchmark("none.jsonl")], training).run(None)
    with pytest.raises(UserError, match=r"its fields are question"):
        Contamination([Benchmark(file, fields=["ask"])], training).run(None)
    short = write_rows(tmp_path / "short.jsonl", [{"q": "too short"}])
    with pytest.raises(UserError, match="no text of 8 words or more"):
        Contamination([Benchmark(short)], training).run(None)


def test_a_plan_tells_the_scores_of_its_other_measures_again(tmp_path):
    """Through the YAML's form, with a set that comes along, two of whose items are pasted into the training text."""
    from overfitting import innocent

    from lit_gpt.evaluation.plan import make_plan, run_plan

    lines = embedded_set("truths.jsonl").read_text().splitlines()
    asked = [text for _, text in read_benchmark(embedded_set("truths.jsonl"), ["question"])]
    chosen = [at for at, text in enumerate(asked) if len(match_words(text)) >= 8][:2]
    assert len(asked) == len(lines)
    training = write_rows(tmp_path / "training.jsonl", [{"text": f"he asked {asked[at]} and went"} for at in chosen])
    benchmark = {"embedded": "truths.jsonl", "fields": ["question"], "result": "truthfulqa", "name": "truths"}
    options = {"training": {"files": training}, "benchmarks": [benchmark]}
    plan = make_plan(
        {"measures": [{"class_path": "Contamination", "init_args": options}, {"class_path": "TruthfulQA"}]}, "plan"
    )
    outcome = run_plan(plan, innocent())
    assert outcome.failures == ()
    found, truthful = outcome.results
    assert {item for item, hit in found.score("contaminated").per_item.items() if hit} == {str(at + 1) for at in chosen}
    clean, part = found.score("mc1_on_clean"), found.score("mc1_on_contaminated")
    assert (clean.count, part.count) == (len(asked) - 2, 2)
    assert set(part.per_item) == {f"truths.jsonl:{at + 1}" for at in chosen}
    whole = truthful.score("mc1")
    assert clean.value * clean.count + part.value * part.count == pytest.approx(whole.value * whole.count)
