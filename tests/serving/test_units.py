"""The pure parts: counting, bounds, tokens as bytes."""

import pytest

from lit_gpt.data.bpe import train_bpe
from lit_gpt.errors import UserError
from lit_gpt.generation.request import SamplingParams, TokenEvent
from lit_gpt.serving.admission import Admission, Limits
from lit_gpt.serving.errors import ApiError, shown
from lit_gpt.serving.metrics import TokenRate
from lit_gpt.serving.middleware import check_json
from lit_gpt.serving.model import TokenText
from lit_gpt.serving.protocol import answer_tokens, for_choice
from lit_gpt.serving.responses import Answer, ShownTokens
from lit_gpt.serving.server import listen


def test_admission_counts_and_gives_back_once():
    door = Admission(running=2, queued=1)
    first = door.enter(2)
    with door.enter(1):
        with pytest.raises(ApiError) as caught:
            door.enter(1)
        assert caught.value.status == 429
        assert caught.value.headers["Retry-After"] == "1"
    assert door.in_flight == 2
    first.release()
    first.release()
    assert door.in_flight == 0
    with pytest.raises(ApiError) as caught:
        door.enter(4)
    assert caught.value.status == 400
    door.draining = True
    with pytest.raises(ApiError) as caught:
        door.enter(1)
    assert caught.value.status == 503


def test_retry_after_follows_the_queue():
    door = Admission(running=4, queued=100)
    door.mean_seconds = 2.0
    waits = []
    for _ in range(26):
        door.enter(4)
        waits.append(door.retry_after())
    assert waits[0] == 2  # one round
    assert waits[5] == 10  # 24 in flight: 20 wait, five rounds of two seconds
    assert waits == sorted(waits)
    door.mean_seconds = 1000
    assert door.retry_after() == 60


@pytest.mark.parametrize(
    "change", [{"body_bytes": 0}, {"queued": -1}, {"request_seconds": 0}, {"choices": float("inf")}]
)
def test_limits_mean_something(change):
    with pytest.raises(UserError, match=f"limits.{next(iter(change))}"):
        Limits(**change)


def test_a_port_is_no_remainder():
    for port in (65_536, 99_999, -1):
        with pytest.raises(UserError, match="port"):
            listen("127.0.0.1", port)


def test_how_long_an_answer_may_be():
    assert answer_tokens(None, None, 10, 100, Limits()) == 90
    assert answer_tokens(None, 16, 10, 100, Limits()) == 16
    assert answer_tokens(None, 16, 95, 100, Limits()) == 5
    assert answer_tokens(None, None, 10, 100, Limits(new_tokens=20)) == 20
    assert answer_tokens(90, None, 10, 100, Limits()) == 90
    for asked, prompt, limits, code in (
        (91, 10, Limits(), "context_length_exceeded"),
        (None, 100, Limits(), "context_length_exceeded"),
        (21, 10, Limits(new_tokens=20), "max_tokens_too_large"),
        (1, 10, Limits(prompt_tokens=9), "prompt_too_long"),
    ):
        with pytest.raises(ApiError) as caught:
            answer_tokens(asked, None, prompt, 100, limits)
        assert caught.value.code == code


def test_each_choice_has_a_seed_of_its_own():
    params = SamplingParams(seed=5)
    assert [for_choice(params, choice).seed for choice in range(3)] == [5, 6, 7]
    assert for_choice(SamplingParams(), 2).seed is None


def test_tokens_as_bytes_join_to_the_text():
    tokenizer = train_bpe(["größer 漢字 🙂 def add(a, b):\n\treturn"] * 3, 300)
    tokens = TokenText(tokenizer)
    text = "größer 漢字 🙂\n\tdef é"
    ids = tokenizer.encode(text).tolist()
    assert b"".join(map(tokens.bytes, ids)).decode() == text
    assert tokens.bytes(tokenizer.separator_id) == b"<|endoftext|>"
    assert tokens.bytes(10**6) == b""


def test_tokens_of_a_stop_string_are_never_told_of():
    tokenizer = train_bpe(["abc"] * 3, 257)  # a token a byte
    shown_tokens = ShownTokens(TokenText(tokenizer))
    ids = dict(zip("abcd", tokenizer.encode("abcd").tolist(), strict=True))
    told = []
    for letter, text, reason in (("a", "a", None), ("b", "", None), ("c", "bc", None), ("d", "", "stop")):
        told += shown_tokens.feed(TokenEvent("r", ids[letter], text, finish_reason=reason))
    assert [event.token_id for event in told] == [ids["a"], ids["b"], ids["c"]]


def test_an_answer_gathers_what_comes():
    answer = Answer()
    first = answer.feed([TokenEvent("r", 1, "a"), TokenEvent("r", 2, "b")])
    last = answer.feed([TokenEvent("r", 3, "", finish_reason="length")])
    assert (first.text, last.finish_reason, answer.whole.text, answer.num_tokens) == ("ab", "length", "ab", 3)


def test_whole_pairs_are_no_halves():
    check_json(b"application/json; charset=utf-8", b'{"a": "\\ud83d\\ude42"}')
    with pytest.raises(ApiError) as caught:
        check_json(b"application/json", b'{"a": {"\\ud83d": 1}}')
    assert caught.value.code == "invalid_json"


def test_tokens_per_second_forgets():
    now = [100.0]
    rate = TokenRate(10, lambda: now[0])
    rate.add(30)
    now[0] = 105
    rate.add(20)
    assert rate.value() == 5
    now[0] = 112
    assert rate.value() == 2
    now[0] = 200
    assert rate.value() == 0


def test_what_is_shown_back_is_cut():
    assert shown("a") == "'a'"
    assert len(shown("x" * 10**6)) < 130
