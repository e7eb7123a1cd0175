"""Guards alone: a stream is changed as the whole text would be, whatever pieces it comes in."""

import random

import pytest

from lit_gpt.data.cleaning.base import Doc
from lit_gpt.data.cleaning.pii import PII
from lit_gpt.errors import UserError
from lit_gpt.serving.guards import BlockListGuard, ClassifierGuard, Guard, PIIGuard, load_guards

KEY = (
    "-----BEGIN RSA PRIVATE KEY-----\n" + "MIIEpAIBAAKCAQEA7bq0n1rX2yZ9k3vJ5uW8\n" * 4 + "-----END RSA PRIVATE KEY-----"
)
PIECES = [
    "Write to ada@lovelace.org",
    "call +44 20 7946 0958 or",
    "Tel. 020 7946 0958",
    "(212) 555-0143 is",
    "card 4111 1111 1111 1111,",
    "GB82 WEST 1234 5698 7654 32",
    "8.8.123.200",
    "version 1.2.3.4 of",
    "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30",
    KEY,
    "-----BEGIN CERTIFICATE-----\nabc\n",
    'api_key = "q7Zx93bTfL0aYwPk2mVn8sRd"',
    "ghp_16C7e42F292c6912E7710c838347Ae178B4a",
    "USE IT NOW (see 3)",
    "a sentence of plain words, and no more.",
    "größer 漢字 🙂",
    "x" * 300,
]


def texts(number, seed=0):
    draw = random.Random(seed)
    for _ in range(number):
        yield draw.choice(["", " ", "\n"]).join(
            draw.choice([" ", "\n", "", ". "]) + draw.choice(PIECES) for _ in range(draw.randint(1, 8))
        )


def streamed(guard, text, draw, action="redact"):
    looking, out, at = guard.text_guard(action), [], 0
    while at < len(text):
        size = draw.choice([1, 2, 3, 7, 30, 400])
        out.append(looking.feed(text[at : at + size]))
        at += size
    out.append(looking.feed("", last=True))
    return out


def test_streams_lose_the_personal_data_that_whole_texts_lose():
    draw, guard = random.Random(1), PIIGuard()
    found = 0
    for text in texts(400):
        document = Doc(text, "t", {})
        expected = PII().apply(document).text  # what `prepare` makes of it
        passed = streamed(guard, text, draw)
        assert "".join(one.text for one in passed) == expected, text
        found += sum(one.redacted for one in passed)
    assert found > 400


def test_plain_words_are_not_held_back():
    looking = PIIGuard().text_guard("redact")
    assert looking.feed("The cat sat on the ").text == "The cat sat on the "
    assert looking.feed("mat").text == ""
    assert looking.feed(" and").text == "mat "
    # An endless row of numbers goes on too: no finding is that long.
    passed = "".join(looking.feed(f" {number}").text for number in range(200))
    assert len(passed) > 400


def test_a_stopped_text_passes_what_stands_before_and_nothing_after():
    looking = PIIGuard(output="block").text_guard("block")
    passed = [looking.feed(piece) for piece in ("My mail is ad", "a@lovel", "ace.org", " and ", "more")]
    assert "".join(one.text for one in passed) == "My mail is "
    assert passed[-1].blocked
    assert not looking.feed("harmless", last=True).text


TERMS = BlockListGuard(terms=["bad word", "bad", "Tannhäuser", "c++"], patterns=[r"proj-\d{3,6}"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a BAD  Word here", "a <REMOVED> here"),
        ("badly done, not bad", "badly done, not <REMOVED>"),
        ("TANNHÄUSER!", "<REMOVED>!"),
        ("in c++ and c+", "in <REMOVED> and c+"),
        ("proj-12 proj-1234 proj-1234567", "proj-12 <REMOVED> <REMOVED>7"),
    ],
)
def test_listed_words_go_whole_or_in_pieces(text, expected):
    for seed in range(20):
        out = streamed(TERMS, text, random.Random(seed))
        assert "".join(one.text for one in out) == expected
    assert streamed(TERMS, text, random.Random(0), "block")[-1].blocked


def test_a_pattern_that_takes_for_ever_is_an_error(monkeypatch):
    monkeypatch.setattr("lit_gpt.serving.guards.detectors.PATTERN_SECONDS", 0.05)
    guard = BlockListGuard(patterns=["(?:a|aa)+[bc]{2}"])
    with pytest.raises(TimeoutError):
        guard.text_guard("block").feed("a" * 60 + "!bc", last=True)


class Rude:
    """Counts exclamation marks."""

    def __init__(self, each=1.0):
        self.each, self.seen = each, []

    def __call__(self, text):
        self.seen.append(text)
        return self.each * text.count("!")


def test_nothing_passes_that_the_classifier_has_not_seen(monkeypatch):
    monkeypatch.setattr("lit_gpt.serving.guards.detectors.import_object", lambda path, what: Rude)
    guard = ClassifierGuard("x.Rude", {"each": 0.5}, threshold=1.0, every_characters=10)
    looking = guard.text_guard("block")
    assert [looking.feed(piece).text for piece in ("hello", " you!", " and so")] == ["", "hello you!", ""]
    last = looking.feed(" on!", last=True)
    assert (last.text, last.blocked) == ("", True)
    assert guard._classifier.seen == ["hello you!", "hello you! and so on!"]


class Upper(Guard):
    """A user's own guard."""

    name = "upper"

    def text_guard(self, action):
        raise NotImplementedError


def test_a_file_names_guards(tmp_path):
    (tmp_path / "words.txt").write_text("# a comment\nsecret plan\n\n")
    file = tmp_path / "guards.yaml"
    file.write_text(
        f"guards:\n  - PIIGuard\n  - class_path: BlockListGuard\n    init_args: {{file: {tmp_path}/words.txt, input: pass}}\n"
        f"  - class_path: {__name__}.Upper\n"
    )
    names = [(guard.name, guard.actions) for guard in load_guards(file)]
    assert names == [
        ("pii", {"input": "redact", "output": "redact"}),
        ("block_list", {"input": "pass", "output": "block"}),
        ("upper", {"input": "block", "output": "block"}),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("guards: []", "guards"),
        ("guard: 3", "guards"),
        ("guards: [{class_path: PiiGuard}]", "PIIGuard"),
        ("guards: [{class_path: PIIGuard, init_args: {kind: [emails]}}]", "kinds"),
        ("guards: [{class_path: PIIGuard, init_args: {kinds: [email]}}]", "emails"),
        ("guards: [{class_path: PIIGuard, init_args: {input: drop}}]", "input.*redact"),
        ("guards: [{class_path: PIIGuard, init_args: {input: pass, output: pass}}]", "input"),
        ("guards: [BlockListGuard]", "terms.*patterns"),
        ("guards: [{class_path: BlockListGuard, init_args: {file: /nowhere}}]", "/nowhere"),
        ("guards: [{class_path: BlockListGuard, init_args: {patterns: ['(']}}]", r"'\('"),
        ("guards: [{class_path: BlockListGuard, init_args: {patterns: ['x*']}}]", r"'x\*'"),
        ("guards: [{class_path: ClassifierGuard, init_args: {class_path: os.Nothing}}]", "Nothing"),
        ("guards: [{class_path: os.PathLike}]", "os.PathLike"),
        ("guards: {", "YAML"),
    ],
)
def test_mistakes_in_the_file_are_named(tmp_path, content, message):
    file = tmp_path / "guards.yaml"
    file.write_text(content)
    with pytest.raises(UserError, match=message):
        load_guards(file)
