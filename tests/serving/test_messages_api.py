"""`/v1/messages` in Anthropic's form: the same answers as a chat, in blocks."""

import json

import pytest

from lit_gpt.serving.middleware import Keys

ADD = {
    "name": "add",
    "description": "Add.",
    "input_schema": {"type": "object", "properties": {"a": {"type": "number"}}},
}
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'


def reply(prompt, params):
    last = prompt.rsplit("<|im_start|>", 2)[1].split("\n")[1].removesuffix("<|im_end|>")
    return {"call": f"Let me see. {CALL}", "empty": ""}.get(last, "It is fine.")


@pytest.fixture
def fake(serve):
    with serve(reply) as server:
        yield server


def ask(server, **body):
    return server.post("/v1/messages", {"model": "fake", "max_tokens": 200, **body})


def user(text):
    return [{"role": "user", "content": text}]


def streamed(server, **body):
    """The events of a stream, each with its type as its name."""
    body = json.dumps({"model": "fake", "max_tokens": 200, "stream": True, **body}).encode()
    _, _, text = server.request("POST", "/v1/messages", body, {"Content-Type": "application/json"})
    events = []
    for part in text.decode().strip().split("\n\n"):
        name, data = part.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


@pytest.mark.parametrize(
    ("body", "reason", "content"),
    [
        ({"messages": user("hello")}, "end_turn", [{"type": "text", "text": "It is fine."}]),
        ({"messages": user("empty")}, "end_turn", []),
        ({"messages": user("hello"), "max_tokens": 2}, "max_tokens", None),
        (
            {"messages": user("call"), "tools": [ADD]},
            "tool_use",
            [{"type": "text", "text": "Let me see."}, {"type": "tool_use", "name": "add", "input": {"a": 1}}],
        ),
        ({"messages": user("hello"), "system": [{"type": "text", "text": "Be kind."}], "top_k": 3}, "end_turn", None),
    ],
)
def test_a_stream_builds_the_whole_message(fake, body, reason, content):
    status, whole = ask(fake, **body)
    assert (status, whole["type"], whole["role"], whole["stop_reason"]) == (200, "message", "assistant", reason)
    events = streamed(fake, **body)
    assert [events[0]["type"], events[-1]["type"]] == ["message_start", "message_stop"]
    assert events[0]["message"]["usage"]["input_tokens"] == whole["usage"]["input_tokens"] > 0
    blocks = []
    for event in events[1:-2]:
        if event["type"] == "content_block_start":
            assert event["index"] == len(blocks)
            blocks.append(event["content_block"])
        elif event["type"] == "content_block_delta" and event["delta"]["type"] == "text_delta":
            blocks[-1]["text"] += event["delta"]["text"]
        elif event["type"] == "content_block_delta":
            blocks[-1]["input"] = json.loads(event["delta"]["partial_json"])
    end = events[-2]
    assert end["delta"]["stop_reason"] == reason
    assert end["usage"]["output_tokens"] == whole["usage"]["output_tokens"]
    for one in (blocks, whole["content"]):
        found = [{key: value for key, value in block.items() if key != "id"} for block in one]
        assert content is None or found == content
    assert [block["type"] for block in blocks] == [block["type"] for block in whole["content"]]


def test_the_answer_is_the_chats(real, client):
    body = {"model": "small", "temperature": 0, "max_tokens": 12, "messages": user("add")}
    chat = client.chat.completions.create(**body)
    status, message = real.post("/v1/messages", body)
    assert status == 200
    assert "".join(block["text"] for block in message["content"]) == chat.choices[0].message.content
    assert message["usage"]["output_tokens"] == chat.usage.completion_tokens
    assert message["usage"]["input_tokens"] == chat.usage.prompt_tokens


def test_calls_go_out_and_their_results_come_back(fake):
    _, message = ask(fake, messages=user("call"), tools=[ADD])
    call = message["content"][1]
    result = {"type": "tool_result", "tool_use_id": call["id"], "content": "no", "is_error": True}
    history = [
        {"role": "user", "content": [{"type": "text", "text": "call", "cache_control": {"type": "ephemeral"}}]},
        {"role": "assistant", "content": message["content"]},
        {"role": "user", "content": [result, {"type": "text", "text": "So?"}]},
    ]
    status, final = ask(fake, messages=history, tools=[ADD], system="Add.")
    assert (status, final["content"][0]["text"]) == (200, "It is fine.")
    prompt = fake.engine.tokenizer.decode(fake.engine.seen[-1][0])
    assert "Let me see.\n<tool_call>" in prompt
    assert "<tool_response>\nError: no" in prompt
    assert "So?" in prompt.rsplit("<tool_response>")[-1]


def test_calls_may_be_forced(real):
    choice = {"type": "tool", "name": "add", "disable_parallel_tool_use": True}
    body = {"model": "small", "max_tokens": 60, "messages": user("x"), "tools": [ADD], "tool_choice": choice}
    status, message = real.post("/v1/messages", body)
    assert (status, message["content"][0]["type"], message["content"][0]["name"]) == (200, "tool_use", "add")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 100_000}, "max_tokens is 100000"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "system", "content": "x"}]}, "role"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "'image'"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "bold": 1}]}]}, "'bold'"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "text"),
        ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, "thinking"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice"),
        ({"tool_choice": {"type": "any"}}, "tools"),
        ({"temperature": 1.5}, "temperature"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(fake, change, word):
    status, answer = ask(fake, **{"messages": user("hello")} | change)
    assert status == 400
    assert word in answer["error"]["message"]
    assert answer["error"]["type"] == "invalid_request_error"


def test_a_failure_ends_the_stream(fake):
    fake.engine.step = lambda: 1 / 0  # the engine's loop ends all requests with an error
    last = streamed(fake, messages=user("hello"))[-1]
    assert (last["type"], last["error"]["type"]) == ("error", "server_error")


def test_the_key_may_be_sent_as_anthropics_clients_do(serve):
    key = "a-key-that-is-long-enough"
    with serve(reply, keys=Keys([key])) as server:
        for headers, status in (({"x-api-key": key}, 200), ({"x-api-key": "x"}, 401), ({}, 401)):
            assert server.request("GET", "/v1/models", headers=headers)[0] == status
