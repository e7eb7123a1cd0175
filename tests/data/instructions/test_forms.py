"""Every usual form of a row becomes the same conversation; what cannot is said."""

import json

import pytest

from lit_gpt.data.instructions import StdlibInstructions, conversation_of, preference_of
from lit_gpt.data.instructions.stdlib import described_functions
from lit_gpt.data.records import BadInput
from lit_gpt.errors import UserError

USER, ANSWER = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, ANSWER]},
        {"messages": json.dumps([USER, ANSWER])},
        {"messages": [USER, ANSWER], "prompt": "Q", "prompt_id": "7"},  # UltraChat's
        {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}], "id": "1"},
        {"instruction": "Q", "input": "", "output": "A"},
        {"instruction": "Q", "context": "", "response": "A", "category": "open_qa"},
        {"instruction": "Q", "output": "A", "input": None},
        {"prompt": "Q", "completion": "A"},
        {"prompt": [USER], "completion": [ANSWER]},
        {"question": "Q", "answer": "A"},
    ],
)
def test_forms(row):
    conversation = conversation_of(row)
    assert conversation.messages == [USER, ANSWER]
    assert conversation.prompt == [USER]


def test_inputs_systems_and_columns():
    row = {"instruction": "Q", "input": "I", "output": "A", "system": "S"}
    assert [m["content"] for m in conversation_of(row).messages] == ["S", "Q\n\nI", "A"]
    assert (
        next(m["content"] for m in conversation_of({"prompt": "Q", "answer": "A"}, system_prompt="S").messages) == "S"
    )
    named = {"prompt": "q", "completion": "a"}
    mapped = conversation_of({"q": "Q", "a": "A", "answer": "no"}, named, ignore_fields=["answer"])
    assert mapped.left_out == ("answer",)
    assert mapped.messages == [USER, ANSWER]
    chat = {
        "conversations": [
            {"from": "system", "value": " "},
            {"from": "human", "value": "Q"},
            {"from": "gpt", "value": "A"},
        ]
    }
    assert conversation_of(chat).messages == [USER, ANSWER]


def test_tool_calls_of_sharegpt():
    turns = [
        {"from": "human", "value": "Q"},
        {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
        {"from": "observation", "value": "2"},
        {"from": "gpt", "value": "A"},
    ]
    conversation = conversation_of({"conversations": turns, "tools": '[{"name": "f"}]'})
    assert [m["role"] for m in conversation.messages] == ["user", "assistant", "tool", "assistant"]
    assert conversation.messages[1]["tool_calls"][0]["function"] == {"name": "f", "arguments": {"x": 1}}
    assert conversation.tools == [{"name": "f"}]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "none"),
        ({"text": "x"}, "its fields are 'text'"),
        ({"instruction": "x"}, "no answer"),
        ({"instruction": None, "output": "y"}, "null"),
        ({"instruction": "x", "output": ""}, "empty answer"),
        ({"instruction": "", "output": "x"}, "empty"),
        ({"instruction": 3, "output": "x"}, "int, not text"),
        ({"prompt": "x", "completion": "y", "answer": "z"}, "both 'completion' and 'answer'"),
        ({"prompt": 3, "completion": "y"}, "int, not text or messages"),
        ({"messages": "x"}, "not JSON"),
        ({"messages": [ANSWER, USER]}, "out of order"),
        ({"messages": []}, "no messages"),
        ({"conversations": [{"from": "alien", "value": "x"}]}, "alien"),
        ({"conversations": [{"value": "x"}]}, "lacks 'from'"),
        ({"prompt": "x", "completion": "y", "tools": "{}"}, "not a list"),
    ],
)
def test_rows_that_cannot_be_used(row, message):
    with pytest.raises(UserError, match=message):
        conversation_of(row)


MODULE = '''
class A:
    @property
    def area(self,
             unit="m"):
        """Return the area.

        In square metres.
        """
        # computed
        return self.a * self.b

    def nothing(self):
        """Only a docstring."""

def one(): "On one line."; return 1

async def later():
    """Not a plain function."""
    return 1
'''


def test_functions_of_a_module():
    (function,) = described_functions(MODULE)
    assert function.signature == 'def area(self,\n         unit="m"):'
    assert function.completion == 'def area(self,\n         unit="m"):\n    return self.a * self.b'
    assert function.prompt.endswith('unit="m"):\n\nReturn the area.\n\nIn square metres.')
    assert list(described_functions("def broken(:")) == []


def test_the_standard_library_has_instructions():
    source = StdlibInstructions(max_lines=5)
    source.files = source.files[:60]
    rows = list(source.records(BadInput()))
    assert len(rows) > 50
    for row in rows:
        compile(row.values["completion"], "x", "exec", dont_inherit=True)
        assert row.values["completion"].count("\n") < 5
        assert row.values["completion"].splitlines()[0] in row.values["prompt"]
        assert row.split_key


def test_sharegpt_preferences():
    turns = [{"from": "system", "value": "be kind"}, {"from": "human", "value": "hi"}]
    sides = {"chosen": {"from": "gpt", "value": "hello"}, "rejected": {"from": "gpt", "value": "go"}}
    expected = (
        [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}],
        [{"role": "assistant", "content": "hello"}],
        [{"role": "assistant", "content": "go"}],
    )
    assert preference_of({"conversations": turns, **sides})[:3] == expected
    assert preference_of({"prompt": turns, **{name: [side] for name, side in sides.items()}})[:3] == expected
    assert preference_of({name: [*turns, side] for name, side in sides.items()})[:3] == expected
    with pytest.raises(UserError, match="lacks 'from' or 'value'"):
        preference_of({"conversations": turns, **sides, "chosen": {"from": "gpt"}})
