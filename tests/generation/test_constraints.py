"""Output of a given form, whatever the model would rather write."""

import json
import re

import pytest
import torch
from small_chats import small_tokenizer

from lit_gpt.errors import UserError
from lit_gpt.generation import Constraint, Engine, PromptLookup, SamplingParams, Speculation
from lit_gpt.generation.constraints import compile_constraint
from lit_gpt.models import GPT, GPTConfig

SCHEMA = {
    "type": "object",
    "properties": {
        "age": {"type": "integer"},
        "kind": {"enum": ["cat", "dog"]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["age", "kind", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def engine():
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, vocab_size=310, block_size=256))
    model.init_weights(0)
    return Engine(model, small_tokenizer(), max_batch_size=4)


def texts(engine, constraint, count=4, **settings):
    each = [SamplingParams(max_new_tokens=200, seed=seed, constraint=constraint, **settings) for seed in range(count)]
    return engine.generate([[1, 2]] * count, each)


@pytest.mark.parametrize("source", [SCHEMA, json.dumps(SCHEMA)], ids=["mapping", "text"])
def test_json_schema(engine, source):
    for completion in texts(engine, Constraint("json_schema", source)):
        assert completion.finish_reason == "stop"
        value = json.loads(completion.text)
        assert set(value) == {"age", "kind", "tags"}
        assert isinstance(value["age"], int)
        assert value["kind"] in ("cat", "dog")
        assert len(value["tags"]) <= 3


def test_regex_and_grammar(engine):
    for completion in texts(engine, Constraint("regex", r"[0-9]{2,4}-(ab|cd)")):
        assert re.fullmatch(r"[0-9]{2,4}-(ab|cd)", completion.text)
    grammar = 'start: "(" inner ")"\ninner: "x" | "y" | start'
    for completion in texts(engine, Constraint("grammar", grammar)):
        assert re.fullmatch(r"\(+[xy]\)+", completion.text)
        assert completion.text.count("(") == completion.text.count(")")


def test_a_json_object(engine):
    for completion in texts(engine, Constraint("json_object"), temperature=0.5):
        assert completion.text.startswith("{")
        if completion.finish_reason == "stop":
            assert isinstance(json.loads(completion.text), dict)


def test_beside_free_requests_and_with_guesses(engine):
    constraint = Constraint("regex", "[ab]{12}")
    free = SamplingParams(max_new_tokens=20, seed=1)
    alone = engine.generate([[1, 2]], free)[0]
    both = engine.generate([[1, 2], [1, 2]], [free, SamplingParams(constraint=constraint, seed=2)])
    assert both[0].token_ids == alone.token_ids
    assert re.fullmatch("[ab]{12}", both[1].text)
    guessing = Engine(engine.model, engine.tokenizer, speculation=Speculation(PromptLookup(), 3))
    assert guessing.generate([[1, 2]], SamplingParams(constraint=constraint, seed=2))[0].text == both[1].text


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        (Constraint("json_schema", "{not json"), "JSON schema cannot be read"),
        (Constraint("json_schema", {"type": "no such type"}), "refused"),
        (Constraint("regex", "(unclosed"), "regex constraint is refused: invalid regex.*unclosed"),
        (Constraint("grammar", "start: start"), "cannot be followed: no text has this form"),
        (Constraint("json_schema", {"oneOf": [{"type": "integer"}, {"type": "number"}]}), "oneOf.*anyOf"),
        (Constraint("grammar", "start: undefined_rule"), "grammar constraint is refused"),
        (Constraint("regex", {"a": 1}), "is a text, got dict"),
    ],
)
def test_refused(engine, constraint, message):
    with pytest.raises(UserError, match=message):
        engine.add([1], SamplingParams(constraint=constraint), "x")
    assert not engine.has_work


def test_the_draws_are_the_models_own_among_what_is_allowed(engine):
    completion = engine.generate([[1, 2]], SamplingParams(temperature=0, constraint=Constraint("regex", "[ab]")))[0]
    tokenizer = engine.tokenizer
    with torch.no_grad():
        logits = engine.model(torch.tensor([[1, 2]]))[0, -1]
    a, b = (int(tokenizer.encode(letter)[0]) for letter in "ab")
    assert completion.text == ("a" if logits[a] > logits[b] else "b")


NODE = {"type": "object", "properties": {"next": {"$ref": "#/$defs/Node"}}, "required": ["next"]}
PAIR = {"type": "object", "properties": {"other": {"$ref": "#/$defs/Other"}}, "required": ["other"]}


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/$defs/Node", "$defs": {"Node": NODE}},
        {"type": "object", "properties": {"me": {"$ref": "#"}}, "required": ["me"]},
        {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
        {"anyOf": [{"$ref": "#/$defs/Node"}, {"$ref": "#/$defs/Node"}], "$defs": {"Node": NODE}},
        {
            "$ref": "#/$defs/Node",
            "$defs": {"Node": PAIR, "Other": {"allOf": [{"$ref": "#/$defs/Node"}]}},
        },
    ],
)
def test_a_schema_that_requires_itself_is_refused_at_the_start(schema):
    with pytest.raises(UserError, match=r"#"):
        compile_constraint(Constraint("json_schema", schema))


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/$defs/Node", "$defs": {"Node": {**NODE, "required": []}}},
        {
            "$ref": "#/$defs/Node",
            "$defs": {
                "Node": {**NODE, "properties": {"next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]}}}
            },
        },
        {"$ref": "#/$defs/Node", "$defs": {"Node": PAIR, "Other": {"enum": ["a", "b"]}}},
        {"type": "object", "properties": {"required": {"type": "string"}}, "required": ["required"]},
    ],
)
def test_a_schema_that_refers_to_itself_and_ends_is_taken(schema):
    assert compile_constraint(Constraint("json_schema", schema))


def test_a_wrong_expression_says_what_is_wrong():
    with pytest.raises(UserError, match="unclosed"):
        compile_constraint(Constraint("regex", "(a"))
