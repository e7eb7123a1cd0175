"""Templates of public models: under each, exactly the assistant's words and stop tokens are learned, or a reason is given.

`templates/expected.yaml` says what that is; `templates/SOURCES.md` where the templates are from.
"""

import re
from pathlib import Path

import pytest
import yaml

from lit_gpt.data.chat import ChatRenderer, ChatTemplate, check_messages, normalise_messages, with_chat_template
from lit_gpt.data.chat.answers import NO_REASONING, OTHER_OPENING
from lit_gpt.errors import UserError

FOLDER = Path(__file__).parent / "templates"
EXPECTED = yaml.safe_load((FOLDER / "expected.yaml").read_text(encoding="utf-8"))
SPECIAL = re.compile(  # what the families' tokenizers have as special tokens
    r"<\|?(?:im_\w+|endoftext|end|user|assistant|system|observation|eo\w+|\w+_header_id|begin_of_text|start|message"
    r"|channel|return|call|[A-Z_]+|tool_\w+)\|>|</?s>|<\w+_of_turn>|<end_of_utterance>|\[/?[A-Z_]+\]|\[gMASK\]|<sop>"
    r"|<｜[^｜<>]+｜>|</?seed:\w+>|<\|?(?:turn|tool_call|tool_response|channel)\|?>"
)
SYSTEM = {"role": "system", "content": "Be brief."}
USER, HELLO = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
AGAIN, BYE = {"role": "user", "content": "Go on"}, {"role": "assistant", "content": "Bye"}
CALL = {"id": "abcdefgh1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": "x"}'}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "2", "name": "add", "tool_call_id": "abcdefgh1"}
NUMBER, TEXT = {"type": "integer", "description": "n"}, {"type": "string", "description": "n"}
PARAMETERS = {"type": "object", "properties": {"a": NUMBER, "b": TEXT}}
TOOLS = [{"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": PARAMETERS}}]
INLINE = "<think>\nbecause\n</think>\n\nHello"
SITUATIONS = {
    "single": [USER, HELLO],
    "multi": [USER, HELLO, AGAIN, BYE],
    "system": [SYSTEM, USER, HELLO],
    "tools": [USER, CALLING, RESULT, BYE],
    "calls": [USER, CALLING, RESULT, BYE],  # the same without descriptions of the tools
    "reasoning": [USER, {**HELLO, "reasoning_content": "because"}, AGAIN, {**BYE, "thinking": "also"}],
    "inline": [USER, {**HELLO, "content": INLINE}],
    "empty": [USER, {**HELLO, "content": ""}],
    "twice": [USER, AGAIN, HELLO],
}


@pytest.fixture(scope="module")
def renderer_of(tokenizer):
    made = {}

    def renderer_of(name):
        if name not in made:
            source = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
            special = tuple(dict.fromkeys([*SPECIAL.findall(source), "<s>"]))
            made[name] = ChatRenderer(with_chat_template(tokenizer, ChatTemplate(source, name), special))
        return made[name]

    return renderer_of


def expected(family, situation):
    """What is learned, sequence by sequence, or the reason of a refusal; and what is counted."""
    if situation == "empty":
        return "empty answer", set()
    if situation == "twice":
        return "out of order: message 2", set()
    if "refused" in family and situation not in ("tools", "calls"):
        return family["refused"], set()
    if situation == "system" and "system" in family:
        return family["system"], set()
    if situation in ("tools", "calls") and "call" not in family:
        return "no format for tool calls", set()
    if situation == "tools" and family.get("tools") == "left out":
        return "leaves out the tools", set()
    opens, stop, thought = family.get("opens", ""), family["stop"], family.get("thought")
    inline = family.get("inline", "kept")
    if situation == "inline" and inline == "refused":
        return "leaves out message 2", set()
    counted = set()
    if (situation == "reasoning" and thought is None) or (situation == "inline" and inline == "dropped"):
        counted.add(NO_REASONING)
    hello, bye = opens + "Hello" + stop, opens + "Bye" + stop
    answers = [hello]
    if situation == "multi":
        answers = [hello, bye]
    elif situation in ("tools", "calls"):
        answers = [family["call"], family.get("replies", opens) + "Bye" + stop]
    elif situation == "reasoning" and thought is None:
        answers = [hello, bye]
    elif situation == "reasoning":
        answers = [thought.format("because") + "Hello" + stop, thought.format("also") + "Bye" + stop]
    elif situation == "inline":
        texts = {"kept": opens + INLINE, "dropped": opens + "\n\nHello"}
        if inline == "parsed":
            texts["parsed"] = thought.format("because") + "Hello"
        answers = [texts.get(inline, inline) + stop]
    return answers if situation in family.get("splits", ()) else ["".join(answers)], counted


def test_the_collection():
    assert set(EXPECTED) == {path.stem for path in FOLDER.glob("*.jinja")}
    assert len(EXPECTED) >= 40


@pytest.mark.parametrize("name", EXPECTED)
def test_learned_tokens(name, renderer_of):
    renderer = renderer_of(name)
    for situation, messages in SITUATIONS.items():
        wanted, counted = expected(EXPECTED[name], situation)
        tools = TOOLS if situation == "tools" else []
        turns = normalise_messages(messages)
        if isinstance(wanted, str):
            with pytest.raises(UserError, match=re.escape(wanted)):
                check_messages(turns, for_training=True)
                renderer.learned(turns, tools)
            continue
        check_messages(turns, for_training=True)
        found = renderer.learned(turns, tools)
        decode = renderer.tokenizer.decode
        learned = [[i for i, mine in zip(one.ids, one.mask, strict=True) if mine] for one in found]
        assert [decode(ids) for ids in learned] == wanted, situation
        assert {note for one in found for note in one.notes} == counted, situation
        for one, ids in zip(found, learned, strict=True):
            assert ids[-1] in renderer.stop_ids, situation
            assert decode(one.ids) == one.text, situation
        last = found[-1]  # what is learned follows the very prompt that the model will be given
        begin = max(i for i in range(1, len(last.ids)) if last.mask[i] and not last.mask[i - 1])
        assert renderer(turns[:-1], True, tools).ids == last.ids[:begin], situation


@pytest.mark.parametrize("name", [name for name, family in EXPECTED.items() if "refused" not in family])
def test_the_stop_token(name, renderer_of):
    renderer = renderer_of(name)
    renderer.check()
    stops = [renderer.tokenizer.decode([index]) for index in renderer.stop_ids]
    family = EXPECTED[name]
    assert family["stop"].endswith(stops[0])
    assert "call" not in family or any(family["call"].endswith(stop) for stop in stops[:2])


def test_a_template_that_writes_the_wrong_token_under_some_answers(tokenizer):
    source = (FOLDER / "own_parts_only.jinja").read_text(encoding="utf-8")
    source = source.replace(
        "'<|im_end|>\\n'", "'\\n' if message.role == 'assistant' and loop.index > 2 else '<|im_end|>\\n'"
    )
    renderer = ChatRenderer(with_chat_template(tokenizer, ChatTemplate(source, "own"), ("<|im_start|>", "<|im_end|>")))
    with pytest.raises(UserError, match=r"message 4 as 'Bye\\n' rather than with '<\|im_end\|>'"):
        renderer.learned(SITUATIONS["multi"])


def test_answers_that_do_not_start_with_their_generation_prompt_are_counted(tokenizer):
    source = (FOLDER / "own_parts_only.jinja").read_text(
        encoding="utf-8"
    ) + "{% if add_generation_prompt %}A: {% endif %}"
    renderer = ChatRenderer(with_chat_template(tokenizer, ChatTemplate(source, "own"), ("<|im_start|>", "<|im_end|>")))
    [found] = renderer.learned(SITUATIONS["single"])
    assert found.notes == (OTHER_OPENING,)
    assert renderer.tokenizer.decode([i for i, mine in zip(found.ids, found.mask, strict=True) if mine]).endswith(
        "Hello<|im_end|>"
    )
