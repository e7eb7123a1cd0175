"""Whatever is wrong with a request, the answer says what, in OpenAI's shape, and the next request is served."""

import http.client
import json
import time

import openai
import pytest
from running_server import RunningServer

from lit_gpt.serving.admission import Limits

USER = [{"role": "user", "content": "hello"}]
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def server(tokenizer):
    from fake_engine import FakeEngine

    from lit_gpt.data.chat import ChatRenderer, load_chat_template
    from lit_gpt.serving.model import ServedModel

    engine = FakeEngine(tokenizer, lambda prompt, params: "fine")
    renderer = ChatRenderer(tokenizer, load_chat_template("qwen"))
    limits = Limits(body_bytes=100_000, new_tokens=2000, prompt_tokens=3000, choices=4, prompts=8)
    with RunningServer(ServedModel.of("fake", None, tokenizer, engine, renderer), limits) as running:
        yield running


@pytest.fixture(autouse=True)
def _still_serving(server):
    yield
    answer = server.client().chat.completions.create(model="fake", messages=USER)
    assert answer.choices[0].message.content == "fine"
    assert server.service.admission.in_flight == 0


def test_no_cross_talk_between_shapes(server):
    status, answer = server.post(CHAT, {"model": "fake", "messages": USER})
    assert status == 200
    assert "error" not in answer


BAD_FIELDS = {
    "top_p 2": ({"top_p": 2}, "top_p"),
    "temperature": ({"temperature": -0.1}, "temperature"),
    "negative max_tokens": ({"max_tokens": -5}, "max_tokens"),
    "zero max_tokens": ({"max_tokens": 0}, "max_tokens"),
    "fractional max_tokens": ({"max_tokens": 1.5}, "max_tokens"),
    "more than the server's limit": ({"max_tokens": 2001}, "max_tokens"),
    "n 0": ({"n": 0}, "n"),
    "n over the limit": ({"n": 5}, "n"),
    "presence": ({"presence_penalty": 3}, "presence_penalty"),
    "no messages": ({"messages": []}, "messages"),
    "messages a string": ({"messages": "hello"}, "messages"),
    "stop too many": ({"stop": ["a"] * 65}, "stop"),
    "stop empty": ({"stop": ""}, "stop"),
    "stop long": ({"stop": "x" * 1100}, "stop"),
    "unknown field": ({"temprature": 1}, "temprature"),
    "top_logprobs alone": ({"top_logprobs": 2}, None),
    "top_logprobs many": ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    "bias no id": ({"logit_bias": {"a": 1}}, "logit_bias"),
    "bias too large": ({"logit_bias": {"1": 101}}, "logit_bias[1]"),
    "seed no integer": ({"seed": "x"}, "seed"),
    "stream_options alone": ({"stream_options": {"include_usage": True}}, None),
    "two names of one limit": ({"max_tokens": 3, "max_completion_tokens": 3}, None),
    "tool without a name": ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
    "tool_choice unknown": (
        {
            "tools": [{"type": "function", "function": {"name": "a"}}],
            "tool_choice": {"type": "function", "function": {"name": "b"}},
        },
        None,
    ),
    "required without tools": ({"tool_choice": "required"}, None),
    "format unknown": ({"response_format": {"type": "xml"}}, "response_format.type"),
    "schema missing": ({"response_format": {"type": "json_schema"}}, "response_format"),
    "schema large": (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "a", "schema": {"enum": ["x" * 1000] * 80}},
            }
        },
        "response_format",
    ),
    "audio": ({"modalities": ["audio"]}, "modalities[0]"),
    "roles out of order": ({"messages": [{"role": "assistant", "content": "hi"}]}, None),
    "role unknown": ({"messages": [{"role": "wizard", "content": "hi"}]}, None),
    "content missing": ({"messages": [{"role": "user"}]}, None),
    "image": ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, None),
    "ends with the assistant": ({"messages": [*USER, {"role": "assistant", "content": "hi"}]}, None),
    "prompt longer than the context": ({"messages": [{"role": "user", "content": "hello " * 5000}]}, None),
    "prompt and answer too long": (
        {"messages": [{"role": "user", "content": "h" * 2800}], "max_tokens": 1500},
        "max_tokens",
    ),
}


@pytest.mark.parametrize(("change", "param"), BAD_FIELDS.values(), ids=BAD_FIELDS)
def test_a_bad_field_is_named(server, change, param):
    status, answer = server.post(CHAT, {"model": "fake", "messages": USER} | change)
    assert status == 400
    assert set(answer) == {"error"}
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert answer["error"]["type"] == "invalid_request_error"
    assert answer["error"]["param"] == param
    assert 10 < len(answer["error"]["message"]) < 400


def test_not_a_number_is_no_temperature(server):
    status, answer = server.post(
        CHAT, b'{"model": "fake", "messages": [{"role": "user", "content": "a"}], "temperature": NaN}'
    )
    assert status == 400
    assert answer["error"]["param"] == "temperature"


def test_the_client_raises_its_own_exceptions(server):
    client = server.client()
    with pytest.raises(openai.BadRequestError, match="top_p") as caught:
        client.chat.completions.create(model="fake", messages=USER, top_p=2)
    assert caught.value.param == "top_p"
    with pytest.raises(openai.NotFoundError, match="gpt-4") as caught:
        client.chat.completions.create(model="gpt-4", messages=USER)
    assert caught.value.code == "model_not_found"
    for stream in (False, True):  # a stream that cannot begin is an error, not a stream
        with pytest.raises(openai.BadRequestError, match="context"):
            client.completions.create(
                model="fake", prompt=[5] * 3000, max_tokens=1500, stream=stream, n=2, extra_body={"ignore_eos": True}
            )


COMPLETIONS = {
    "prompt an empty list": {"prompt": []},
    "prompt of an empty list": {"prompt": [[]]},
    "prompt a number": {"prompt": 3},
    "prompt mixed": {"prompt": ["a", 1]},
    "too many prompts": {"prompt": ["a"] * 9},
    "negative id": {"prompt": [-1]},
    "best_of": {"best_of": 3},
    "suffix": {"suffix": "end"},
    "negative max_tokens": {"max_tokens": -1},
    "logprobs a flag": {"logprobs": 99},
}


@pytest.mark.parametrize("change", COMPLETIONS.values(), ids=COMPLETIONS)
def test_bad_completions(server, change):
    status, answer = server.post("/v1/completions", {"model": "fake", "prompt": "a"} | change)
    assert status == 400
    assert answer["error"]["message"]


def test_an_empty_prompt_is_the_start_of_a_document(server):
    status, answer = server.post("/v1/completions", {"model": "fake", "prompt": ""})
    assert status == 200
    assert answer["usage"]["prompt_tokens"] == 1


BODIES = {
    "no JSON": (b"{model: fake}", 400, "invalid_json"),
    "cut off": (b'{"model": "fake", "messages": [', 400, "invalid_json"),
    "empty": (b"", 400, "invalid_json"),
    "a list": (b"[]", 400, "invalid_json"),
    "not UTF-8": (b'{"model": "\xff\xfe"}', 400, "invalid_json"),
    "half a surrogate pair": (
        b'{"model": "fake", "messages": [{"role": "user", "content": "\\ud83d"}]}',
        400,
        "invalid_json",
    ),
    "nested deep": (b"[" * 5000 + b"]" * 5000, 400, "nested_too_deep"),
    "nested deep, open": (b'{"a":' * 15000, 400, "nested_too_deep"),
    "deeper than the parser reads": (b'{"a":' * 201 + b"1" + b"}" * 201, 400, "nested_too_deep"),
    "a number of 5000 digits": (b'{"seed": ' + b"9" * 5000 + b"}", 400, "invalid_json"),
    "quotes and backslashes": (b'{"a": ' + b'\\"' * 40_000, 400, "invalid_json"),
    "too large": (b'{"stop": "' + b"x" * 10_000_000 + b'"}', 413, "body_too_large"),
}


@pytest.mark.parametrize(("body", "status", "code"), BODIES.values(), ids=BODIES)
def test_bad_bodies(server, body, status, code):
    started = time.monotonic()
    try:
        got, answer = server.post(CHAT, body)
    except (BrokenPipeError, ConnectionResetError):
        assert code == "body_too_large"  # the answer came before all was sent, and the connection was closed
        return
    assert time.monotonic() - started < 5
    assert (got, answer["error"]["code"]) == (status, code)


def test_a_body_of_unknown_length_is_bounded_too(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)

    def chunks():
        for _ in range(200):
            yield b"x" * 10_000

    try:
        connection.request("POST", CHAT, chunks(), {"Content-Type": "application/json"}, encode_chunked=True)
        response = connection.getresponse()
        assert response.status == 413
        assert json.loads(response.read())["error"]["code"] == "body_too_large"
    except (BrokenPipeError, ConnectionResetError):
        pass
    finally:
        connection.close()


def test_a_page_elsewhere_cannot_post_without_asking(server):
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        status, answer = server.post(CHAT, {"model": "fake", "messages": USER}, **{"Content-Type": kind})
        assert status == 415, kind
        assert answer["error"]["code"] == "not_json"


def test_unknown_paths_and_methods(server):
    for method, path, status in (
        ("GET", "/v1/nothing", 404),
        ("GET", "/docs", 404),
        ("GET", "/../../etc/passwd", 404),
        ("GET", "/page/style.css", 404),
        ("GET", CHAT, 405),
        ("DELETE", "/v1/models", 405),
        ("POST", "/v1/models", 405),
        ("POST", "/v1/nothing", 404),
    ):
        got, headers, body = server.request(method, path)
        assert got == status, path
        assert json.loads(body)["error"]["message"]
        assert headers["x-request-id"].startswith("req-")


def test_what_nests_little_but_is_large_is_no_trouble(server):
    parameters = {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(1000)}}
    tool = {"type": "function", "function": {"name": "a", "parameters": parameters}}
    status, answer = server.post(CHAT, {"model": "fake", "messages": USER, "tools": [tool], "max_tokens": 5})
    assert (status, answer["error"]["code"]) == (400, "prompt_too_long")


def test_what_the_parser_lets_in_is_not_too_deep_for_anybody(server):
    schema, value = {"type": "object"}, "x"
    for _ in range(90):  # two levels each; the parser takes 200
        schema, value = {"type": "object", "properties": {"a": schema}}, [[value]]
    call = {"id": "c", "type": "function", "function": {"name": "a", "arguments": {"a": value}}}
    tool = {"type": "function", "function": {"name": "a", "parameters": schema}}
    for change in (
        {"tools": [tool]},
        {"tools": [tool], "tool_choice": "required"},
        {"messages": [{"role": "user", "content": value}]},
        {"messages": [*USER, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": "1"}]},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}},
        {"metadata": {"a": value}},
        {"stop": value},
        {"logit_bias": value},
    ):
        status, answer = server.post(CHAT, {"model": "fake", "messages": USER, "max_tokens": 5} | change)
        assert status in (200, 400), answer


def test_a_model_without_a_template_says_so(serve):
    with serve(lambda prompt, params: "fine", template=None) as plain:
        status, answer = plain.post(CHAT, {"model": "fake", "messages": USER})
        assert status == 400
        assert "chat_template" in answer["error"]["message"]
        assert plain.post("/v1/completions", {"model": "fake", "prompt": "a"})[0] == 200


def test_a_template_without_tools_says_so(serve):
    with serve(lambda prompt, params: "fine", template="chatml") as plain:
        tools = [{"type": "function", "function": {"name": "a"}}]
        status, answer = plain.post(CHAT, {"model": "fake", "messages": USER, "tools": tools})
        assert (status, answer["error"]["param"]) == (400, "tools")
