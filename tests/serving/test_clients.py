"""Clients that people use, one test each: chat, stream, tools, JSON schema, log-probabilities, errors.

Each needs its package, and is skipped where that is missing. The npm clients need node and a folder, named by
NODE_CLIENTS, with `npm i openai ai @ai-sdk/openai-compatible zod` in it.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
MESSAGES = [{"role": "user", "content": "add"}]
SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
    "title": "answer",
    "description": "An answer.",
}
TOOL = {"type": "function", "function": {"name": "add", "parameters": SCHEMA}}
FORM = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
ASK = {"max_tokens": 8, "temperature": 0}


@pytest.fixture(scope="module")
def address(real):
    return f"http://127.0.0.1:{real.port}/v1"


@pytest.fixture(scope="module")
def expected(client):
    """The greedy answer."""
    text = client.chat.completions.create(model="small", messages=MESSAGES, **ASK).choices[0].message.content
    assert text
    return text


def is_answer(text):
    return set(json.loads(text)) == {"ok"}


def test_litellm(address, expected, monkeypatch):
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # otherwise the import fetches one
    litellm = pytest.importorskip("litellm")
    ask = {"model": "openai/small", "api_base": address, "api_key": "unused", "messages": MESSAGES, "max_retries": 0}
    answer = litellm.completion(**ask, **ASK, logprobs=True, top_logprobs=2).choices[0]
    assert answer.message.content == expected
    assert len(answer.logprobs.content[0].top_logprobs) == 2
    parts = [chunk.choices[0].delta.content or "" for chunk in litellm.completion(**ask, **ASK, stream=True)]
    assert "".join(parts) == expected
    (call,) = litellm.completion(**ask, tools=[TOOL], tool_choice="required").choices[0].message.tool_calls
    assert is_answer(call.function.arguments)
    assert is_answer(litellm.completion(**ask, response_format=FORM).choices[0].message.content)
    with pytest.raises(litellm.BadRequestError, match="temperature"):
        litellm.completion(**ask, temperature=9)


def test_langchain(address, expected):
    langchain = pytest.importorskip("langchain_openai")
    options = {"model": "small", "base_url": address, "api_key": "unused", "max_retries": 0}
    model = langchain.ChatOpenAI(**options, **ASK, logprobs=True, top_logprobs=2)
    answer = model.invoke("add")
    assert answer.content == expected
    assert len(answer.response_metadata["logprobs"]["content"][0]["top_logprobs"]) == 2
    assert "".join(chunk.content for chunk in model.stream("add")) == expected
    free = langchain.ChatOpenAI(**options)
    assert set(free.bind_tools([TOOL], tool_choice="required").invoke("add").tool_calls[0]["args"]) == {"ok"}
    for method in ("json_schema", "function_calling"):
        assert set(free.with_structured_output(SCHEMA, method=method).invoke("add")) == {"ok"}
    responses = langchain.ChatOpenAI(**options, **ASK, use_responses_api=True)
    assert responses.invoke("add").text == expected
    with pytest.raises(Exception, match="temperature"):
        langchain.ChatOpenAI(**options, temperature=9).invoke("add")


def test_instructor(real):
    instructor = pytest.importorskip("instructor")
    from pydantic import BaseModel, ConfigDict

    class Street(BaseModel):
        model_config = ConfigDict(extra="forbid")
        number: bool

    class Address(BaseModel):
        model_config = ConfigDict(extra="forbid")
        street: Street
        known: bool

    for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
        client = instructor.from_openai(real.client(), mode=mode)
        found = client.chat.completions.create(model="small", messages=MESSAGES, response_model=Address, max_retries=0)
        assert isinstance(found.street, Street)


def test_anthropic(real, expected):
    anthropic = pytest.importorskip("anthropic")
    client = anthropic.Anthropic(base_url=f"http://127.0.0.1:{real.port}", api_key="unused", max_retries=0)
    # Version 2 has no argument for the temperature.
    ask = {"model": "small", "messages": MESSAGES, "max_tokens": 8, "extra_body": {"temperature": 0}}
    tool = {"name": "add", "input_schema": SCHEMA}
    answer = client.messages.create(**ask)
    assert (answer.content[0].text, answer.stop_reason) == (expected, "max_tokens")
    with client.messages.stream(**ask) as stream:
        assert "".join(stream.text_stream) == expected
        assert stream.get_final_message().usage == answer.usage
    forced = {**ask, "max_tokens": 60, "tools": [tool], "tool_choice": {"type": "any"}}
    called = client.messages.create(**forced)
    assert (called.stop_reason, called.content[0].name, set(called.content[0].input)) == ("tool_use", "add", {"ok"})
    with client.messages.stream(**forced) as stream:
        assert stream.get_final_message().content[0].input == called.content[0].input
    with pytest.raises(anthropic.BadRequestError, match="temperature"):
        client.messages.create(**ask | {"extra_body": {"temperature": 9}})
    with pytest.raises(anthropic.NotFoundError, match="missing"):
        client.messages.create(**ask | {"model": "missing"})


def test_curl(address, expected):
    """What a shell sees: the status, JSON or events, and an error's words."""
    if not shutil.which("curl"):
        pytest.skip("needs curl")

    def curl(path, body=None):
        words = ["curl", "-sN", "-w", "\n%{http_code}", f"{address}{path}"]
        words += (
            []
            if body is None
            else ["-H", "Content-Type: application/json", "-d", json.dumps({"model": "small"} | body)]
        )
        text, _, status = subprocess.run(words, capture_output=True, text=True, check=True).stdout.rpartition("\n")
        return int(status), text

    def message(body):
        status, text = curl("/chat/completions", {"messages": MESSAGES} | body)
        assert status == 200
        return json.loads(text)["choices"][0]

    assert json.loads(curl("/models")[1])["data"][0]["id"] == "small"
    chat = message({**ASK, "logprobs": True, "top_logprobs": 2})
    assert chat["message"]["content"] == expected
    assert len(chat["logprobs"]["content"][0]["top_logprobs"]) == 2
    _, events = curl("/chat/completions", {"messages": MESSAGES, **ASK, "stream": True})
    *chunks, last = [event.removeprefix("data: ") for event in events.strip().split("\n\n")]
    assert "".join(json.loads(chunk)["choices"][0]["delta"].get("content", "") for chunk in chunks) == expected
    assert last == "[DONE]"
    called = message({"tools": [TOOL], "tool_choice": "required"})["message"]
    assert is_answer(called["tool_calls"][0]["function"]["arguments"])
    assert is_answer(message({"response_format": FORM})["message"]["content"])
    status, text = curl("/chat/completions", {"messages": MESSAGES, "temperature": 9})
    assert (status, json.loads(text)["error"]["param"]) == (400, "temperature")


def test_llm(address, expected, tmp_path, monkeypatch):
    pytest.importorskip("llm")
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    entry = {"model_id": "ours", "model_name": "small", "api_base": address, "supports_schema": True}
    entries = [entry, {**entry, "model_id": "missing", "model_name": "missing"}]
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps(entries))
    import llm

    model = llm.get_model("ours")
    assert model.prompt("add", key="unused", stream=False, **ASK).text() == expected
    assert "".join(model.prompt("add", key="unused", **ASK)) == expected
    assert is_answer(model.prompt("add", key="unused", schema=SCHEMA, stream=False).text())
    with pytest.raises(Exception, match="missing.*does not exist"):
        llm.get_model("missing").prompt("add", key="unused", stream=False).text()


def test_npm_clients(address, expected):
    folder = os.environ.get("NODE_CLIENTS")
    if not folder or not shutil.which("node"):
        pytest.skip("needs node and NODE_CLIENTS, a folder with the packages")
    script = Path(shutil.copy(Path(__file__).with_name("clients.mjs"), folder))  # where node looks for packages
    done = subprocess.run(["node", script, address], capture_output=True, text=True, cwd=folder, timeout=120)
    script.unlink()
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    for name in ("chat", "stream", "response", "sdkChat", "sdkStream"):
        assert seen[name] == expected, name
    assert set(seen["logprobs"]) == {2}
    for name in ("call", "object", "sdkCall", "sdkObject"):
        assert set(seen[name]) == {"ok"}, name
    assert seen["error"] == [400, "temperature"]
    assert seen["sdkError"] == 400


def test_lm_eval_scores_as_our_own_harness(address, network, tokenizer, tmp_path):
    """HellaSwag: `local-completions` asks the server, `HarnessModel` the model: the same score of every item."""
    pytest.importorskip("lm_eval")
    pytest.importorskip("tenacity", reason="needs lm-eval[api]")
    from lm_eval.evaluator import evaluate
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    from lit_gpt.evaluation.harness.find import task_on_docs
    from lit_gpt.evaluation.harness.model import HarnessModel
    from lit_gpt.evaluation.subject import Subject

    def word(number):
        return ["def", "add", "größer", "漢字", "🙂", "return", "name"][number % 7]

    rows = []
    for item in range(10):
        endings = [" ".join(word(item * j + k * (j + 1)) for k in range(2 + j)) for j in range(4)]
        rows.append({"query": f"Play: {word(item)} {word(item + 3)}.", "choices": endings, "gold": item % 4})
    tokenizer.save(tmp_path)
    remote = LocalCompletionsAPI(
        base_url=f"{address}/completions", tokenizer_backend="huggingface", tokenizer=str(tmp_path), model="small"
    )
    own = HarnessModel(Subject("small", network, tokenizer), "hf")

    def samples(model):
        tasks = {"hellaswag": task_on_docs("hellaswag", rows)}
        found = evaluate(model, task_dict={"tasks": tasks, "groups": {}}, bootstrap_iters=0)
        return sorted(found["samples"]["hellaswag"], key=lambda sample: sample["doc_id"])

    ours, theirs = samples(own), samples(remote)
    assert len(ours) == len(theirs) == 10
    for one, other in zip(ours, theirs, strict=True):
        for (logprob, greedy), (remote_logprob, remote_greedy) in zip(
            one["filtered_resps"], other["filtered_resps"], strict=True
        ):
            assert float(remote_logprob) == pytest.approx(float(logprob), abs=1e-4)
            assert str(remote_greedy) == str(greedy)
        for metric in one["metrics"]:
            assert one[metric] == pytest.approx(other[metric], abs=1e-6), (metric, one["doc_id"])
