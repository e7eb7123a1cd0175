"""The real `openai` client against a small real model: what comes back is what the engine itself would say."""

import asyncio
import json
import math

import openai
import pytest
import torch
import torch.nn.functional as F

from lit_gpt.data.chat import render
from lit_gpt.models import GPT

TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "def add"}]
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "adds",
        "parameters": {
            "type": "object",
            "properties": {"a": {"enum": [1, 2]}, "b": {"enum": [3]}},
            "required": ["a", "b"],
            "additionalProperties": False,
        },
    },
}


def greedy_ids(model: GPT, ids: list[int], count: int) -> list[int]:
    """By whole forwards, with no engine and no cache."""
    with torch.no_grad():
        for _ in range(count):
            ids = [*ids, int(model(torch.tensor([ids]))[0, -1].argmax())]
    return ids[-count:]


def chat(client, **more):
    return client.chat.completions.create(**{"model": "small", "messages": TALK, "max_tokens": 12} | more)


def test_a_greedy_chat_says_what_plain_forwards_say(client, network, tokenizer):
    answer = chat(client, temperature=0)
    prompt = render(tokenizer, TALK)
    expected = greedy_ids(network, prompt, 12)
    assert answer.choices[0].message.content == tokenizer.decode(expected)
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].message.role == "assistant"
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.usage.prompt_tokens == len(prompt)
    assert answer.usage.completion_tokens == 12
    assert answer.usage.total_tokens == len(prompt) + 12


def test_a_stream_is_the_answer_in_pieces(client):
    whole = chat(client, seed=3)
    chunks = list(chat(client, seed=3, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert all(c.usage is None for c in chunks[:-1])
    assert len({c.id for c in chunks}) == 1
    assert len(chunks) >= 4, "role, text, end, usage; words that are ready together go out together"


def test_no_usage_in_a_stream_that_did_not_ask(client):
    assert all(c.choices for c in chat(client, stream=True))


def test_the_same_seed_gives_the_same_text_and_another_another(client):
    texts = [chat(client, seed=seed).choices[0].message.content for seed in (5, 5, 6, -1)]
    assert texts[0] == texts[1]
    assert len(set(texts)) == 3
    assert len({chat(client).choices[0].message.content for _ in range(3)}) == 3


def test_n_answers_differ_and_repeat_with_their_seed(client):
    first, second = (chat(client, n=3, seed=11) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert texts == [choice.message.content for choice in second.choices]
    assert texts[0] == chat(client, seed=11).choices[0].message.content
    assert first.usage.completion_tokens == 36


def test_n_answers_in_one_stream(client):
    whole = chat(client, n=3, seed=11)
    pieces = {0: "", 1: "", 2: ""}
    for chunk in chat(client, n=3, seed=11, stream=True):
        for choice in chunk.choices:
            pieces[choice.index] += choice.delta.content or ""
    assert list(pieces.values()) == [choice.message.content for choice in whole.choices]


def test_a_stop_string_ends_the_text_and_is_not_in_it(client):
    text = chat(client, temperature=0, max_tokens=40).choices[0].message.content
    stop = text[8:11]
    cut = chat(client, temperature=0, max_tokens=40, stop=[stop, "never there"])
    assert cut.choices[0].message.content == text[: text.index(stop)]
    assert cut.choices[0].finish_reason == "stop"
    streamed = "".join(
        c.choices[0].delta.content or "" for c in chat(client, temperature=0, max_tokens=40, stop=stop, stream=True)
    )
    assert streamed == text[: text.index(stop)]


def test_log_probabilities_are_the_models_own(client, network, tokenizer):
    answer = chat(client, temperature=0, max_tokens=5, logprobs=True, top_logprobs=3)
    content = answer.choices[0].logprobs.content
    ids = render(tokenizer, TALK)
    assert len(content) == 5
    for entry in content:
        with torch.no_grad():
            expected = F.log_softmax(network(torch.tensor([ids]))[0, -1].float(), dim=-1)
        best = expected.topk(3)
        ids.append(int(best.indices[0]))
        assert math.isclose(entry.logprob, float(best.values[0]), abs_tol=1e-3)
        assert [top.logprob for top in entry.top_logprobs] == pytest.approx(best.values.tolist(), abs=1e-3)
        assert entry.top_logprobs[0].bytes == entry.bytes
    assert b"".join(bytes(entry.bytes) for entry in content).decode("utf-8", "replace") == tokenizer.decode(ids[-5:])
    assert chat(client, logprobs=True).choices[0].logprobs.content[0].top_logprobs == []
    assert chat(client).choices[0].logprobs is None


def test_log_probabilities_in_a_stream_are_those_of_the_whole(client):
    whole = chat(client, seed=2, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    streamed = []
    for chunk in chat(client, seed=2, logprobs=True, top_logprobs=2, stream=True):
        if chunk.choices[0].logprobs:
            streamed += chunk.choices[0].logprobs.content
    assert [entry.token for entry in streamed] == [entry.token for entry in whole]
    assert [entry.logprob for entry in streamed] == pytest.approx([entry.logprob for entry in whole], abs=1e-4)


def test_a_bias_forces_or_forbids_a_token(client, tokenizer):
    token = int(tokenizer.encode("a")[0])
    answer = chat(client, logit_bias={str(token): 100}, max_tokens=4)
    assert answer.choices[0].message.content == "aaaa"


def test_json_schema_and_object(client):
    schema = {
        "type": "object",
        "properties": {"city": {"enum": ["Rome", "Oslo"]}, "hot": {"type": "boolean"}},
        "required": ["city", "hot"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "place", "schema": schema, "strict": True}}
    for seed in range(3):
        value = json.loads(chat(client, response_format=form, max_tokens=80, seed=seed).choices[0].message.content)
        assert value["city"] in ("Rome", "Oslo")
        assert isinstance(value["hot"], bool)
    answer = chat(client, response_format={"type": "json_object"}, max_tokens=60, seed=1).choices[0]
    assert answer.message.content.startswith("{")
    if answer.finish_reason == "stop":
        assert isinstance(json.loads(answer.message.content), dict)


def test_regex_and_grammar_are_ours(client):
    form = {"type": "regex", "regex": "[ab]{3}"}
    text = chat(client, extra_body={"response_format": form}, max_tokens=20).choices[0].message.content
    assert len(text) == 3
    assert set(text) <= set("ab")
    form = {"type": "grammar", "grammar": 'start: "x" | "y"'}
    assert chat(client, extra_body={"response_format": form}, max_tokens=20).choices[0].message.content in ("x", "y")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "add"}}])
def test_a_tool_call_that_is_demanded_comes_and_fits_its_schema(client, choice):
    for seed in range(2):
        answer = chat(client, tools=[ADD], tool_choice=choice, max_tokens=120, seed=seed)
        call = answer.choices[0].message.tool_calls[0]
        assert call.type == "function"
        assert call.function.name == "add"
        arguments = json.loads(call.function.arguments)
        assert arguments["a"] in (1, 2)
        assert arguments["b"] == 3
        assert answer.choices[0].finish_reason == "tool_calls"
        assert not answer.choices[0].message.content


def test_completions_go_on_with_texts_and_ids(client, network, tokenizer):
    prompts = ["def add", "größer"]
    ids = [[tokenizer.separator_id, *tokenizer.encode(text).tolist()] for text in prompts]
    expected = [tokenizer.decode(greedy_ids(network, one, 8)) for one in ids]
    options = {"model": "small", "max_tokens": 8, "temperature": 0}
    both = client.completions.create(prompt=prompts, **options)
    assert [choice.text for choice in both.choices] == expected
    assert [choice.text for choice in client.completions.create(prompt=ids, **options).choices] == expected
    assert client.completions.create(prompt=ids[0], **options).choices[0].text == expected[0]
    assert (
        client.completions.create(prompt=prompts[0], echo=True, **options).choices[0].text == prompts[0] + expected[0]
    )
    assert both.usage.prompt_tokens == sum(map(len, ids))
    assert both.object == "text_completion"
    streamed = {0: "", 1: ""}
    for chunk in client.completions.create(prompt=prompts, stream=True, **options):
        for choice in chunk.choices:
            streamed[choice.index] += choice.text
    assert list(streamed.values()) == expected


def test_completions_log_probabilities_and_default_length(client):
    answer = client.completions.create(
        model="small", prompt="", temperature=0, logprobs=2, extra_body={"ignore_eos": True}
    )
    told = answer.choices[0].logprobs
    assert answer.usage.completion_tokens == 16  # OpenAI's default
    assert len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs) == len(told.text_offset) == 16
    assert told.text_offset[0] == 0
    assert told.text_offset[3] == sum(map(len, told.tokens[:3]))
    assert max(told.top_logprobs[0].values()) == pytest.approx(told.token_logprobs[0], abs=1e-5)


def test_embeddings_are_the_mean_of_the_last_hidden_states(client, network, tokenizer):
    ids = [tokenizer.separator_id, *tokenizer.encode("def add").tolist()]
    with torch.no_grad():
        hidden = network(torch.tensor([ids]), head_fn=lambda hidden, weight, bias: hidden)
    expected = hidden[0].mean(dim=0).tolist()
    answer = client.embeddings.create(model="small", input=["def add", "größer"])  # the client asks for base64
    assert answer.data[0].embedding == pytest.approx(expected, abs=1e-5)
    assert answer.data[1].index == 1
    as_numbers = client.embeddings.create(model="small", input=ids, encoding_format="float")
    assert as_numbers.data[0].embedding == pytest.approx(expected, abs=1e-5)
    assert as_numbers.usage.prompt_tokens == len(ids)


def test_what_the_engine_refuses_is_the_requests_fault(real, client):
    for change, word in (
        ({"logit_bias": {"99999": 1}}, "99999"),
        ({"extra_body": {"response_format": {"type": "regex", "regex": "(["}}}, "regex"),
        ({"extra_body": {"response_format": {"type": "grammar", "grammar": "no grammar"}}}, "grammar"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": 7}}}}, "schema"),
    ):
        with pytest.raises(openai.BadRequestError, match=word):
            chat(client, **change)
    for call in (client.completions.create, client.embeddings.create):
        field = "prompt" if call == client.completions.create else "input"
        with pytest.raises(openai.BadRequestError, match="99999"):
            call(model="small", **{field: [1, 99999]})
        with pytest.raises(openai.BadRequestError, match="1024|1025"):
            call(model="small", **{field: [1] * 1025})
    assert real.service.admission.in_flight == real.service.direct_admission.in_flight == 0


def test_models_are_listed(client):
    assert [model.id for model in client.models.list()] == ["small"]
    assert client.models.retrieve("small").owned_by == "lit_gpt"
    with pytest.raises(openai.NotFoundError, match="other"):
        client.models.retrieve("other")


def test_many_at_once_say_what_each_says_alone(real, client):
    """Sixteen clients of eight slots: greedy answers do not depend on who else is there."""
    prompts = [f"{'def ' * (number % 5)}add {number}" for number in range(16)]

    def alone(prompt):
        return client.completions.create(model="small", prompt=prompt, max_tokens=20, temperature=0).choices[0].text

    expected = [alone(prompt) for prompt in prompts]

    async def together():
        async with real.client(kind=openai.AsyncOpenAI) as many:
            calls = [
                many.completions.create(model="small", prompt=prompt, max_tokens=20, temperature=0)
                for prompt in prompts
            ]
            return [answer.choices[0].text for answer in await asyncio.gather(*calls)]

    assert asyncio.run(together()) == expected
