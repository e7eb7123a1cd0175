"""The quality steps are datatrove's filters: the same verdicts as those, with this package's words as with spaCy's."""

import itertools
import random

import pytest
from cleaning_prose import STOP_WORDS, make_document
from cleaning_run import judge
from datatrove.data import Document
from datatrove.pipeline.filters.c4_filters import C4QualityFilter
from datatrove.pipeline.filters.fineweb_quality_filter import FineWebQualityFilter
from datatrove.pipeline.filters.gopher_quality_filter import GopherQualityFilter
from datatrove.pipeline.filters.gopher_repetition_filter import GopherRepetitionFilter
from datatrove.utils.word_tokenizers import load_word_tokenizer

from lit_gpt.data.cleaning.base import Rejected
from lit_gpt.data.cleaning.quality import C4Quality, FineWebQuality, GopherQuality, GopherRepetition
from lit_gpt.data.cleaning.words import split_words, word_tokenizer

STEPS = {
    "gopher_repetition": (GopherRepetition, GopherRepetitionFilter, {}),
    "gopher_quality": (GopherQuality, GopherQualityFilter, {}),
    "c4_quality": (C4Quality, C4QualityFilter, {}),
    "fineweb_quality": (FineWebQuality, FineWebQualityFilter, {"char_duplicates_ratio": 0.1}),
}


def planted(rng):
    """Text of each fault, by the step that is to find it, and the reason that it is to give."""
    good = make_document(rng, 30)
    words = good.split()
    sentence = good.split(".")[0] + "."
    return [
        ("gopher_repetition", "gopher_dup_line_frac", "\n".join([sentence] * 6 + good.split("\n"))),
        ("gopher_repetition", "gopher_dup_para_frac", "\n\n".join([sentence] * 6 + good.split("\n"))),
        ("gopher_repetition", "gopher_top_2_gram", " ".join(f"buy now {word}" for word in words[:60])),
        ("gopher_repetition", "gopher_duplicated_5_n_grams", " ".join(words[:200]) + " " + " ".join(words[30:110])),
        ("gopher_quality", "gopher_short_doc", " ".join(words[:30])),
        ("gopher_quality", "gopher_above_avg_threshold", " ".join("".join(words[i : i + 4]).replace(".", "") for i in range(0, 260, 4))),
        ("gopher_quality", "gopher_below_avg_threshold", " ".join("ab cd"[rng.randint(0, 3) :] for _ in range(200))),
        ("gopher_quality", "gopher_too_many_hashes", " ".join(f"{word} #" if i % 3 == 0 else word for i, word in enumerate(words))),
        ("gopher_quality", "gopher_too_many_bullets", "\n".join(f"- {word} {other}" for word, other in itertools.pairwise(words))),
        ("gopher_quality", "gopher_too_many_end_ellipsis", "\n".join(f"{' '.join(words[i : i + 15])}..." for i in range(0, 300, 15))),
        ("gopher_quality", "gopher_below_alpha_threshold", " ".join(word if i % 3 else "12345" for i, word in enumerate(words))),
        ("gopher_quality", "gopher_enough_stop_words", " ".join(word for word in words if word.lower().strip(".") not in STOP_WORDS)),
        ("c4_quality", "c4_curly_bracket", good + "\nfunction f() { return one two three; }."),
        ("c4_quality", "c4_lorem_ipsum", good + "\nLorem ipsum dolor sit amet."),
        ("c4_quality", "c4_too_few_sentences", "\n".join(words)),
        ("fineweb_quality", "fineweb_line_punct_ratio", "\n".join(" ".join(words[i : i + 9]).replace(".", "") for i in range(0, 300, 9))),
        ("fineweb_quality", "fineweb_short_line_ratio", "\n".join(f"{words[i]} {words[i + 1]}." for i in range(0, 300, 2))),
        ("fineweb_quality", "fineweb_char_dup_ratio", "\n".join(good.split("\n")[:5] * 2)),
        ("fineweb_quality", "fineweb_list_ratio", "\n".join("".join(words[i : i + 8]).replace(".", "") + "." for i in range(0, 240, 8))),
    ]  # fmt: skip


def test_planted_faults_are_found_and_clean_documents_stay(capsys):
    rng = random.Random(0)
    steps = {name: step() for name, (step, _, _) in STEPS.items()}
    cases = [case for _ in range(5) for case in planted(rng)]
    found = 0
    for name, reason, text in cases:
        result = judge(steps[name], text)
        assert isinstance(result, Rejected), (name, reason)
        found += result.reason == reason
        if reason not in (
            "gopher_dup_para_frac",
            "fineweb_list_ratio",
        ):  # an earlier rule of the same filter may speak first
            assert result.reason == reason
        assert result.detail
    clean = [make_document(rng, rng.randint(20, 60)) for _ in range(100)]
    dropped = sum(isinstance(judge(step, text), Rejected) for text in clean for step in steps.values())
    with capsys.disabled():
        print(
            f"\nquality filters: {len(cases)} planted faults, recall 1.000 ({found} by the very rule); {dropped} of {len(clean)} clean documents dropped"
        )
    assert dropped == 0


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("words", ["unicode", "en"])
def test_verdicts_are_datatroves(name, words):
    step_class, filter_class, options = STEPS[name]
    step = step_class(words=words)
    peer = filter_class(language=load_word_tokenizer("en"), **options)
    rng = random.Random(1)
    texts = [text for _, _, text in planted(rng)] + [make_document(rng, rng.randint(1, 40)) for _ in range(20)]
    for text in texts:
        document = Document(text=text, id="0")
        verdict = peer.filter(document)
        kept = verdict if isinstance(verdict, bool) else verdict[0]
        result = judge(step, text)
        assert kept == (not isinstance(result, Rejected)) or not document.text
        if kept and document.text:
            assert result.text == document.text
        elif isinstance(result, Rejected) and words == "en" and not kept:
            assert result.reason.endswith(verdict[1])


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("text", ["", " \n\t", "!", "\u0301", "a", "漢字", "\x00", "😀" * 50])
def test_strange_text_is_judged_and_does_not_fail(name, text):
    judge(STEPS[name][0](), text)


def test_thresholds_are_options():
    rng = random.Random(2)
    text = make_document(rng, 30)
    assert judge(GopherQuality(max_words=100), text).reason == "gopher_long_doc"
    assert judge(GopherQuality(stop_words=["xyzzy"]), text).reason == "gopher_enough_stop_words"
    assert judge(GopherQuality(stop_words=["xyzzy"], min_stop_words=None), text).text == text
    assert judge(GopherRepetition(top_n_grams={1: 0.01}), text).reason == "gopher_top_1_gram"
    assert judge(C4Quality(min_sentences=1000), text).reason == "c4_too_few_sentences"
    assert (
        judge(C4Quality(min_sentences=None, drop_curly_brackets=False), "A short {line} here.").text
        == "A short {line} here."
    )
    assert judge(FineWebQuality(min_punctuated_lines=1.0), text + "\nno stop").reason == "fineweb_line_punct_ratio"


def test_c4_counts_the_lines_that_it_removes():
    step = C4Quality()
    text = make_document(random.Random(3), 30)
    assert judge(step, f"Home\n{text}\nWe use cookies on this page.\nEnable JavaScript to see it all.").text == text
    assert step.counts == {"lines_removed": 3}


def test_words_of_scripts_and_marks():
    assert split_words("It's 3.5 km, naïve Tolstoï!") == ["It's", "3", ".", "5", "km", ",", "naïve", "Tolstoï", "!"]
    assert split_words("हिन्दी में") == ["हिन्दी", "में"]
    assert split_words("漢字 かな") == ["漢", "字", "か", "な"]
    assert split_words("e\u0301te\u0301 don’t") == ["e\u0301te\u0301", "don’t"]
    tokenizer = word_tokenizer("unicode")
    assert tokenizer.sent_tokenize('Mr. Smith came. "Why?" he said... Then 3.5 km!\nNext') == [
        "Mr. Smith came.", '"Why?"', "he said...", "Then 3.5 km!", "Next",
    ]  # fmt: skip
    assert tokenizer.sent_tokenize("これは文です。次の文！") == ["これは文です。", "次の文！"]
