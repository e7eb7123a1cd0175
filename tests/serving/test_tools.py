"""Reading calls out of answers, however they arrive in pieces."""

import json

import pytest

from lit_gpt.data.chat import load_chat_template
from lit_gpt.serving.tools import (
    DEEPSEEK,
    GRANITE,
    HERMES,
    LLAMA,
    MISTRAL,
    QWEN_CODER,
    ToolCall,
    ToolReader,
    call_constraint,
    rebase_references,
    tool_form,
)

CALL = '{"name": "add", "arguments": {"a": 1, "b": [2, {"c": "</x>"}]}}'
ARGUMENTS = {"a": 1, "b": [2, {"c": "</x>"}]}
ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
USER = [{"role": "user", "content": "hello"}]


def read(form, text, sizes, **options):
    """All parts of a text that arrives in pieces, neighbouring texts joined."""
    reader, parts, at = (
        ToolReader(form, {"add": {"properties": {"text": {"type": "string"}}}, "look": None}, **options),
        [],
        0,
    )
    for size in sizes:
        parts += reader.feed(text[at : at + size])
        at += size
    parts += reader.feed(text[at:]) + reader.finish()
    joined = []
    for part in parts:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        else:
            joined.append(part)
    return [part if isinstance(part, str) else (part.name, json.loads(part.arguments)) for part in joined]


ANSWERS = {
    "hermes": (HERMES, f"<tool_call>\n{CALL}\n</tool_call>", [("add", ARGUMENTS)]),
    "hermes, text before": (
        HERMES,
        f"Let me see.\n\n<tool_call>{CALL}</tool_call>",
        ["Let me see.", ("add", ARGUMENTS)],
    ),
    "hermes, two": (
        HERMES,
        f'<tool_call>{CALL}</tool_call>\n<tool_call>{{"name": "look", "arguments": {{}}}}</tool_call>',
        [("add", ARGUMENTS), ("look", {})],
    ),
    "hermes, never closed": (HERMES, f"<tool_call>{CALL}", [("add", ARGUMENTS)]),
    "hermes, no JSON": (HERMES, "<tool_call>{oops</tool_call> so", ["<tool_call>{oops</tool_call> so"]),
    "hermes, unknown name": (
        HERMES,
        '<tool_call>{"name": "rm", "arguments": {}}</tool_call>',
        ['<tool_call>{"name": "rm", "arguments": {}}</tool_call>'],
    ),
    "hermes, a name that is none": (
        HERMES,
        '<tool_call>{"name": ["add"], "arguments": {}}</tool_call>',
        ['<tool_call>{"name": ["add"], "arguments": {}}</tool_call>'],
    ),
    "hermes, only text": (HERMES, "1 < 2 and <tool is no <tool_cal", ["1 < 2 and <tool is no <tool_cal"]),
    "mistral": (
        MISTRAL,
        f'[TOOL_CALLS][{CALL}, {{"name": "look", "arguments": {{}}}}]',
        [("add", ARGUMENTS), ("look", {})],
    ),
    "mistral, only text": (MISTRAL, "a [list] of things", ["a [list] of things"]),
    "llama": (LLAMA, '{"name": "look", "parameters": {"x": 1}}', [("look", {"x": 1})]),
    "llama, only text": (LLAMA, 'Sure: {"name": "look"} it is {', ['Sure: {"name": "look"} it is {']),
    "llama, JSON that is no call": (LLAMA, '{"answer": 42}', ['{"answer": 42}']),
    "mistral, names before arguments": (
        MISTRAL,
        '[TOOL_CALLS]add[ARGS]{"a": 1}[TOOL_CALLS]look[CALL_ID]abc123def[ARGS]{}',
        [("add", {"a": 1}), ("look", {})],
    ),
    "deepseek v3": (
        DEEPSEEK,
        "Well.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n"
        '{"a": "```<｜tool▁calls▁end｜>"}\n```<｜tool▁call▁end｜>\n'
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>look\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        ["Well.", ("add", {"a": "```<｜tool▁calls▁end｜>"}), ("look", {})],
    ),
    "deepseek v3.1": (
        DEEPSEEK,
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>add<｜tool▁sep｜>{"a": 1}<｜tool▁call▁end｜>'
        "<｜tool▁call▁begin｜>look<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        [("add", {"a": 1}), ("look", {})],
    ),
    "deepseek, never closed": (
        DEEPSEEK,
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>add<｜tool▁sep｜>{"a": 1}<｜tool▁call▁end｜>',
        [("add", {"a": 1})],
    ),
    "deepseek, unknown name": (
        DEEPSEEK,
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>rm<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        ["<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>rm<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"],
    ),
    "granite": (GRANITE, f"<|tool_call|>[{CALL}]", [("add", ARGUMENTS)]),
    "llama, python tag": (LLAMA, '<|python_tag|>{"name": "look", "parameters": {"x": 1}}', [("look", {"x": 1})]),
    "llama, several": (
        LLAMA,
        '{"name": "look", "parameters": {}}; {"name": "add", "parameters": {"x": ";"}}',
        [("look", {}), ("add", {"x": ";"})],
    ),
    "llama, python tag and a text": (LLAMA, "<|python_tag|>print(1)", ["<|python_tag|>print(1)"]),
    "arguments in a string": (
        HERMES,
        '<tool_call>{"name": "add", "arguments": "{\\"a\\": 1}"}</tool_call>',
        [("add", {"a": 1})],
    ),
    "arguments null": (HERMES, '<tool_call>{"name": "add", "arguments": null}</tool_call>', [("add", {})]),
    "closing mark in a string": (
        HERMES,
        '<tool_call>{"name": "add", "arguments": {"a": "x</tool_call>\\" y"}}</tool_call> done',
        [("add", {"a": 'x</tool_call>" y'}), " done"],
    ),
    "qwen coder": (
        QWEN_CODER,
        "Well.\n<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n<parameter=text>\n12\n\n3</tool_call>\n</parameter>\n"
        "</function>\n</tool_call>\n<tool_call><function=look>\n</function></tool_call>",
        ["Well.", ("add", {"a": 1, "text": "12\n\n3</tool_call>"}), ("look", {})],
    ),
    "qwen coder, unknown name": (
        QWEN_CODER,
        "<tool_call><function=rm></function></tool_call>",
        ["<tool_call><function=rm></function></tool_call>"],
    ),
    "empty": (HERMES, "", []),
}


@pytest.mark.parametrize(("form", "text", "expected"), ANSWERS.values(), ids=ANSWERS)
def test_every_way_to_cut_an_answer_gives_the_same_parts(form, text, expected):
    assert read(form, text, []) == expected
    assert read(form, text, [1] * len(text)) == expected
    for first in range(len(text)):
        for second in (1, 3, 11):
            assert read(form, text, [first, second]) == expected, (first, second)


def test_text_is_not_held_back_longer_than_it_must():
    reader = ToolReader(HERMES, {"add": None})
    assert reader.feed("Hello wor") == ["Hello wor"]
    assert reader.feed("ld <") == ["ld"]  # what follows may be a call, and the space before it nothing
    assert reader.feed("b") == [" <b"]
    assert reader.feed("<tool_call>{") == []


def test_a_demanded_call_has_no_marks_and_only_one_may_be_asked_for():
    assert read(HERMES, CALL, [], forced=True) == [("add", ARGUMENTS)]
    two = f"<tool_call>{CALL}</tool_call><tool_call>{CALL}</tool_call>"
    assert len(read(HERMES, two, [])) == 2
    assert read(HERMES, two, [], only_one=True) == [("add", ARGUMENTS)]


def test_the_form_is_read_off_the_template():
    forms = {"qwen": HERMES, "mistral": MISTRAL, "llama3": LLAMA, "chatml": None, "gemma": None, "alpaca": None}
    assert {name: tool_form(load_chat_template(name).source) for name in forms} == forms
    own = "{% if m.tool_calls %}<｜tool▁calls▁begin｜>...{% endif %}"  # announces no tools
    assert tool_form(own) is None
    assert tool_form("{% if tools %}{{ tools | tojson }}{% endif %}" + own) is DEEPSEEK


def test_the_constraint_of_a_demanded_call():
    functions = [{"name": "a", "parameters": {"type": "object", "properties": {}}}, {"name": "b"}]
    schema = call_constraint(LLAMA, functions).source
    assert [one["properties"]["name"]["const"] for one in schema["anyOf"]] == ["a", "b"]
    assert schema["anyOf"][1]["properties"]["parameters"] == {"type": "object"}
    assert call_constraint(HERMES, functions[:1]).source["required"] == ["name", "arguments"]


def test_references_of_a_forced_call_still_hold():
    """Of pydantic's nested models: the root of `#/$defs/...` moves with the schema."""
    defs = {"Color": {"enum": ["red"]}, "Node": {"properties": {"next": {"$ref": "#/$defs/Node"}}}}
    properties = {
        "color": {"$ref": "#/$defs/Color"},
        "$ref": {"type": "string"},
        "same": {"const": {"$ref": "#/x"}},
        "all": {"$ref": "#"},
    }
    parameters = {"type": "object", "properties": properties, "$defs": defs}
    schema = call_constraint(LLAMA, [{"name": "b"}, {"name": "a", "parameters": parameters}]).source
    inner = schema["anyOf"][1]["properties"]["parameters"]
    place = "#/anyOf/1/properties/parameters"
    assert inner["properties"]["color"] == {"$ref": f"{place}/$defs/Color"}
    assert inner["$defs"]["Node"]["properties"]["next"] == {"$ref": f"{place}/$defs/Node"}
    assert inner["properties"]["all"] == {"$ref": place}
    assert inner["properties"]["$ref"] == {"type": "string"}
    assert inner["properties"]["same"] == {"const": {"$ref": "#/x"}}
    assert rebase_references({"$id": "https://x", "$ref": "#/a"}, "#/b") == {"$id": "https://x", "$ref": "#/a"}


def test_a_forced_call_that_is_cut_off_keeps_what_was_written():
    reader = ToolReader(HERMES, {"add": None}, forced=True)
    assert reader.feed('{"name": "add", "arguments": {"a": [1, 2') == []
    assert reader.finish() == [ToolCall("add", '{"a": [1, 2')]


def test_an_answer_that_nests_without_end_is_a_text():
    deep = "<tool_call>" + "[" * 100_000 + "</tool_call>"
    assert read(HERMES, deep, [50_000]) == [deep]


def test_ids_of_calls_differ():
    call = ToolCall("a", "{}")
    assert call.to_dict()["id"] != call.to_dict()["id"]
    assert call.to_dict(3)["index"] == 3


def test_calls_through_the_openai_client_and_back(serve):
    said = f"One moment.\n<tool_call>\n{CALL}\n</tool_call>\n<tool_call>\n{CALL}\n</tool_call>"

    def reply(prompt, params):
        return "the sum is 3" if "<tool_response>" in prompt else said

    with serve(reply) as server:
        client = server.client()
        answer = client.chat.completions.create(model="fake", messages=USER, tools=[ADD]).choices[0]
        assert answer.finish_reason == "tool_calls"
        assert answer.message.content == "One moment."
        assert [json.loads(call.function.arguments) for call in answer.message.tool_calls] == [ARGUMENTS] * 2
        turns = [*USER, answer.message.model_dump(exclude_none=True)]
        turns += [{"role": "tool", "tool_call_id": call.id, "content": "3"} for call in answer.message.tool_calls]
        final = client.chat.completions.create(model="fake", messages=turns, tools=[ADD]).choices[0]
        assert (final.message.content, final.finish_reason) == ("the sum is 3", "stop")
        prompt = server.engine.tokenizer.decode(server.engine.seen[-1][0])
        assert prompt.count("<tool_call>\n{") >= 2
        assert '"name": "add"' in prompt
        text, calls = "", {}
        for chunk in client.chat.completions.create(model="fake", messages=USER, tools=[ADD], stream=True):
            text += chunk.choices[0].delta.content or ""
            for call in chunk.choices[0].delta.tool_calls or ():
                calls[call.index] = calls.get(call.index, "") + call.function.arguments
            reason = chunk.choices[0].finish_reason
        assert (text, reason) == ("One moment.", "tool_calls")
        assert [json.loads(arguments) for arguments in calls.values()] == [ARGUMENTS] * 2
        single = client.chat.completions.create(model="fake", messages=USER, tools=[ADD], parallel_tool_calls=False)
        assert len(single.choices[0].message.tool_calls) == 1


def test_tools_that_must_not_be_called_are_not_shown(serve):
    with serve(lambda prompt, params: f"<tool_call>{CALL}</tool_call>") as server:
        options = {"model": "fake", "messages": USER, "tools": [ADD], "tool_choice": "none"}
        answer = server.client().chat.completions.create(**options).choices[0]
        assert answer.message.tool_calls is None
        assert answer.finish_reason == "stop"
        assert "tools" not in server.engine.tokenizer.decode(server.engine.seen[-1][0])
