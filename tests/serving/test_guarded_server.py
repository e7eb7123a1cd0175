"""Guards around the server: what the model reads, what the client reads, and what Prometheus counts."""

import json

import openai
import pytest

from lit_gpt.serving.guards import BlockListGuard, Guard, PIIGuard
from lit_gpt.serving.guards.base import Passed, TextGuard

USER = [{"role": "user", "content": "I am bob@gmail.com, who is the author?"}]
REPLY = "Write to ada@lovelace.org or call +44 20 7946 0958 today."
CLEAN = "Write to <EMAIL> or call <PHONE_NUMBER> today."
ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def guarded(server, **labels):
    return server.metric("lit_gpt_guarded_total", **labels)


@pytest.mark.parametrize("stream", [False, True])
def test_personal_data_goes_neither_in_nor_out(serve, stream):
    seen = []

    def reply(prompt, params):
        seen.append(prompt)
        return REPLY

    with serve(reply, guards=[PIIGuard()]) as server:
        server.engine.pace_seconds = 0.002  # not all in one piece
        client = server.client()
        chat = client.chat.completions.create(model="fake", messages=USER, stream=stream, n=2)
        text = client.completions.create(model="fake", prompt="from bob@gmail.com, to", stream=stream, max_tokens=500)
        if stream:
            chunks = list(chat)
            texts = [
                "".join(c.choices[0].delta.content or "" for c in chunks if c.choices[0].index == i) for i in (0, 1)
            ]
            reasons = [c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason]
            pieces = list(text)
            assert len(pieces) > 3  # it still streams
            texts.append("".join(c.choices[0].text for c in pieces))
        else:
            texts = [choice.message.content for choice in chat.choices] + [text.choices[0].text]
            reasons = [choice.finish_reason for choice in chat.choices]
        assert texts == [CLEAN] * 3
        assert reasons == ["stop"] * 2
        assert all("bob@gmail.com" not in prompt and "<EMAIL>" in prompt for prompt in seen)
        assert guarded(server, guard="pii", direction="input", action="redact") == 2
        assert guarded(server, guard="pii", direction="output", action="redact") == 6


def test_prompts_of_ids_are_read_too(serve, tokenizer):
    seen = []
    with serve(lambda prompt, params: seen.append(prompt) or "ok", guards=[PIIGuard()]) as server:
        client = server.client()
        for prompt in (tokenizer.encode("mail bob@gmail.com now").tolist(), tokenizer.encode("no mail").tolist()):
            client.completions.create(model="fake", prompt=prompt)
        assert seen[0].endswith("mail <EMAIL> now")
        assert seen[1] == "no mail"


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_is_stopped_ends_at_once(serve, stream):
    endless = "all is well " * 300
    guards = [BlockListGuard(terms=["forbidden thing"], input="pass")]

    def reply(prompt, params):
        return endless if "other" in prompt else f"so, the Forbidden  Thing: {endless}"

    with serve(reply, guards=guards) as server:
        server.engine.pace_seconds = 0.005  # as a model, which does not write all of it before anybody has read
        client = server.client()
        answer = client.chat.completions.create(
            model="fake", messages=[{"role": "user", "content": "go"}], stream=stream
        )
        if stream:
            chunks = list(answer)
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason]
        else:
            text, reasons = answer.choices[0].message.content, [answer.choices[0].finish_reason]
        assert text == "so, the "
        assert reasons == ["content_filter"]
        assert server.engine.idle.wait(10)
        assert server.engine.generated < 1000  # its place in the batch is free again
    assert server.service.admission.in_flight == 0
    assert server.metric("lit_gpt_sequences_total", finish_reason="content_filter") == 1
    assert guarded(server, guard="block_list", direction="output", action="block") == 1


def test_one_of_two_prompts_is_stopped_and_the_other_goes_on(serve):
    def reply(prompt, params):
        return "a bad answer, " * 20 if "first" in prompt else "a good answer"

    with serve(reply, guards=[BlockListGuard(terms=["bad"])]) as server:
        answer = server.client().completions.create(model="fake", prompt=["first", "second"], max_tokens=500)
        assert [(c.text, c.finish_reason) for c in answer.choices] == [
            ("a ", "content_filter"),
            ("a good answer", "stop"),
        ]


def test_a_request_that_is_stopped_never_reaches_the_model(serve):
    with serve(lambda prompt, params: "x", guards=[BlockListGuard(terms=["forbidden"])]) as server:
        client = server.client()
        bad = "a forbidden thing"
        parts = [{"role": "user", "content": [{"type": "text", "text": bad}]}]
        calls = [
            lambda: client.chat.completions.create(model="fake", messages=parts),
            lambda: client.chat.completions.create(
                model="fake", messages=USER, tools=[{**ADD, "function": {**ADD["function"], "description": bad}}]
            ),
            lambda: client.completions.create(model="fake", prompt=["fine", bad]),
        ]
        for call in calls:
            with pytest.raises(openai.BadRequestError) as caught:
                call()
            assert caught.value.code == "content_filter"
            assert "forbidden" not in caught.value.message
        assert not server.engine.seen
        assert server.service.admission.in_flight == 0
        assert guarded(server, guard="block_list", direction="input", action="block") == 3


def test_arguments_of_calls_are_looked_at(serve):
    said = '<tool_call>\n{"name": "add", "arguments": {"to": "ada@lovelace.org"}}\n</tool_call>'
    with serve(lambda prompt, params: said, guards=[PIIGuard()]) as server:
        create = server.client().chat.completions.create
        call = create(model="fake", messages=USER, tools=[ADD]).choices[0].message.tool_calls[0]
        assert json.loads(call.function.arguments) == {"to": "<EMAIL>"}
    with serve(lambda prompt, params: said, guards=[PIIGuard(output="block")]) as server:
        choice = server.client().chat.completions.create(model="fake", messages=USER, tools=[ADD]).choices[0]
        assert (choice.finish_reason, choice.message.tool_calls) == ("content_filter", None)


def test_log_probabilities_would_tell(serve):
    refused = pytest.raises(openai.BadRequestError, match="logprobs")
    with serve(lambda prompt, params: REPLY, guards=[PIIGuard()]) as server, refused:
        server.client().chat.completions.create(model="fake", messages=USER, logprobs=True)
    with serve(lambda prompt, params: REPLY, guards=[PIIGuard(output="pass")]) as server:
        answer = server.client().chat.completions.create(model="fake", messages=USER, logprobs=True)
        assert answer.choices[0].message.content == REPLY


class Broken(Guard):
    """Fails at the first word of an answer."""

    name = "broken"

    def text_guard(self, action):
        class Text(TextGuard):
            def feed(self, text, last=False):
                if text:
                    raise RuntimeError(text)
                return Passed()

        return Text()


def test_a_guard_that_fails_lets_nothing_pass_and_tells_no_word(serve, capsys):
    with serve(lambda prompt, params: "a secret word", guards=[Broken("pass", "block")]) as server:
        client = server.client()
        with pytest.raises(openai.InternalServerError) as caught:
            client.chat.completions.create(model="fake", messages=USER)
        assert caught.value.code == "guard_failed"
        with pytest.raises(openai.APIError, match="guard"):
            for chunk in client.chat.completions.create(model="fake", messages=USER, stream=True):
                assert not chunk.choices[0].delta.content
    assert server.service.admission.in_flight == 0
    told = capsys.readouterr().err
    assert "broken" in told
    assert "secret" not in told


def test_embeddings_are_guarded(tokenizer, network):
    from running_server import RunningServer

    from lit_gpt.generation.engine import Engine
    from lit_gpt.serving.model import ServedModel

    served = ServedModel.of("small", network, tokenizer, Engine(network, tokenizer, max_batch_size=2), None)
    with RunningServer(served, guards=[PIIGuard(), BlockListGuard(terms=["forbidden"])]) as server:
        create = server.client().embeddings.create
        pair = create(model="small", input=["mail ada@lovelace.org now", "mail <EMAIL> now"]).data
        assert pair[0].embedding == pair[1].embedding
        with pytest.raises(openai.BadRequestError) as caught:
            create(model="small", input="a forbidden thing")
        assert caught.value.code == "content_filter"
