"""The OpenAPI document: it is there, it is valid, and requests and answers are as it says."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from running_server import RunningServer

from lit_gpt.data.chat import ChatRenderer, load_chat_template
from lit_gpt.generation.engine import Engine
from lit_gpt.serving.middleware import Keys
from lit_gpt.serving.model import ServedModel

KEY = "a-key-that-is-long-enough"
USER = [{"role": "user", "content": "hi"}]
TOOLS = [{"type": "function", "function": {"name": "add"}}]


@pytest.fixture(scope="module")
def document(real):
    status, headers, body = real.request("GET", "/openapi.json")
    assert (status, headers["content-type"]) == (200, "application/json")
    return json.loads(body)


def check(document, method, path, status, media_type, answer):
    described = document["paths"][path][method]["responses"][str(status)]["content"][media_type]["schema"]
    schema = {**described, "components": document["components"]}
    Draft202012Validator(schema).validate(answer)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": USER, "logprobs": True, "top_logprobs": 2, "n": 2}),
        ("/v1/chat/completions", {"messages": USER, "tools": TOOLS, "tool_choice": "required"}),
        ("/v1/chat/completions", {"messages": []}),
        ("/v1/completions", {"prompt": ["a", "b"], "logprobs": 2, "echo": True}),
        ("/v1/completions", {"prompt": "a", "max_tokens": 0}),
        ("/v1/completions", {"prompt": "a", "temperature": "0.5"}),
        ("/v1/responses", {"input": "a", "include": ["message.output_text.logprobs"], "top_logprobs": 1}),
        ("/v1/responses", {"input": "a", "tools": [{"type": "function", "name": "f"}], "tool_choice": "required"}),
        ("/v1/responses", {"input": [{"type": "reasoning"}]}),
        ("/v1/messages", {"messages": USER, "max_tokens": 20}),
        ("/v1/messages", {"messages": USER, "tools": [{"name": "f", "input_schema": {"type": "object"}}]}),
        ("/v1/messages", {"messages": [{"role": "system", "content": "x"}]}),
        ("/v1/embeddings", {"input": "a", "encoding_format": "base64"}),
        ("/v1/embeddings", {"input": [[1, 2]]}),
    ],
)
def test_answers_have_the_shape_that_is_described(real, document, path, body):
    bounds = {"/v1/chat/completions": "max_tokens", "/v1/responses": "max_output_tokens", "/v1/messages": "max_tokens"}
    bound = {bounds[path]: 20} if path in bounds else {}
    status, answer = real.post(path, {"model": "small", **bound, **body})
    check(document, "post", path, status, "application/json", answer)


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/{name}", "/health", "/ready", "/", "/metrics"])
def test_what_is_read_has_the_shape_that_is_described(real, document, path):
    status, headers, body = real.request("GET", path.replace("{name}", "small"))
    media_type = headers["content-type"].partition(";")[0]
    answer = json.loads(body) if media_type == "application/json" else body.decode()
    check(document, "get", path, status, media_type, answer)
    assert real.request("HEAD", path.replace("{name}", "small"))[0] == 200
    assert list(document["paths"][path]) == ["get"]


def test_the_model_is_named_and_no_other_framework(document):
    assert document["components"]["schemas"]["ChatRequest"]["properties"]["model"]["enum"] == ["small"]
    assert "HTTPValidationError" not in json.dumps(document)
    assert "securitySchemes" not in document["components"]


def test_with_a_key_and_a_prefix_it_says_so(serve):
    with serve(lambda prompt, params: "fine", keys=Keys([KEY]), root_path="/llm") as server:
        assert server.request("GET", "/openapi.json")[0] == 401
        document = json.loads(server.request("GET", "/openapi.json", headers={"Authorization": f"Bearer {KEY}"})[2])
    assert document["servers"] == [{"url": "/llm"}]
    assert document["security"] == [{"key": []}]


@pytest.fixture(scope="module")
def brief(tokenizer, network):
    """The small model with a short context: what a random request asks for is soon written."""
    engine = Engine(network, tokenizer, max_batch_size=8, prefill_chunk=64, max_length=128)
    renderer = ChatRenderer(tokenizer, load_chat_template("qwen"))
    with RunningServer(ServedModel.of("small", network, tokenizer, engine, renderer)) as server:
        yield server


@pytest.mark.slow
def test_schemathesis_finds_no_difference(brief, tmp_path):
    """Requests made from the document, most of them wrong ones, to its end: none is answered with a 5xx."""
    command = shutil.which("schemathesis", path=Path(sys.executable).parent) or shutil.which("schemathesis")
    if command is None:
        pytest.skip("needs schemathesis")
    # Whether a right request is accepted depends on more than a schema says (the context, the order of messages).
    words = ["run", f"http://127.0.0.1:{brief.port}/openapi.json", "--exclude-checks", "positive_data_acceptance"]
    words += ["--phases", "coverage,fuzzing", "--max-examples", "200", "--seed", "1", "--continue-on-failure"]
    words += ["--suppress-health-check", "all", "--request-timeout", "30"]
    done = subprocess.run([command, *words], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-8000:]
    routes = ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/embeddings"]
    counts = {route: brief.metric("lit_gpt_requests_total", route=route) for route in routes}
    accepted = {route: brief.metric("lit_gpt_requests_total", route=route, code="200") for route in routes}
    print(counts, accepted)
    assert sum(counts.values()) >= 2000
    assert min(counts.values()) >= 200
    assert min(accepted.values()) >= 1  # beside refusals
    for code in ("500", "502", "503", "504"):
        assert brief.metric("lit_gpt_requests_total", code=code) == 0
