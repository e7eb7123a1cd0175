"""Find the answers in a rendered conversation: what the model has to write, including its stop token.

An answer is determined from the model's point of view. The turns before it, rendered with the generation prompt, are
the model's input; the answer is what the rendering of the turns up to it adds to that, up to the stop token. `{%
generation %}` narrows it down if a template has these marks.

The stop token is determined once per template, on a conversation whose contents are characters that occur nowhere else:
it is among the special tokens that follow an answer's content both at the end of a conversation and before the next
turn, without those that start that turn. If the two have no token in common (gpt-oss: `<|return|>`, later `<|end|>`),
it is the one at the end of the conversation, which is where a model stops.

An earlier answer is trained on within the rendering of a later one if it appears there as the model wrote it. Templates
that render it differently once turns follow (without its reasoning, with another stop token) give one rendering per
answer, so that every target has the context in which the model will write it. If the generation prompt opens a thought
(`<think>`) that the rendering of the answer lacks, the answer starts with the thought and its end.
"""

import json
import os.path
import re
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple, Protocol

from lit_gpt.data.chat.messages import FunctionCall, Message, Tool, ToolCall
from lit_gpt.errors import UserError

NO_REASONING = "without their reasoning, which the chat template does not support"
NO_NAME = "without the names of their messages, which the chat template does not support"
OTHER_OPENING = "whose answer starts differently in the chat template than its generation prompt"

# Contents of the conversations on which a template is tried: characters outside the range of the renderer's guards.
QUESTION, ANSWER, FOLLOWING = "\U000f0001", "\U000f0002", "\U000f0003"
ASKED = Message(role="user", content=QUESTION)
ANSWERED = Message(role="assistant", content=ANSWER)
CALLED = ToolCall(type="function", id="abcdefgh1", function=FunctionCall(name="f", arguments={"k": ANSWER}))
CALLING = Message(role="assistant", content="", tool_calls=[CALLED])
RETURNED = Message(role="tool", content=FOLLOWING, name="f", tool_call_id="abcdefgh1")
TOOL: Tool = {
    "type": "function",
    "function": {
        "name": "f",
        "description": "d",
        "parameters": {"type": "object", "properties": {"k": {"type": "string", "description": "d"}}},
    },
}
_THOUGHT = re.compile(r"\s*<think>(.*?)</think>", re.DOTALL)


class Render(Protocol):
    """Renders messages."""

    def __call__(
        self, messages: Sequence[Message], add_generation_prompt: bool, tools: Sequence[Tool], marks: bool = False
    ) -> tuple[str, list[tuple[int, int]]]:
        """Return the text, and the spans marked by `{% generation %}` if `marks`."""
        ...


class Ending(NamedTuple):
    """How a template ends an answer."""

    stop: str
    """Special token that the model has to write."""
    rest: str
    """Text that the template puts after it at the end of a conversation."""


class Answer(NamedTuple):
    """Position of an answer in the rendering of the conversation that ends with it."""

    text: str
    """That rendering, up to the stop token."""
    spans: list[tuple[int, int]]
    """(start, end) of the spans that are trained on."""
    notes: tuple[str, ...]


class AnswerFinder:
    """Finds answers in the output of a template.

    Args:
        render: Renders messages with the template.
        special: Pattern of the tokenizer's special tokens; None if it has none.
        name: Name of the template in messages.
        marks: Whether the template marks answers with `{% generation %}`.
    """

    def __init__(self, render: Render, special: re.Pattern[str] | None, name: str, marks: bool) -> None:
        self._render = render
        self._special = special
        self._name = name
        self._marks = marks

    # ------------------------------------------------------------------ how answers end

    @cached_property
    def after_content(self) -> Ending | None:
        """Ending of an answer in text; None: without a special token."""
        return self._ending(ANSWERED, Message(role="user", content=FOLLOWING), [])

    @cached_property
    def after_calls(self) -> Ending | None:
        """Ending of an answer that calls tools; None: without a special token, or there is no format for calls."""
        try:
            ending = self._ending(CALLING, RETURNED, [TOOL])
        except UserError:
            return None
        try:
            twice = self._render([ASKED, Message(**{**CALLING, "tool_calls": [CALLED, CALLED]})], False, [TOOL])[0]
        except UserError:  # a template may allow one call in a turn
            return ending
        # DeepSeek-R1's template ends only multiple calls; the text between two of them contains no stop token.
        return (
            None if ending is not None and ending.stop in twice.partition(ANSWER)[2].rpartition(ANSWER)[0] else ending
        )

    def _ending(self, answer: Message, following: Message, tools: list[Tool]) -> Ending | None:
        ended = self._render([ASKED, answer], False, tools)[0]
        if ANSWER not in ended or self._special is None:
            return None
        tail = ended.rpartition(ANSWER)[2]
        common = len(tail)
        try:
            continued = self._render([ASKED, answer, following], False, tools)[0]
        except UserError:  # a template may allow no second question
            continued = ""
        if ANSWER in continued and FOLLOWING in continued:
            common = _shared(tail, continued.rpartition(ANSWER)[2].partition(FOLLOWING)[0])
        tokens = list(self._special.finditer(tail))
        stop = None
        for token in tokens:
            if token.end() > common or (stop is not None and token[0] in self._openers):
                break
            stop = token
        if stop is None:
            stop = next((token for token in tokens if token[0] not in self._openers), None)
        return None if stop is None else Ending(stop[0], tail[stop.end() :])

    @cached_property
    def _openers(self) -> set[str]:
        """Special tokens before the first content of a conversation, which start a turn."""
        try:
            text = self._render([Message(role="system", content=QUESTION), ASKED], False, [])[0]
        except UserError:  # no system messages
            text = self._render([ASKED], False, [])[0]
        assert self._special is not None
        return set(self._special.findall(text.partition(QUESTION)[0]))

    # ------------------------------------------------------------------ where answers are

    def find(self, messages: Sequence[Message], index: int, tools: Sequence[Tool], check: bool = True) -> Answer:
        """Find the answer `messages[index]` in the rendering of the conversation up to it.

        Args:
            messages: The conversation.
            index: Index of the answer.
            tools: Tools that the assistant may call.
            check: Whether to reject a rendering that lacks parts of the conversation.

        Raises:
            UserError: if the template does not render it, does not end it with its stop token, or omits it.
        """
        message, number = messages[index], index + 1
        prompt = self._render(messages[:index], True, tools)[0]
        text, marked = self._render(messages[: index + 1], False, tools, self._marks)
        notes: tuple[str, ...] = ()
        start = len(prompt)
        departs = not text.startswith(prompt)
        opens_thought = departs and prompt.rstrip().endswith("<think>")
        if departs:
            start = self._first_difference(messages[: index + 1], prompt, text, tools)
            notes = () if opens_thought else (OTHER_OPENING,)
        ending = self.after_calls if message.get("tool_calls") else self.after_content
        if ending is None and message.get("tool_calls"):
            raise UserError(
                f"the chat template ({self._name}) has no format for tool calls, or none that ends in a special "
                "token; use a template that has one (chat_template), or remove such rows"
            )
        if ending is None:
            raise UserError(
                f"the chat template ({self._name}) ends message {number} as {text[start:][-40:]!r}, with no special "
                "token of the tokenizer, so a model could not learn to stop"
            )
        end = len(text) - len(ending.rest)
        if not (text.endswith(ending.rest) and text.endswith(ending.stop, start, end)):
            raise UserError(
                f"the chat template ({self._name}) ends message {number} as {text[start:][-40:]!r} rather than with "
                f"{ending.stop!r}, so a model could not learn to stop"
            )
        spans = self._marked(marked, start, end, number) if self._marks else [(start, end)]
        text = text[:end]
        if opens_thought:
            text = prompt + _after_thought(message, text[start:])
            shift = len(text) - end
            spans = [(first + shift, last + shift) for first, last in spans]
            start, spans[0] = len(prompt), (len(prompt), spans[0][1])
        if check:
            notes += self._check(messages[: index + 1], prompt, text[start:], tools)
        return Answer(text, spans, notes)

    def _marked(self, marked: list[tuple[int, int]], start: int, end: int, number: int) -> list[tuple[int, int]]:
        """Return the marked parts of an answer, with adjacent ones joined."""
        spans: list[tuple[int, int]] = []
        for first, last in marked:
            first, last = max(first, start), min(last, end)
            if first >= last:
                continue
            if spans and spans[-1][1] == first:
                spans[-1] = (spans[-1][0], last)
            else:
                spans.append((first, last))
        if not spans or spans[-1][1] != end:
            what = "its stop token" if spans else "it"
            raise UserError(
                f"the chat template ({self._name}) has message {number}, an answer, but {what} outside of its "
                "{% generation %} marks; put content and stop token of every answer between {% generation %} and "
                "{% endgeneration %}"
            )
        return spans

    def _first_difference(self, messages: Sequence[Message], prompt: str, text: str, tools: Sequence[Tool]) -> int:
        """Return the start of an answer that does not start with its generation prompt: where the two first differ.

        The answer's first characters could coincide with those of the prompt, so they are replaced.
        """
        blank = Message(**{**messages[-1], "content": ANSWER})
        if "reasoning_content" in blank:
            blank["reasoning_content"] = ANSWER
        start = _shared(prompt, text, self._render([*messages[:-1], blank], False, tools)[0])
        without = self._render(messages[:-1], False, tools)[0]
        if start < _shared(prompt, without):
            raise UserError(
                f"the chat template ({self._name}) renders the turns before message {len(messages)} differently once "
                "it follows, so its answer cannot be separated from its prompt; put content and stop token of every "
                "answer between {% generation %} and {% endgeneration %}, and do not "
                "change earlier turns"
            )
        return start

    # ------------------------------------------------------------------ whether all of it is there

    def _check(self, messages: Sequence[Message], prompt: str, answer: str, tools: Sequence[Tool]) -> tuple[str, ...]:
        """Raise if a rendering lacks something; return notes on it that are to be counted."""
        given, written = _without_white_space(prompt), _without_white_space(answer)
        for number, message in enumerate(messages, start=1):
            content = message["content"]
            if message["role"] != "assistant" and not (
                _without_white_space(content) in given or _without_white_space(_escaped(content)) in given
            ):
                raise self._left_out(f"message {number} ({message['role']})", content)
        for tool in tools:
            if str(tool["function"].get("name")) not in prompt:
                raise self._left_out("the tools", tool["function"].get("name"))
        notes: list[str] = []
        for number, message in enumerate(messages, start=1):
            if message["role"] != "assistant" or (number < len(messages) and message.get("weight", 1)):
                continue  # what is learned is checked as the last of its own rendering
            shown = written if number == len(messages) else given
            content, reasoning = message["content"], message.get("reasoning_content", "")
            thought = _THOUGHT.match(content)
            if thought is not None:
                content, reasoning = content[thought.end() :], reasoning + thought[1]
            if _without_white_space(content) not in shown:
                raise self._left_out(f"message {number} (assistant)", content)
            if _without_white_space(reasoning) not in shown:
                notes.append(NO_REASONING)
        message, number = messages[-1], len(messages)
        calls = [call["function"] for call in message.get("tool_calls", ())]
        for name, count in Counter(call["name"] for call in calls).items():
            if answer.count(name) < count:
                raise self._left_out(f"a tool call of message {number}", name)
        for call in calls:
            arguments = call["arguments"]
            for key, value in (json.loads(arguments) if isinstance(arguments, str) else arguments).items():
                texts = (value, _escaped(value)) if isinstance(value, str) else (json.dumps(value, ensure_ascii=False),)
                is_there = not isinstance(value, str | int) or any(
                    _without_white_space(text).lower() in written.lower() for text in texts
                )
                if _without_white_space(key) not in written or not is_there:
                    raise self._left_out(f"an argument of a tool call of message {number}", f"{key}: {value}")
        called = {call["function"]["name"] for turn in messages for call in turn.get("tool_calls", ())}
        names = {turn["name"] for turn in messages if "name" in turn} - called
        if not all(name in prompt or name in answer for name in names):
            notes.append(NO_NAME)
        return tuple(dict.fromkeys(notes))

    def _left_out(self, what: str, content: str) -> UserError:
        shown = content if len(content) <= 60 else content[:60] + "..."
        return UserError(
            f"the chat template ({self._name}) leaves out {what} or a part of it: {shown!r}; use a template that "
            "renders it (chat_template), or remove it from the row"
        )


def _after_thought(message: Message, rendered: str) -> str:
    """Return what a model writes after a generation prompt that ends with `<think>`, as DeepSeek-R1's and Nemotron's.

    Their templates render an answer as in the history of a conversation, with its reasoning removed. What the model has
    to write is its reasoning, if there is any, the end of the thought, and then the answer.

    Args:
        message: The answer.
        rendered: Its rendering, from where it differs from the generation prompt.
    """
    if rendered.startswith("</think>"):  # Nemotron closes an empty thought
        return rendered
    thought = _THOUGHT.match(message["content"])
    reasoning = message.get("reasoning_content", "") + ("" if thought is None else thought[1])
    return reasoning.strip("\n") + "\n</think>\n\n" + rendered.lstrip("\n")


def _shared(*texts: str) -> int:
    """Return the length of the texts' common prefix."""
    return len(os.path.commonprefix(texts))  # noqa: RUF071 (of texts, not of paths)


def _without_white_space(text: str) -> str:
    """Return a text without white space, which templates strip and add."""
    return "".join(text.split())


def _escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]
