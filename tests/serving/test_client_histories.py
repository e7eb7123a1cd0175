"""What ordinary clients send: histories of agents, browsers behind a proxy, values at the ends of OpenAI's ranges."""

import json

import pytest

from lit_gpt.errors import UserError
from lit_gpt.serving.chat import conversation
from lit_gpt.serving.middleware import Keys

USER = {"role": "user", "content": "hello"}
CHAT = "/v1/chat/completions"
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
ASKED = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "3"}


def say(role, content):
    return {"role": role, "content": content}


HISTORIES = {
    "user after tool": ([USER, ASKED, RESULT, say("user", "why?")], "user assistant tool user"),
    "two users": ([USER, say("user", "again")], "user"),
    "two system messages": ([say("system", "a"), say("system", "b"), USER], "system user"),
    "a system message later": (
        [USER, say("assistant", "hi"), say("developer", "b"), USER],
        "system user assistant user",
    ),
    "assistant first": ([say("assistant", "hi"), USER], "assistant user"),
    "two assistants": ([USER, say("assistant", "a"), say("assistant", "b"), USER], "user assistant user"),
    "tool with null content": ([USER, ASKED, {**RESULT, "content": None}], "user assistant tool"),
    "tool without content": ([USER, ASKED, {"role": "tool", "tool_call_id": "c1"}], "user assistant tool"),
    "old function_call": (
        [
            USER,
            {"role": "assistant", "content": None, "function_call": CALL["function"]},
            {**RESULT, "role": "function"},
        ],
        "user assistant tool",
    ),
    "empty arguments": (
        [USER, {**ASKED, "tool_calls": [{**CALL, "function": {"name": "add", "arguments": ""}}]}, RESULT],
        "user assistant tool",
    ),
}


@pytest.mark.parametrize(("messages", "roles"), HISTORIES.values(), ids=HISTORIES)
def test_histories_of_agents_are_answered(serve, messages, roles):
    assert " ".join(turn["role"] for turn in conversation(messages)) == roles
    with serve(lambda prompt, params: "fine") as server:
        status, answer = server.post(CHAT, {"model": "fake", "messages": messages})
        assert (status, answer["choices"][0]["message"]["content"]) == (200, "fine")
        prompt = server.engine.tokenizer.decode(server.engine.seen[-1][0])
        for message in messages:
            assert (message.get("content") or "") in prompt


def test_what_is_merged_is_all_there_and_in_order():
    turns = conversation([say("system", "a"), USER, say("user", "b"), say("system", "c")])
    assert turns == [{"role": "system", "content": "a\n\nc"}, {"role": "user", "content": "hello\n\nb"}]
    turns = conversation([USER, ASKED, {**ASKED, "content": "x"}, RESULT])
    assert [len(turn.get("tool_calls", ())) for turn in turns] == [0, 2, 0]
    assert turns[1]["content"] == "x"


def test_a_template_that_cannot_says_why(serve):
    with serve(lambda prompt, params: "fine", template="gemma") as server:
        status, answer = server.post(CHAT, {"model": "fake", "messages": [say("assistant", "hi"), USER]})
        assert status in (200, 400)
        assert status == 200 or "template" in answer["error"]["message"]


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file"])
def test_a_part_that_is_not_text_is_named(kind):
    with pytest.raises(UserError, match=kind):
        conversation([{"role": "user", "content": [{"type": kind}]}])


def test_values_at_the_ends_of_their_ranges(serve):
    with serve(lambda prompt, params: "fine") as server:
        for change in (
            {"top_p": 0},
            {"seed": (1 << 63) - 1},
            {"seed": -(1 << 63)},
            {"stop": list("qwxyz")},
            {"stop": ["#"] * 64},
        ):
            assert server.post(CHAT, {"model": "fake", "messages": [USER]} | change)[0] == 200, change
        assert server.post("/v1/completions", {"model": "fake", "prompt": "a", "echo": None})[0] == 200
        for path in ("/", "/health", "/ready", "/v1/models", "/v1/models/fake"):
            status, headers, body = server.request("HEAD", path)
            assert (status, body) == (200, b""), path
            assert headers["content-length"] == server.request("GET", path)[1]["content-length"]


@pytest.mark.parametrize(
    ("path", "change", "param", "words"),
    [
        (CHAT, {"stop": ["a"] * 65}, "stop", ["64"]),
        (CHAT, {"stop": ["a" * 1025]}, "stop[0]", ["1024"]),
        (CHAT, {"stop": 3}, "stop", ["string", "list"]),
        ("/v1/completions", {"prompt": []}, "prompt", ["1"]),
        ("/v1/completions", {"prompt": 3}, "prompt", ["string", "list"]),
        ("/v1/completions", {"prompt": ["a", 1]}, "prompt[1]", ["string"]),
        ("/v1/completions", {"prompt": [1, "a"]}, "prompt[1]", ["integer"]),
        ("/v1/embeddings", {"input": []}, "input", ["1"]),
    ],
)
def test_errors_name_the_field_and_the_bound(serve, path, change, param, words):
    with serve(lambda prompt, params: "fine") as server:
        body = {"model": "fake"} | ({"messages": [USER]} if path == CHAT else {}) | change
        status, answer = server.post(path, body)
        assert (status, answer["error"]["param"]) == (400, param)
        for word in words:
            assert word in answer["error"]["message"]


def test_a_browser_client_may_send_its_own_headers(serve):
    ask = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
    ask["Access-Control-Request-Headers"] = "authorization,content-type,x-stainless-arch,x-stainless-retry-count"
    with serve(lambda prompt, params: "fine", cors_origins=["https://app.example"]) as server:
        status, headers, _ = server.request("OPTIONS", CHAT, headers=ask)
        assert status == 200
        assert "x-stainless-arch" in headers["access-control-allow-headers"]
        assert "access-control-allow-credentials" not in headers


@pytest.mark.parametrize("prefix", ["", "/llm"])
def test_behind_the_prefix_of_a_proxy(serve, prefix):
    key = "correct-horse-battery"
    with serve(lambda prompt, params: "fine", root_path="/llm", keys=Keys([key])) as server:
        allowed = {"Authorization": f"Bearer {key}"}
        status, _, body = server.request("GET", f"{prefix}/v1/models", headers=allowed)
        assert (status, json.loads(body)["data"][0]["id"]) == (200, "fake")
        assert server.request("GET", f"{prefix}/v1/models")[0] == 401
        assert server.request("GET", f"{prefix}/health")[0] == 200
        status, _, body = server.request("GET", f"{prefix}/")
        assert status == 200
        assert b'"/v1' not in body  # the page asks by addresses relative to its own
        assert server.post(f"{prefix}{CHAT}", {"model": "fake", "messages": [USER]}, **allowed)[0] == 200


@pytest.mark.parametrize("path", ["llm", "/a b", "//x", "/llm?x"])
def test_a_prefix_that_is_no_path_is_refused(serve, path):
    with pytest.raises(UserError, match="root_path"):
        serve(lambda prompt, params: "fine", root_path=path)
