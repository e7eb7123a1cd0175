import gzip
import json
import pickle
import random

import pyarrow
import pyarrow.parquet
import pytest
from cleaning_prose import VOCABULARY, make_document, make_sentence
from cleaning_run import judge

from lit_gpt.data.cleaning.base import Doc, Rejected
from lit_gpt.data.cleaning.decontaminate import Decontaminate
from lit_gpt.data.cleaning.words import match_words
from lit_gpt.data.records.benchmarks import read_benchmark
from lit_gpt.errors import UserError


def sentence(rng, words):
    return " ".join(rng.choices(VOCABULARY, k=words)).capitalize() + "?"


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def naive_contaminated(text, entries, n=13, least=8):
    """By the definition, with sets of tuples: records with a common run of n words, or of all words of a short entry."""
    words = match_words(text)
    found = set()
    for record, entry in entries:
        own = match_words(entry)
        length = min(n, len(own))
        if length < least:
            continue
        runs = {tuple(own[i : i + length]) for i in range(len(own) - length + 1)}
        if any(tuple(words[i : i + length]) in runs for i in range(len(words) - length + 1)):
            found.add(record)
    return found


def test_agrees_with_a_naive_set_loop(tmp_path, capsys):
    rng = random.Random(0)
    questions = [
        {"question": sentence(rng, rng.randint(4, 40)), "choices": [sentence(rng, 3), sentence(rng, 15)]}
        for _ in range(80)
    ]
    path = write_jsonl(tmp_path / "bench.jsonl", questions)
    entries = [(number, text) for number, row in enumerate(questions, 1) for text in (row["question"], *row["choices"])]
    step = Decontaminate(benchmarks=[path])
    planted = correct = 0
    for number in range(300):
        text = make_document(rng, 8)
        if number % 3 == 0:
            words = rng.choice(entries)[1].split(" ")
            start = rng.randint(0, max(0, len(words) - 13))
            piece = " ".join(words[start : start + rng.choice([12, 13, 14, 40])])
            text = text[:200] + " " + piece.upper() + " " + text[200:]
        expected = naive_contaminated(text, entries)
        result = judge(step, text)
        found = (
            {int(part.split(":")[1].split(" ")[0]) for part in result.detail.split("; ")}
            if isinstance(result, Rejected)
            else set()
        )
        assert found == expected
        planted += bool(expected)
        correct += bool(expected) and isinstance(result, Rejected)
    with capsys.disabled():
        print(
            f"\ndecontaminate: {planted} contaminated of 300 documents by a naive set loop, recall {correct / planted:.3f}, precision 1.000"
        )
    assert planted > 40


def test_what_matched_is_listed(tmp_path):
    rng = random.Random(1)
    one, two = sentence(rng, 20), sentence(rng, 16)
    a = write_jsonl(tmp_path / "first.jsonl", [{"q": sentence(rng, 20)}, {"q": one}])
    b = write_jsonl(tmp_path / "second.jsonl", [{"q": two}])
    result = judge(Decontaminate(benchmarks=[a, b]), f"{make_document(rng, 3)} {two} {make_document(rng, 3)} {one}")
    assert result.reason == "contaminated"
    assert result.detail == (
        f"second.jsonl:1 (4x): {' '.join(match_words(two)[:13])}; first.jsonl:2 (8x): {' '.join(match_words(one)[:13])}"
    )


def test_short_texts_need_all_their_words_and_shorter_ones_say_nothing(tmp_path):
    rng = random.Random(2)
    ten, five, long = sentence(rng, 10), sentence(rng, 5), sentence(rng, 20)
    step = Decontaminate(benchmarks=[write_jsonl(tmp_path / "b.jsonl", [{"q": ten, "a": five}, {"q": long}])])
    assert isinstance(judge(step, f"so {ten} then"), Rejected)
    assert isinstance(judge(step, " ".join(ten.split()[:9])), Doc)
    assert isinstance(judge(step, f"so {five} then"), Doc)
    assert isinstance(judge(step, " ".join(long.split()[:12])), Doc)
    assert isinstance(judge(step, " ".join(long.split()[3:16])), Rejected)


def test_instructions_that_every_record_repeats_are_no_contamination(tmp_path):
    rng = random.Random(3)
    instruction = "Read the following passage and answer the question below with one of the four choices given."
    rows = [{"q": f"{instruction} {sentence(rng, 20)}"} for _ in range(60)]
    step = Decontaminate(benchmarks=[write_jsonl(tmp_path / "b.jsonl", rows)])
    assert isinstance(judge(step, f"Teachers write: {instruction} It is common."), Doc)
    assert isinstance(judge(step, rows[7]["q"]), Rejected)
    assert isinstance(judge(Decontaminate(benchmarks=step.benchmarks, max_records=60), instruction), Rejected)


def test_every_format_gives_the_same_texts(tmp_path):
    rng = random.Random(4)
    rows = [{"question": make_sentence(rng, 15), "answer": make_sentence(rng, 9)} for _ in range(5)]
    expected = [(number, row[field]) for number, row in enumerate(rows, 1) for field in ("question", "answer")]
    write_jsonl(tmp_path / "a.jsonl", rows)
    write_jsonl(tmp_path / "lines.json", rows)
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "b.json").write_text(json.dumps({"version": 1, "data": rows}))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    (tmp_path / "a.csv").write_text("question,answer\n" + "".join(f"{r['question']},{r['answer']}\n" for r in rows))
    (tmp_path / "a.tsv").write_text("question\tanswer\n" + "".join(f"{r['question']}\t{r['answer']}\n" for r in rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    for name in ("a.jsonl", "lines.json", "a.json", "b.json", "a.jsonl.gz", "a.csv", "a.tsv", "a.parquet"):
        header = name.endswith((".csv", ".tsv"))  # its line counts
        assert list(read_benchmark(tmp_path / name)) == [(line + header, text) for line, text in expected], name
    (tmp_path / "a.txt").write_text("First paragraph.\n\n\n\nSecond\nparagraph.\n")
    assert [text.strip() for _, text in read_benchmark(tmp_path / "a.txt")] == [
        "First paragraph.",
        "Second\nparagraph.",
    ]
    assert list(read_benchmark(tmp_path / "a.jsonl", ["answer"])) == [(n, r["answer"]) for n, r in enumerate(rows, 1)]
    (tmp_path / "nested.json").write_text(json.dumps([{"a": [{"b": "deep text"}], "n": 3, "x": None}]))
    assert list(read_benchmark(tmp_path / "nested.json")) == [(1, "deep text")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("bad.json", b"{", "is not JSON"),
        ("bad.jsonl", b'{"a": 1}\n{', "the line is not JSON"),
        ("long_number.json", b"[" + b"9" * 5000 + b"]", "is not JSON"),
        ("long_number.jsonl", b"[" + b"9" * 5000 + b"]", "the line is not JSON"),
        ("bad.txt", b"\xff\xfe\x00", "is not valid UTF"),
        ("bad.jsonl.gz", gzip.compress(b'{"a": "b"}' * 500, mtime=0)[:-9], "compressed data are damaged"),
        ("bad.parquet", b"PAR1", "is not a readable Parquet file"),
        ("empty.jsonl", b"", "no text"),
        ("short.jsonl", b'{"a": "too short"}', "has no text of 8 words or more"),
    ],
)
def test_a_benchmark_that_cannot_be_read_is_an_error(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        judge(Decontaminate(benchmarks=[str(tmp_path / name)]), "some text")


def test_wrong_options(tmp_path):
    with pytest.raises(UserError, match="there is no benchmark file"):
        Decontaminate(benchmarks=[str(tmp_path / "none.jsonl")])
    with pytest.raises(UserError, match="benchmarks is empty"):
        Decontaminate(benchmarks=[])
    with pytest.raises(UserError, match=r"decontaminate: benchmarks is .*\[a.jsonl\]"):
        Decontaminate(benchmarks="a.jsonl")
    path = write_jsonl(tmp_path / "a.jsonl", [{"question": "what?"}])
    with pytest.raises(UserError, match=r"contains no text in answer; its fields are question"):
        judge(Decontaminate(benchmarks=[path], fields=["answer"]), "some text")


def test_names_tell_files_apart_and_a_changed_file_is_read_again(tmp_path):
    rng = random.Random(5)
    first, second = sentence(rng, 20), sentence(rng, 20)
    for folder, text in (("one", first), ("two", second)):
        (tmp_path / folder).mkdir()
        write_jsonl(tmp_path / folder / "test.jsonl", [{"q": text}])
    paths = [str(tmp_path / folder / "test.jsonl") for folder in ("one", "two")]
    step = Decontaminate(benchmarks=paths)
    assert judge(step, second).detail.startswith("two/test.jsonl:1")
    again = pickle.loads(pickle.dumps(step))
    assert judge(again, second) == judge(step, second)
    third = sentence(rng, 25)
    write_jsonl(tmp_path / "one" / "test.jsonl", [{"q": third}])
    assert isinstance(judge(Decontaminate(benchmarks=paths), third), Rejected)
    assert isinstance(judge(Decontaminate(benchmarks=paths), first), Doc)


def test_a_json_file_of_one_object_is_one_record_with_all_its_fields(tmp_path):
    path = tmp_path / "one.json"
    record = {
        "question": "which of these many words is the very last one",
        "choices": ["the first of them all", "the second"],
        "answer": "it is of course the word that ends this line",
    }
    path.write_text(json.dumps(record))
    step = Decontaminate(benchmarks=[str(path)])
    for text in (record["question"], record["answer"]):
        assert judge(step, f"Before. {text} After.").reason == "contaminated"
