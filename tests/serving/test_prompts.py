"""`/v1/completions` with prompts that spell special tokens, and log-probabilities of prompts."""

import openai
import pytest
import torch

from lit_gpt.generation import Engine, SamplingParams, complete_texts
from lit_gpt.serving.model import TokenText
from lit_gpt.serving.responses import CompletionLogprobs

TURNS = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "größer 漢字?"}]


def logits_of(network, ids):
    """(T, V) of the whole prompt at once."""
    with torch.no_grad():
        return network(torch.tensor([ids]))[0].float().log_softmax(-1)


def test_a_template_that_the_client_renders_gives_the_ids_of_the_chat(serve):
    with serve(lambda prompt, params: "fine") as server:
        client = server.client()
        client.chat.completions.create(model="fake", messages=TURNS)
        expected = server.engine.seen[-1][0]
        rendered = server.engine.tokenizer.decode(expected)
        client.completions.create(model="fake", prompt=rendered)
        opening = list(server.engine.tokenizer.opening_ids)
        assert server.engine.seen[-1][0] == opening + expected
        # What opens a text is not put before a prompt that has it.
        client.completions.create(model="fake", prompt=server.engine.tokenizer.decode(opening) + rendered)
        assert server.engine.seen[-1][0] == opening + expected


def test_logprobs_of_a_prompt_are_the_models(real, client, network, tokenizer):
    ids = tokenizer.encode("def add(a, b):\n    return 漢字 🙂").tolist()
    answer = client.completions.create(
        model="small", prompt=ids, max_tokens=0, echo=True, logprobs=3, extra_body={"ignore_eos": True}
    )
    choice, expected = answer.choices[0], logits_of(network, ids)
    assert (choice.text, choice.finish_reason) == (tokenizer.decode(ids), "length")
    assert answer.usage.completion_tokens == 0
    assert answer.usage.prompt_tokens == len(ids)
    assert choice.logprobs.token_logprobs[0] is None
    assert choice.logprobs.top_logprobs[0] is None
    for place, token in enumerate(ids[1:]):
        assert choice.logprobs.token_logprobs[place + 1] == pytest.approx(float(expected[place, token]), abs=1e-4)
        best = max(choice.logprobs.top_logprobs[place + 1].values())
        assert best == pytest.approx(float(expected[place].max()), abs=1e-4)


def test_logprobs_of_a_prompt_stand_before_those_of_its_answer(real, client, tokenizer):
    ask = {"model": "small", "prompt": ["def add", "größer"], "max_tokens": 4, "temperature": 0, "logprobs": 1, "n": 1}
    ask["extra_body"] = {"ignore_eos": True}
    alone = client.completions.create(**ask)
    both = client.completions.create(echo=True, **ask)
    parts = [{}, {}]
    for chunk in client.completions.create(echo=True, stream=True, **ask):
        for choice in chunk.choices:
            kept = parts[choice.index]
            kept["text"] = kept.get("text", "") + choice.text
            if choice.logprobs is not None:
                kept["tokens"] = kept.get("tokens", []) + choice.logprobs.tokens
                kept["offsets"] = kept.get("offsets", []) + choice.logprobs.text_offset
    for prompt, answer, echoed, streamed in zip(ask["prompt"], alone.choices, both.choices, parts, strict=True):
        assert echoed.text == prompt + answer.text == streamed["text"]
        count = len(answer.logprobs.tokens)
        assert echoed.logprobs.tokens[-count:] == answer.logprobs.tokens
        assert echoed.logprobs.token_logprobs[-count:] == answer.logprobs.token_logprobs
        assert len(echoed.logprobs.tokens) == count + len(tokenizer.encode(prompt))
        assert streamed["tokens"] == echoed.logprobs.tokens
        assert streamed["offsets"] == echoed.logprobs.text_offset


def test_no_answer_without_an_echo_is_an_empty_one(serve):
    with serve(lambda prompt, params: "fine") as server:
        status, answer = server.post("/v1/completions", {"model": "fake", "prompt": "a", "max_tokens": 0})
        assert (status, answer["choices"][0]["text"], answer["choices"][0]["finish_reason"]) == (200, "", "length")
        assert not server.engine.seen
        assert server.service.admission.in_flight == 0
        with pytest.raises(openai.BadRequestError):
            server.client().completions.create(model="fake", prompt=[10**6], max_tokens=0)


def test_text_offsets_count_characters(tokenizer):
    text = "a漢🙂é b"
    ids = [index for character in text for byte in character.encode() for index in bytes_ids(tokenizer, byte)]
    found = CompletionLogprobs(TokenText(tokenizer)).add_prompt([(index, 0.0, ()) for index in ids])
    expected = [place for place, character in enumerate(text) for _ in character.encode()]
    assert found["text_offset"] == expected


def bytes_ids(tokenizer, byte):
    """The id of a single byte's token."""
    tokens = TokenText(tokenizer)
    return [next(index for index in range(tokenizer.vocab_size) if tokens.bytes(index) == bytes([byte]))]


@pytest.mark.parametrize("prompt", ["def ", "größer ", "a b", " "])
def test_a_space_at_the_end_is_continued_as_generate_does(real, client, network, tokenizer, prompt):
    engine = Engine(network, tokenizer, max_batch_size=1)
    params = SamplingParams(max_new_tokens=12, temperature=0, ignore_eos=True)
    expected = next(iter(complete_texts(engine, [prompt], [params]))).text
    ask = {"model": "small", "prompt": prompt, "max_tokens": 12, "temperature": 0, "extra_body": {"ignore_eos": True}}
    assert client.completions.create(**ask).choices[0].text == expected
    streamed = "".join(chunk.choices[0].text for chunk in client.completions.create(stream=True, **ask))
    assert streamed == expected
    echoed = client.completions.create(echo=True, **ask).choices[0].text
    assert echoed == prompt + expected
