"""`/v1/responses` through the openai client: the same answers as a chat, in items."""

import json

import openai
import pytest

SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}
ADD = {"type": "function", "name": "add", "parameters": SCHEMA}
CALL = '<tool_call>\n{"name": "add", "arguments": {"ok": true}}\n</tool_call>'


def reply(prompt, params):
    last = prompt.rsplit("<|im_start|>", 2)[1]
    return {"call": f"Let me see. {CALL}", "empty": ""}.get(
        last.split("\n")[1].removesuffix("<|im_end|>"), "It is fine."
    )


@pytest.fixture
def fake(serve):
    with serve(reply) as server:
        yield server


def streamed(client, **body):
    """The events of a stream, whose numbers count from 0."""
    events = list(client.responses.create(model="fake", stream=True, **body))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    return events


def without_ids(value):
    if isinstance(value, dict):
        return {k: without_ids(v) for k, v in value.items() if k not in ("id", "call_id", "created_at", "item_id")}
    return [without_ids(each) for each in value] if isinstance(value, list) else value


@pytest.mark.parametrize(
    "body",
    [
        {"input": "hello"},
        {"input": "call", "tools": [ADD]},
        {"input": "empty"},
        {"input": "hello", "max_output_tokens": 2},
        {"input": [{"role": "user", "content": "hello"}], "instructions": "Be kind.", "temperature": 0},
    ],
)
def test_a_stream_builds_the_whole_response(fake, body):
    client = fake.client()
    whole = client.responses.create(model="fake", **body)
    events = streamed(client, **body)
    last = events[-1]
    assert without_ids(last.response.to_dict()) == without_ids(whole.to_dict())
    deltas = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert deltas == whole.output_text
    items = [event.item.to_dict() for event in events if event.type == "response.output_item.done"]
    assert items == [item.to_dict() for item in last.response.output]
    added = [event.item.id for event in events if event.type == "response.output_item.added"]
    assert added == [item["id"] for item in items]
    assert whole.usage.total_tokens == whole.usage.input_tokens + whole.usage.output_tokens


def test_the_answer_is_the_chats(real, client):
    ask = {"model": "small", "temperature": 0}
    chat = client.chat.completions.create(messages=[{"role": "user", "content": "add"}], max_tokens=12, **ask)
    response = client.responses.create(input="add", max_output_tokens=12, **ask)
    assert response.output_text == chat.choices[0].message.content
    assert response.usage.output_tokens == chat.usage.completion_tokens
    assert response.status == {"length": "incomplete", "stop": "completed"}[chat.choices[0].finish_reason]


def test_calls_go_out_and_their_results_come_back(fake):
    client = fake.client()
    response = client.responses.create(model="fake", input="call", tools=[ADD])
    text, call = response.output
    assert text.content[0].text == "Let me see."
    assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "add", {"ok": True})
    history = [{"role": "user", "content": [{"type": "input_text", "text": "call"}]}]
    history += [item.to_dict() for item in response.output]
    history += [{"type": "function_call_output", "call_id": call.call_id, "output": "three"}]
    assert client.responses.create(model="fake", input=history, tools=[ADD]).output_text == "It is fine."
    prompt = fake.engine.tokenizer.decode(fake.engine.seen[-1][0])
    assert "Let me see.\n<tool_call>" in prompt
    assert "<tool_response>\nthree" in prompt


def test_schemas_and_logprobs(client):
    form = {"type": "json_schema", "name": "answer", "schema": SCHEMA}
    response = client.responses.create(model="small", input="x", text={"format": form})
    assert set(json.loads(response.output_text)) == {"ok"}
    assert response.text.format.name == "answer"
    response = client.responses.create(
        model="small", input="x", max_output_tokens=3, top_logprobs=2, include=["message.output_text.logprobs"]
    )
    assert [len(token.top_logprobs) for token in response.output[0].content[0].logprobs] == [2, 2, 2]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"store": True}, "store: .* set it to false"),
        ({"store": 0}, "store: .* set it to false"),
        ({"background": 0}, "background: .* set it to false"),
        ({"background": True}, "background: .* set it to false"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"input": []}, "input"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "item 1.*reasoning"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input_image"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "schema"),
        ({"tool_choice": "required"}, "tools"),
        ({"tool_choice": {"type": "function", "name": "other"}, "tools": [ADD]}, "tool_choice"),
        ({"max_output_tokens": 100_000}, "max_output_tokens is 100000"),
        ({"input": [{"role": "user", "content": "hi", "mood": "x"}]}, "item 1.*'mood'"),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": "a", "bold": 1}]}]}, "item 1.*'bold'"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "{}", "x": 1}]}, "item 1.*'x'"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(client, change, words):
    with pytest.raises(openai.BadRequestError, match=words):
        client.responses.create(**{"model": "small", "input": "hi"}, extra_body=change)


def test_a_failure_ends_the_stream(fake):
    client = fake.client()
    with pytest.raises(openai.RateLimitError):
        fake.service.admission.in_flight = fake.service.admission.capacity
        client.responses.create(model="fake", input="hello", stream=True)
    fake.service.admission.in_flight = 0
    fake.engine.step = lambda: 1 / 0  # the engine's loop ends all requests with an error
    last = streamed(client, input="hello")[-1]
    assert (last.type, last.response.status) == ("response.failed", "failed")
    assert last.response.error.code == "generation_failed"
