"""Requests that are made to hold up everybody else: what each may cost is bounded."""

import json
import threading
import time

import pytest
from pydantic import ValidationError

from lit_gpt.serving.admission import Limits
from lit_gpt.serving.guards import BlockListGuard, PIIGuard
from lit_gpt.serving.protocol import ChatRequest, CompletionRequest, EmbeddingRequest

CHAT = {"model": "fake", "messages": [{"role": "user", "content": "Hi"}]}
WAIT = 20


def ok(prompt, params):
    return "fine"


@pytest.mark.parametrize("item", [None, 1.5, [-1], [], {}, [None]])
@pytest.mark.parametrize(("kind", "field"), [(CompletionRequest, "prompt"), (EmbeddingRequest, "input")])
def test_many_wrong_items_are_few_errors(kind, field, item):
    with pytest.raises(ValidationError) as caught:
        kind.model_validate({"model": "m", field: [item] * 10_000})
    assert caught.value.error_count() < 10


@pytest.mark.parametrize("field", ["logit_bias", "metadata", "x"])
def test_many_wrong_fields_are_few_errors(field):
    fields = {f"x{number}": None for number in range(10_000)}
    with pytest.raises(ValidationError) as caught:
        ChatRequest.model_validate({**CHAT, **(fields if field == "x" else {field: fields})})
    assert caught.value.error_count() < 10


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"model": "fake", "prompt": "a" * 1_500_000}),
        ("/v1/chat/completions", CHAT | {"messages": [{"role": "user", "content": "a" * 1_500_000}]}),
    ],
)
def test_what_is_far_too_long_is_not_tokenised(serve, monkeypatch, path, body):
    with serve(ok, guards=[PIIGuard()]) as server:
        served = server.service.served
        for name in ("text_ids", "chat_ids"):
            monkeypatch.setattr(type(served), name, lambda *_: pytest.fail("it was read"))
        monkeypatch.setattr(server.service.guard_chain, "request", lambda *_: pytest.fail("it was looked at"))
        status, answer = server.post(path, body)
        assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")


def test_a_text_to_embed_that_is_far_too_long_is_not_tokenised(real, monkeypatch):
    monkeypatch.setattr(type(real.service.served), "text_ids", lambda *_: pytest.fail("it was read"))
    status, answer = real.post("/v1/embeddings", {"model": "small", "input": "a" * 1_500_000})
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")


def test_forms_that_take_long_hold_up_only_forms(serve):
    building, go_on = threading.Semaphore(0), threading.Event()
    form = CHAT | {"response_format": {"type": "regex", "regex": "a"}}

    def check(prompt_ids, params):
        if params.constraint is not None:
            building.release()
            assert go_on.wait(WAIT)

    with serve(ok, limits=Limits(request_seconds=WAIT), max_batch_size=64) as server:
        server.engine.check = check
        asking = [threading.Thread(target=server.post, args=("/v1/chat/completions", form)) for _ in range(50)]
        for thread in asking:
            thread.start()
        try:
            assert building.acquire(timeout=WAIT)
            assert building.acquire(timeout=WAIT)
            status, answer = server.post("/v1/chat/completions", CHAT)
            assert (status, answer["choices"][0]["message"]["content"]) == (200, "fine")
        finally:
            go_on.set()
            for thread in asking:
                thread.join(WAIT)
        assert server.service.admission.in_flight == 0


def test_a_form_that_is_not_ready_in_time_is_given_up(serve):
    go_on = threading.Event()
    with serve(ok, limits=Limits(request_seconds=0.2)) as server:
        server.engine.check = lambda *_: go_on.wait(WAIT) and None
        try:
            status, answer = server.post("/v1/chat/completions", CHAT | {"response_format": {"type": "json_object"}})
            assert (status, answer["error"]["code"]) == (504, "request_timeout")
            assert server.service.admission.in_flight == 0
        finally:
            go_on.set()


def test_guards_look_at_names_ids_and_arguments(serve):
    mail = "jane@doe-corp.com"
    call = {"id": mail, "type": "function", "function": {"name": "f", "arguments": json.dumps({"id": mail, mail: 1})}}
    messages = [
        {"role": "user", "content": "Hi", "name": mail},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "1"},
        {"role": "user", "content": "And?"},
    ]
    schema = {"type": "object", "properties": {"to": {"type": "string", "enum": [mail], "title": mail}}}
    tools = [{"type": "function", "function": {"name": "f", "description": "", "parameters": schema}}]
    with serve(ok, guards=[PIIGuard(output="pass")]) as server:
        messages[2:3] = [messages[2], {"role": "assistant", "content": "done"}]
        status, answer = server.post("/v1/chat/completions", CHAT | {"messages": messages, "tools": tools})
        assert status == 200, answer
        prompt = server.engine.tokenizer.decode(server.engine.seen[-1][0])
        assert "<EMAIL>" in prompt
        assert "doe-corp" not in prompt


def test_a_pattern_that_takes_for_ever_fails_in_a_second():
    guard = BlockListGuard(output="redact", patterns=["(a|aa)+b"]).text_guard("redact")
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        guard.feed("a" * 300)
    assert time.monotonic() - started < 8
