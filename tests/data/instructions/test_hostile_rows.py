"""Rows that people really have and nobody meant: each is refused by name, or nothing of it is lost in silence."""

import datetime
import json

import pytest

from lit_gpt.data.chat import CHAT_TEMPLATES, ChatRenderer, ChatTemplate, load_chat_template, with_chat_template
from lit_gpt.data.chat.answers import NO_REASONING
from lit_gpt.data.instructions import InstructionEncoder, PreferenceEncoder, conversation_of, preference_of
from lit_gpt.data.prompts import PromptEncoder, prompt_of
from lit_gpt.data.records import BadInput, Record, read_records
from lit_gpt.errors import UserError

DEEP = "[" * 100_000
USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
TOOL = {"name": "search", "description": "Looks it up.", "parameters": {}}


@pytest.fixture
def renderer(tokenizer):
    return lambda name="qwen": ChatRenderer(with_chat_template(tokenizer, load_chat_template(name)))


def row(**values):
    return Record(values, "f.jsonl", 7)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"tool_calls": 3}, "tool_calls of message 2 are a int, not a list"),
        ({"tool_calls": "[]"}, "tool_calls of message 2 are a str, not a list"),
        ({"tool_calls": [{"name": "f", "arguments": DEEP}]}, "arguments of f are not JSON"),
        ({"content": [{"type": "text"}]}, "part of type 'text' without text"),
        ({"weight": "0"}, "weight of message 2 is '0'"),
        ({"weight": 0.5}, "weight of message 2 is 0.5"),
        ({"weight": float("nan")}, "weight of message 2 is nan"),
        ({"reasoning_content": {"a": 1}}, "reasoning_content of message 2 is a dict"),
    ],
)
def test_a_turn_with_a_field_of_the_wrong_kind(change, problem):
    with pytest.raises(UserError, match=problem):
        conversation_of({"messages": [USER, {**ANSWER, **change}]})


@pytest.mark.parametrize("field", ["messages", "conversations"])
def test_json_that_is_nested_too_deeply(field):
    with pytest.raises(UserError, match=f"'{field}' is text that is not JSON"):
        conversation_of({field: DEEP})


def test_a_row_with_two_inputs_is_not_halved():
    with pytest.raises(UserError, match="both 'input' and 'context'"):
        conversation_of({"instruction": "i", "input": "x", "context": "y", "output": "o"})


def test_every_character_of_the_first_private_range(renderer):
    """The character that keeps `<|im_end|>` apart in a content is one that the content has not."""
    text = "".join(map(chr, range(0xE000, 0xE100))) + "<|im_end|>"
    chat = renderer()([{"role": "user", "content": text}, ANSWER])
    assert chat.ids.count(chat.ids[-2]) == 2  # the two turns' own ends
    assert text in chat.text
    everything = "".join(map(chr, range(0xE000, 0xF900)))
    with pytest.raises(UserError, match="private use"):
        renderer()([{"role": "user", "content": everything}])


def test_a_private_character_of_a_tool_stays(renderer):
    """Tools are looked at too when that character is chosen."""
    tool = {"name": "f", "description": "\ue000 and \ue001", "parameters": {}}
    assert "\ue000 and \ue001" in renderer()([USER], tools=[tool]).text


def test_preferences_and_prompts_keep_the_rows_system_prompt():
    """Orca's pairs have `system`: it was read by SFT alone."""
    system = {"role": "system", "content": "S"}
    assert preference_of({"system": "S", "prompt": "q", "chosen": "a", "rejected": "b"}).prompt == [system, USER]
    assert prompt_of({"system": "S", "question": "q"}, system_prompt="other") == [system, USER]
    assert prompt_of({"system": " ", "question": "q"}, system_prompt="other")[0]["content"] == "other"
    own = [{"role": "system", "content": "own"}, USER]
    assert prompt_of({"system": "own", "messages": own}) == own
    assert prompt_of({"messages": json.dumps(own)}) == own  # a csv's
    with pytest.raises(UserError, match="different system prompts in 'messages' and 'system'"):
        prompt_of({"system": "S", "messages": own})
    with pytest.raises(UserError, match="'system' is dict"):
        preference_of({"system": {}, "prompt": "q", "chosen": "a", "rejected": "b"})


def test_a_prompt_in_hh_form_is_read_as_turns():
    """Copies of HH-RLHF have what the answers share in `prompt`: not one message that spells out both speakers."""
    prompt = "\n\nHuman: q\n\nAssistant: a\n\nHuman: q\n\nAssistant:"
    preference = preference_of({"prompt": prompt, "chosen": "a", "rejected": "b"})
    assert preference[:3] == ([USER, ANSWER, USER], [ANSWER], [{"role": "assistant", "content": "b"}])
    assert preference_of({"prompt": "\n\nHuman: q", "chosen": "a", "rejected": "b"}).prompt == [USER]


def test_preferences_and_prompts_render_the_rows_tools(renderer):
    decode = renderer().tokenizer.decode
    pair = PreferenceEncoder(renderer(), 2000)(row(prompt="q", chosen="a", rejected="b", tools=[TOOL]))
    prompt = PromptEncoder(renderer(), 2000)(row(prompt="q", tools=json.dumps([TOOL])))
    (sft,) = InstructionEncoder(renderer(), 2000)(row(prompt="q", completion="a", tools=[TOOL]))
    assert pair.sequences[0] == sft.sequences[0]
    ids = prompt.sequences[0].ids
    assert ids == sft.sequences[0].ids[: len(ids)]
    assert "Looks it up." in decode(ids)
    with pytest.raises(UserError, match="'tools' is not a list"):
        PromptEncoder(renderer(), 2000)(row(prompt="q", tools={"a": 1}))


def test_reasoning_that_a_template_leaves_out_is_counted(renderer):
    turns = [USER, {**ANSWER, "reasoning_content": "because"}]
    (encoded,) = InstructionEncoder(renderer(), 2000)(row(messages=turns))
    assert encoded.notes == (NO_REASONING,)
    own = ChatTemplate(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}"
        "{{ m.reasoning_content }}/{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>"
        "{% endif %}{% endfor %}",
        "own",
    )
    (encoded,) = InstructionEncoder(ChatRenderer(renderer().tokenizer, own), 2000)(row(messages=turns))
    learned = [i for i, mine in zip(*encoded.sequences[0], strict=True) if mine]
    assert renderer().tokenizer.decode(learned[:-1]) == "because/a"
    assert encoded.notes == ()


def test_a_date_beside_a_prompt_is_kept_as_text(renderer):
    encoded = PromptEncoder(renderer(), 2000)(row(prompt="q", day=datetime.date(2026, 1, 2)))
    assert json.loads(encoded.attached)["row"]["day"] == "2026-01-02"


@pytest.mark.parametrize("name", CHAT_TEMPLATES)
def test_a_prompt_is_the_beginning_of_its_training_row(name, renderer):
    """What the model is prompted with has the very ids that it was trained on, whatever the contents spell."""
    nasty = "<|im_end|></s><eos>[/INST]### Response:\n<|eot_id|>{{ 1 }}{% generation %}\n\n é👍🏽 <end_of_turn>"
    chat = renderer(name)
    turns = [{"role": "user", "content": nasty}, {"role": "assistant", "content": nasty}]
    turns = [*turns, {"role": "user", "content": " again"}]
    prompt = PromptEncoder(chat, 2000)(row(messages=turns)).sequences[0].ids
    (encoded,) = InstructionEncoder(chat, 2000)(row(messages=[*turns, ANSWER]))
    whole = encoded.sequences[0]
    assert whole.ids[: len(prompt)] == prompt
    assert whole.mask[len(prompt) :] == [True] * (len(whole.ids) - len(prompt))
    assert chat.tokenizer.decode(whole.ids[len(prompt) : -1]) == "a"


def test_a_quote_that_is_never_closed_swallows_no_rows(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('p,c\na,b\nc,"d\ne,f\ng,h\n')
    bad_input = BadInput("skip")
    assert list(read_records(path, "a.csv", bad_input)) == []  # a file that fails half-way leaves nothing behind
    assert len(bad_input.named) == 1
    assert bad_input.named[0].startswith("a.csv:3: lines 3 to 5: it is not CSV (unexpected end of data); is each quote")


def test_rows_after_a_bad_csv_row_are_read(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('p,c\n"a"x,b\nc,"d ""q""\nd"\n')
    bad_input = BadInput("skip")
    assert list(read_records(path, "a.csv", bad_input)) == [Record({"p": "c", "c": 'd "q"\nd'}, "a.csv", 4)]
    assert bad_input.named[0].startswith("a.csv:2: line 2")


def test_two_columns_of_one_name(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("p,c,c\na,b,other\n")
    with pytest.raises(UserError, match="a.csv:1: two columns are named 'c'"):
        list(read_records(path, "a.csv", BadInput()))
