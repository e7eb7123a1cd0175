"""No field of a row, a turn or a call is dropped in silence: it is honoured, reported as left out, or refused by name."""

import pytest

from lit_gpt.data.instructions import conversation_of, preference_of
from lit_gpt.data.instructions.forms import METADATA
from lit_gpt.data.prompts import prompt_of
from lit_gpt.errors import UserError

USER, ANSWER = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}}


@pytest.mark.parametrize(
    ("fields", "weight"),
    [
        ({"weight": 0}, 0),
        ({"weight": 1.0}, 1),
        ({"train": False}, 0),
        ({"training": True}, 1),
        ({"loss": False}, 0),
        ({"loss_weight": 0.0}, 0),
        ({"masked": True}, 0),
        ({"masked": False, "train": True}, 1),
        ({"train": None}, None),
    ],
)
def test_whether_a_turn_is_learned_is_honoured_in_both_forms(fields, weight):
    openai = conversation_of({"messages": [USER, {**ANSWER, **fields}]})
    sharegpt = conversation_of(
        {"conversations": [{"from": "human", "value": "Q", "weight": 0}, {"from": "gpt", "value": "A", **fields}]}
    )
    assert openai.messages[1].get("weight") == weight
    assert sharegpt.messages == [{**USER, "weight": 0}, openai.messages[1]]


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_under_any_name(name):
    turn = {"from": "gpt", "value": "A", name: "because"}
    wanted = {**ANSWER, "reasoning_content": "because"}
    assert conversation_of({"messages": [USER, {**ANSWER, name: "because"}]}).messages[1] == wanted
    assert conversation_of({"conversations": [{"from": "human", "value": "Q"}, turn]}).messages[1] == wanted


def test_a_function_call_is_a_tool_call_whose_arguments_stay_as_they_are():
    old = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"x":1}'}}
    new = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    rest = [{"role": "function", "name": "f", "content": "2"}, ANSWER]
    first = conversation_of({"messages": [USER, old, *rest]}).messages[1]
    assert first["tool_calls"] == [{"type": "function", "function": {"name": "f", "arguments": '{"x":1}'}}]
    assert conversation_of({"messages": [USER, new, *rest]}).messages[1]["tool_calls"] == [CALL]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"train_detail": [1]}, "train_detail"),
        ({"refusal": "no"}, "refusal"),
        ({"loss_weight": 0.5}, "loss_weight of message 2 is 0.5"),
        ({"train": "no"}, "train of message 2 is 'no'"),
        ({"train": True, "weight": 0}, r"message 2 .*\(weight, train\)"),
        ({"thinking": "a", "reasoning": "b"}, "two different reasonings"),
        ({"tool_calls": [{**CALL, "result": 3}]}, "'result'"),
        ({"tool_calls": [{"type": "function", "function": {**CALL["function"], "strict": True}}]}, "'strict'"),
        ({"tool_calls": [{**CALL, "type": "custom"}]}, "type 'custom'"),
        ({"tool_calls": [{"name": "f", "arguments": {}, "output": 1}]}, "'output'"),
    ],
)
def test_what_a_turn_says_that_is_unknown_is_refused_by_name(change, named):
    with pytest.raises(UserError, match=named):
        conversation_of({"messages": [USER, {**ANSWER, **change}]})
    with pytest.raises(UserError, match=named.replace("message 2", r"message \d")):
        preference_of({"prompt": "Q", "chosen": [{**ANSWER, **change}], "rejected": "B"})


def test_a_users_turn_cannot_be_learned():
    with pytest.raises(UserError, match=r"message 1 \(user\) is marked to be learned"):
        conversation_of({"messages": [{**USER, "train": True}, ANSWER]})


def test_fields_that_are_null_or_empty_say_nothing():
    turn = {**ANSWER, "refusal": None, "audio": None, "annotations": [], "function_call": None, "tool_calls": None}
    assert conversation_of({"messages": [USER, turn], "images": [], "extra": None, "note": ""}).left_out == ()


def test_alpaca_history_comes_first_and_is_learned():
    row = {"instruction": "Q2", "input": "I", "output": "A2", "history": [["Q", "A"]], "system": "S"}
    contents = [(turn["content"], turn.get("weight", 1)) for turn in conversation_of(row).messages]
    assert contents == [("S", 1), ("Q", 1), ("A", 1), ("Q2\n\nI", 1), ("A2", 1)]
    assert [turn["content"] for turn in prompt_of(row)] == ["S", "Q", "A", "Q2\n\nI"]
    pair = preference_of({"instruction": "Q2", "history": [["Q", "A"]], "chosen": "a", "rejected": "b"})
    assert [turn["content"] for turn in pair.prompt] == ["Q", "A", "Q2"]
    for history in ("[[1]]", [["Q"]], [{"q": "a"}], 3):
        with pytest.raises(UserError, match="'history' has"):
            conversation_of({**row, "history": history})


def test_openorcas_system_prompt():
    row = {"id": "t0.1", "system_prompt": "S", "question": "Q", "response": "A"}
    conversation = conversation_of(row)
    assert [turn["content"] for turn in conversation.messages] == ["S", "Q", "A"]
    assert conversation.left_out == ("id",)
    assert prompt_of(row)[0]["content"] == "S"
    pair = preference_of({"system": "S", "question": "Q", "chosen": "A", "rejected": "B"})  # Orca's pairs
    assert [turn["content"] for turn in pair.prompt] == ["S", "Q"]
    named = {"role": "system", "content": "S", "name": "rules"}
    assert conversation_of({"messages": [named, USER, ANSWER], "system": "S"}).messages[0] == named
    with pytest.raises(UserError, match="different system prompts in 'system' and 'system_prompt'"):
        conversation_of({**row, "system": "T"})


@pytest.mark.parametrize("read", [conversation_of, prompt_of, preference_of])
def test_pictures_are_refused(read):
    row = {"prompt": "Q", "images": ["a.png"]}
    row |= {"chosen": "A", "rejected": "B"} if read is preference_of else {"completion": "A"}
    with pytest.raises(UserError, match="'images' is not text"):
        read(row)


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({"messages": [USER, ANSWER], "prompt": "another"}, "'prompt' next to 'messages'"),
        ({"messages": [USER, ANSWER], "conversations": [{"from": "human", "value": "other"}]}, "'conversations'"),
        ({"prompt": "Q", "completion": "A", "instruction": "other"}, "'instruction'"),
        ({"question": "Q", "answer": "A", "weight": 0.5, "id": 1, "loss_mask": [1]}, "'weight', 'loss_mask'"),
        ({"prompt": "Q", "completion": "A", "chat_template_kwargs": {"x": 1}}, "'chat_template_kwargs'"),
        ({"prompt": "Q", "chosen": "A", "rejected": "B", "margin": 2.0}, "'margin'"),
        ({"prompt": "Q", "chosen": "A", "rejected": "B", "messages": [USER, {**ANSWER, "content": "C"}]}, "'messages'"),
    ],
)
def test_fields_that_nothing_reads_are_refused_with_the_remedy(row, named):
    read = preference_of if "chosen" in row else conversation_of
    with pytest.raises(UserError, match=named) as refused:
        read(row)
    ignored = str(refused.value).split("ignore_fields: [")[1].split("]")[0].split(", ")
    assert read(row, ignore_fields=ignored).left_out


def test_fields_that_repeat_the_row_or_are_about_it_are_reported():
    text = "Below is an instruction.\n\n### Instruction:\nQ\n\n### Input:\nI\n\n### Response:\nA"
    alpaca = {"instruction": "Q", "input": "I", "output": "A", "text": text}
    assert conversation_of(alpaca).left_out == ("text",)
    with pytest.raises(UserError, match="'text'"):
        conversation_of({**alpaca, "text": "something else"})
    ultra = {"prompt": "Q", "prompt_id": "7", "messages": [USER, ANSWER], "chosen": [USER, ANSWER], "score_chosen": 9.0}
    pair = preference_of({**ultra, "rejected": [USER, {**ANSWER, "content": "B"}], "score_rejected": 1.0})
    assert pair.left_out == ("prompt", "prompt_id", "messages", "score_chosen", "score_rejected")
    assert "text" not in METADATA


def test_ignored_fields_of_rows_and_turns():
    row = {"messages": [{**USER, "time": 1}, {**ANSWER, "time": 2}], "meta_a": 1, "meta_b": 2}
    assert conversation_of(row, ignore_fields=["time", "meta_*"]).left_out == ("meta_a", "meta_b", "time")
    assert conversation_of(row, ignore_fields=["*"]).messages == [USER, ANSWER]
    with pytest.raises(UserError, match="'prompt' next to 'messages'"):  # which of the two forms, is to be said
        conversation_of({**row, "prompt": "other"}, ignore_fields=["*"])
    with pytest.raises(UserError, match=r"message 1 \(user\) has the fields 'time'"):
        conversation_of(row, ignore_fields=["meta_*"])


def test_answers_within_a_prompt_are_context():
    earlier = [USER, ANSWER, {"role": "user", "content": "Q2"}]
    conversation = conversation_of({"prompt": earlier, "completion": [{**ANSWER, "content": "A2"}]})
    assert [turn.get("weight") for turn in conversation.messages] == [None, 0, None, None]
    assert conversation_of({"prompt": [USER, {**ANSWER, "weight": 1}, earlier[2]], "completion": "A2"}).messages[1] == {
        **ANSWER, "weight": 1,
    }  # fmt: skip


def test_a_tool_without_a_name():
    with pytest.raises(UserError, match="tool 2 has no name"):
        conversation_of({"prompt": "Q", "completion": "A", "tools": [{"name": "f"}, {"type": "function"}]})


def test_a_column_and_a_field_of_its_new_name():
    row = {"q": "Q", "prompt": "other", "completion": "A"}
    with pytest.raises(UserError, match="both 'prompt' and 'q'"):
        conversation_of(row, {"prompt": "q"})
    assert conversation_of(row, {"prompt": "q"}, ignore_fields=["prompt"]).messages[0]["content"] == "Q"
