"""What holds for every step: its options are documented, it travels to a worker, and no text makes it fail or crawl."""

import importlib
import inspect
import pickle
import re
import time

import pytest
from cleaning_run import judge, run_corpus_step, texts_by_id

from lit_gpt.data.cleaning import TRANSFORMS, CorpusTransform, Doc, Rejected, Transform

OPTIONS = {
    "lines": {"max_chars": 1000, "min_words": 1, "max_uppercase": 0.9, "max_digits": 0.9, "containing": ["cookies"]},
    "length": {"min_chars": 1, "min_words": 1},
    "predicate": {"class_path": "cleaning_run.keep_all"},
}
HOSTILE = ["", " ", "\n\n", "\x00\x01", "\ufeff", "\u0301" * 50, "a\u200d\u202eb", "😀👨‍👩‍👧", "漢字" * 40, "ﷺ" * 40, "\U0010ffff", "\u2028\u2029\x85",
           "Z\u0351\u036b\u0343" * 30, "İıſßﬁ" * 20, "\x1b[31mred", "A" * 5000, "\r\n" * 50, "\ufffd" * 10, "1" * 5000]  # fmt: skip


def make(name, tmp_path):
    module, _, class_name = TRANSFORMS[name].rpartition(".")
    options = dict(OPTIONS.get(name, {}))
    if name == "decontaminate":
        path = tmp_path / "benchmark.txt"
        path.write_text("which of the following nine words is the one that stands at the end of this question")
        options["benchmarks"] = [str(path)]
    return getattr(importlib.import_module(module), class_name)(**options)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_options_are_documented_and_typed(name, tmp_path):
    step_class = type(make(name, tmp_path))
    assert step_class.name == name
    documented = set(re.findall(r"^        (\w+): ", inspect.getdoc(step_class).replace("\n    ", "\n        "), re.M))
    parameters = inspect.signature(step_class).parameters
    assert set(parameters) <= documented
    assert all(parameter.annotation is not inspect.Parameter.empty for parameter in parameters.values())


@pytest.mark.parametrize("name", TRANSFORMS)
def test_keeps_the_contract(name, tmp_path):
    step = make(name, tmp_path)
    assert isinstance(step, Transform)
    again = pickle.loads(pickle.dumps(step))
    if not isinstance(step, CorpusTransform):
        for text in HOSTILE:
            judge(step, text)
        again = pickle.loads(pickle.dumps(step))  # also after use
        assert [judge(again, text) for text in HOSTILE] == [judge(step, text) for text in HOSTILE]


@pytest.mark.parametrize("name", TRANSFORMS)
def test_hostile_text_is_judged_the_same_each_time(name, tmp_path):
    step = make(name, tmp_path)
    if not isinstance(step, CorpusTransform):
        first = [judge(step, text) for text in HOSTILE]
        assert first == [judge(make(name, tmp_path), text) for text in HOSTILE]
        assert all(isinstance(result, Doc | Rejected) for result in first)
    else:
        texts = texts_by_id(HOSTILE)
        one = run_corpus_step(step, texts, tmp_path / "a", 1)
        three = run_corpus_step(make(name, tmp_path), texts, tmp_path / "b", 3)
        assert (one.kept, one.rejected) == (three.kept, three.rejected)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_line_of_fifty_megabytes_passes_in_seconds(name, tmp_path, capsys):
    step = make(name, tmp_path)
    sentence = "Some ordinary words, number 1234.5 of them, with ada@lovelace.org and naïve cafés in between; "
    text = sentence * (50_000_000 // len(sentence))
    start = time.process_time()
    if not isinstance(step, CorpusTransform):
        judge(step, text)
    else:
        run_corpus_step(step, {"long": text, "short": sentence}, tmp_path / "a", 2)
    seconds = time.process_time() - start
    with capsys.disabled():
        print(f"\n{name}: a line of 50 MB in {seconds:.1f} s of CPU")
    assert seconds < 60
