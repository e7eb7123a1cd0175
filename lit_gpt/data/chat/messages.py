"""What a conversation is: OpenAI's messages, normalised and checked before a template sees them.

A template may raise about an order of roles that it cannot render, but most render nonsense in silence; so the order
is checked here, the same for every template.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

from lit_gpt.errors import UserError

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")
_OTHER_NAMES = {"developer": "system", "human": "user", "model": "assistant", "function": "tool", "ipython": "tool"}
_KEPT = ("name", "tool_call_id", "reasoning_content")

Tool = dict[str, Any]
"""A tool's description as OpenAI's API takes it: `{"type": "function", "function": {name, description, parameters}}`,
or the inner object alone."""


class FunctionCall(TypedDict):
    """Which function is called with what."""

    name: str
    arguments: dict[str, Any]


class ToolCall(TypedDict, total=False):
    """One call that the assistant makes."""

    type: Literal["function"]
    function: FunctionCall
    id: str


class Message(TypedDict, total=False):
    """One turn. `role` and `content` are always there after `normalise_messages`."""

    role: Role
    content: str
    tool_calls: list[ToolCall]
    name: str
    """Of the tool that answers."""
    tool_call_id: str
    reasoning_content: str
    """What the assistant thought, for templates that render it."""
    weight: int
    """0: an assistant's turn that is context only, not learned (OpenAI's fine-tuning format)."""


def normalise_messages(messages: object) -> list[Message]:
    """Return messages with plain text contents, known role names, and tool arguments as objects.

    Args:
        messages: Rows as people have them: contents that are null or lists of text parts, tool calls whose arguments
            are JSON strings, the roles `developer`, `human`, `model` and `function`.

    Raises:
        UserError: if one is no message, naming it by its place.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        raise UserError(f"the messages are a {type(messages).__name__}, not a list of {{role, content}}")
    return [_normalise(message, number) for number, message in enumerate(messages, start=1)]


def check_messages(messages: Sequence[Message], for_training: bool = False) -> None:
    """Refuse an order of roles that no model is trained on, and empty turns.

    The order: at most one system message, first; then the user; then user and assistant in turn. Tool results come
    between an assistant's message with tool calls and the assistant's next one.

    Args:
        messages: Normalised ones.
        for_training: The conversation must end with an answer, and no answer may be empty.

    Raises:
        UserError: naming the first message that is out of order, or empty.
    """
    if not messages:
        raise UserError("the conversation has no messages")
    before: str | None = None
    called = False
    for number, message in enumerate(messages, start=1):
        role = message["role"]
        allowed = _allowed_after(before, called)
        if role not in allowed:
            after = "at the beginning" if before is None else f"after {before!r}"
            raise UserError(
                f"roles out of order: message {number} is from {role!r} {after}, where only "
                f"{' or '.join(map(repr, allowed))} may come"
            )
        called = bool(message.get("tool_calls"))
        if called and role != "assistant":
            raise UserError(f"message {number} is from {role!r} and has tool_calls; only the assistant calls tools")
        if role == "user" and not message["content"].strip():
            raise UserError(f"message {number} (user) is empty")
        if for_training and role == "assistant" and not message["content"].strip() and not called:
            raise UserError(f"message {number} is an empty answer")
        before = role
    if for_training and before != "assistant":
        raise UserError(f"the conversation ends with {before!r}; the last message must be the assistant's answer")


def _allowed_after(before: str | None, called: bool) -> tuple[str, ...]:
    if before is None:
        return ("system", "user")
    if before == "system":
        return ("user",)
    if before == "user":
        return ("assistant",)
    if before == "tool":
        return ("tool", "assistant")
    return ("tool",) if called else ("user",)


def _normalise(message: object, number: int) -> Message:
    if not isinstance(message, Mapping):
        raise UserError(f"message {number} is a {type(message).__name__}, not an object with role and content")
    role = message.get("role")
    if isinstance(role, str):
        role = _OTHER_NAMES.get(role, role)
    if role not in ROLES:
        raise UserError(f"message {number} has the role {role!r}; it must be one of {', '.join(ROLES)}")
    result = Message(role=role, content=_text(message.get("content"), number))
    for name in _KEPT:
        value = message.get(name)
        if value is not None and not isinstance(value, str):
            raise UserError(f"the {name} of message {number} is a {type(value).__name__}, not text")
        if value is not None:
            result[name] = value  # type: ignore[literal-required]
    weight = message.get("weight")
    if weight is not None:
        if weight not in (0, 1):
            raise UserError(f"the weight of message {number} is {weight!r}; it must be 0 (context only) or 1")
        result["weight"] = int(weight)
    calls = message.get("tool_calls")
    if calls:
        if not isinstance(calls, Sequence) or isinstance(calls, str | bytes):
            raise UserError(f"the tool_calls of message {number} are a {type(calls).__name__}, not a list")
        result["tool_calls"] = [_call(call, number) for call in calls]
    if message.get("content") is None and "tool_calls" not in result:
        raise UserError(f"message {number} ({role}) has no content")
    return result


def _text(content: object, number: int) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        texts = []
        for part in content:
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            if kind != "text":
                raise UserError(f"message {number} holds a part of type {kind!r}; only text can be learned")
            if not isinstance(part.get("text"), str):
                raise UserError(f"message {number} holds a part of type 'text' without a text")
            texts.append(part["text"])
        return "".join(texts)
    raise UserError(f"the content of message {number} is a {type(content).__name__}, not text")


def _call(call: object, number: int) -> ToolCall:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise UserError(f"message {number} has a tool call without a function's name")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            raise UserError(f"message {number}: the arguments of {function['name']} are not JSON ({error})") from error
    if not isinstance(arguments, Mapping):
        raise UserError(f"message {number}: the arguments of {function['name']} are no JSON object")
    result = ToolCall(type="function", function=FunctionCall(name=function["name"], arguments=dict(arguments)))
    if isinstance(call, Mapping) and isinstance(call.get("id"), str):
        result["id"] = call["id"]
    return result
