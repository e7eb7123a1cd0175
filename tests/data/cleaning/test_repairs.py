import random
import unicodedata

import pytest
from cleaning_prose import make_document
from cleaning_run import judge
from datatrove.pipeline.formatters.ftfy import FTFYFormatter

from lit_gpt.data.cleaning.repair import FORMS, FixEncoding, Normalize, normalize, repair
from lit_gpt.errors import UserError

SENTENCES = [
    "Der Fluß fließt über die Brücke, schön!",
    "Où est l’élève à Noël ? « Ici », répondit-il.",
    "El niño comió una piña en España.",
    "Zażółć gęślą jaźń",
    "Привет, мир — как дела?",
]


def test_mojibake_is_repaired_and_clean_text_is_not_touched(capsys):
    rng = random.Random(0)
    found = touched = 0
    documents = []
    for number in range(60):
        text = make_document(rng, 6) + "\n" + SENTENCES[number % len(SENTENCES)]
        documents.append(text)
        broken = (
            text.encode().decode(["latin-1", "cp1252"][number % 2], errors="ignore")
            if number % len(SENTENCES) in (0, 2)
            else None
        )
        if broken is not None:
            found += repair(broken) == text
        touched += repair(text) != text
    planted = sum(number % len(SENTENCES) in (0, 2) for number in range(60))
    with capsys.disabled():
        print(
            f"\nfix_encoding: {planted} broken documents, recall {found / planted:.3f}; {touched} of {len(documents)} clean ones changed"
        )
    assert found == planted
    assert touched == 0


@pytest.mark.parametrize(
    "text",
    [
        *SENTENCES,
        "schÃ¶n â€œquotedâ€\x9d &lt;\nœ\nÃ\x80 x",
        "a\x00b\x1b[31mred\x07\n\ufefftext",
        "naïve\ncafÃ©\nplain",
        "ﬁ ＡＢＣ “x” \r\n \x0c y",
        "\x85\x80€",
        "",
    ],
)
def test_agrees_with_datatroves_formatter(text):
    assert repair(text) == FTFYFormatter(unescape_html=False).format(text)


def test_options_and_counts():
    step = FixEncoding()
    assert judge(step, "schÃ¶n").text == "schön"
    assert judge(step, "schön &amp; gut").text == "schön &amp; gut"
    assert step.counts == {"repaired": 1}
    assert judge(FixEncoding(unescape_html=True), "schön &amp; gut").text == "schön & gut"
    assert judge(FixEncoding(unescape_html=True), "<p> &amp;").text == "<p> &amp;"
    assert judge(FixEncoding(remove_control_chars=False), "a\x07").text == "a\x07"


def test_normalization_is_the_standards_also_for_runs_of_marks():
    rng = random.Random(0)
    marks = [chr(code) for code in range(0x110000) if unicodedata.combining(chr(code))]
    for _ in range(60):
        text = "".join(rng.choice(["a", "é", "각", "ﬁ", "\u0344", "①", *rng.choices(marks, k=80)]) for _ in range(400))
        for form in FORMS:
            assert normalize(text, form) == unicodedata.normalize(form, text)


def test_a_million_marks_take_no_hours():
    hostile = "a" + "\u0301\u0316" * 300_000  # CPython's own sort of them is quadratic
    result = normalize(hostile)
    assert unicodedata.normalize("NFC", result[:100]) == result[:100]
    assert len(result) == len(hostile) - 1  # á is one character


def test_normalize_step():
    step = Normalize()
    assert judge(step, "e\u0301 ﬁ").text == "é ﬁ"
    assert judge(step, "é ﬁ").text == "é ﬁ"
    assert step.counts == {"normalized": 1}
    assert judge(Normalize(form="NFKC"), "e\u0301 ﬁ").text == "é fi"
    with pytest.raises(UserError, match="form is 'nfc'.*NFC, NFD, NFKC, NFKD"):
        Normalize(form="nfc")
