"""Conversations as OpenAI messages, normalized and validated before a template sees them.

Some templates raise if they cannot render an order of roles, but most silently render nonsense; therefore the order is
validated here, in the same way for every template.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

from lit_gpt.errors import UserError

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")
_OTHER_NAMES = {"developer": "system", "human": "user", "model": "assistant", "function": "tool", "ipython": "tool"}
_KEPT = ("name", "tool_call_id")
_REASONING = ("reasoning_content", "reasoning", "thinking")
_LEARNED = {"weight": 1, "train": 1, "training": 1, "loss": 1, "loss_weight": 1, "masked": 0}
"""Fields that tell whether a turn is trained on → the value that means yes."""
MESSAGE_FIELDS = ("role", "content", "tool_calls", "function_call", *_KEPT, *_REASONING, *_LEARNED)
_CALL_FIELDS = ("id", "type", "index", "function")

Tool = dict[str, Any]
"""A tool's description as in OpenAI's API: `{"type": "function", "function": {name, description, parameters}}`, or only
the inner object."""


class FunctionCall(TypedDict):
    """Name and arguments of a function call."""

    name: str
    arguments: dict[str, Any] | str
    """An object, or its JSON text as given in the row."""


class ToolCall(TypedDict, total=False):
    """One tool call by the assistant."""

    type: Literal["function"]
    function: FunctionCall
    id: str


class Message(TypedDict, total=False):
    """One turn. `role` and `content` are always present after `normalise_messages`."""

    role: Role
    content: str
    tool_calls: list[ToolCall]
    name: str
    """Name of the tool whose result this is."""
    tool_call_id: str
    reasoning_content: str
    """The assistant's reasoning, for templates that render it."""
    weight: int
    """0 marks an assistant turn as context only, without a loss (OpenAI's fine-tuning format)."""


def normalise_messages(messages: object, remedy: str = "set ignore_fields to leave others out") -> list[Message]:
    """Return messages with plain text contents and one name for each role and field.

    Args:
        messages: Messages as found in datasets: contents may be null or lists of text parts, roles may be `developer`,
            `human`, `model` or `function`, there may be a `function_call` instead of tool calls, the reasoning may have
            any of its names, and `weight`, `train`, `loss`, `loss_weight` or `masked` may tell whether a turn is
            trained on.
        remedy: What to do about an unknown field, for the error.

    Raises:
        UserError: if an item is not a message or has an unknown field, naming its position.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        raise UserError(f"the messages are a {type(messages).__name__}, not a list of {{role, content}}")
    return [_normalise(message, number, remedy) for number, message in enumerate(messages, start=1)]


def check_messages(messages: Sequence[Message], for_training: bool = False) -> None:
    """Reject empty turns and an order of roles that no model is trained on.

    The valid order: at most one system message, first; then the user; then assistant and user in turn. Tool results
    come between an assistant's message with tool calls and the assistant's next one.

    Args:
        messages: Normalized messages.
        for_training: If True, the conversation must end with an answer, and no answer may be empty.

    Raises:
        UserError: naming the first message that is empty or out of order.
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
                f"{' or '.join(map(repr, allowed))} is allowed"
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


def _normalise(message: object, number: int, remedy: str) -> Message:
    if not isinstance(message, Mapping):
        raise UserError(f"message {number} is a {type(message).__name__}, not an object with role and content")
    role = message.get("role")
    if isinstance(role, str):
        role = _OTHER_NAMES.get(role, role)
    if role not in ROLES:
        raise UserError(f"message {number} has the role {role!r}; it must be one of {', '.join(ROLES)}")
    unknown = [name for name, value in message.items() if name not in MESSAGE_FIELDS and not is_empty(value)]
    if unknown:
        raise UserError(
            f"message {number} ({role}) has the fields {', '.join(map(repr, unknown))}, which nothing here reads; a "
            f"message has {', '.join(MESSAGE_FIELDS)}{f' ({remedy})' if remedy else ''}"
        )
    result = Message(role=role, content=_text(message.get("content"), number))
    for name in (*_KEPT, *_REASONING):
        value = message.get(name)
        if value is not None and not isinstance(value, str):
            raise UserError(f"the {name} of message {number} is a {type(value).__name__}, not text")
        if value is None:
            continue
        if name in _REASONING and role != "assistant":
            raise UserError(f"message {number} ({role}) has {name}; only the assistant reasons")
        field = "reasoning_content" if name in _REASONING else name
        if result.setdefault(field, value) != value:  # type: ignore[misc]
            raise UserError(f"message {number} has two different reasonings ({', '.join(_REASONING)}); keep one")
    weight = _weight(message, number)
    if weight is not None:
        if weight and role != "assistant":
            raise UserError(f"message {number} ({role}) is marked to be learned; only the assistant's turns are")
        result["weight"] = weight
    calls = message.get("tool_calls") or []
    if not isinstance(calls, Sequence) or isinstance(calls, str | bytes):
        raise UserError(f"the tool_calls of message {number} are a {type(calls).__name__}, not a list")
    if message.get("function_call"):
        calls = [*calls, message["function_call"]]
    if calls:
        result["tool_calls"] = [_call(call, number) for call in calls]
    if message.get("content") is None and "tool_calls" not in result:
        raise UserError(f"message {number} ({role}) has no content")
    return result


def is_empty(value: object) -> bool:
    """Return whether a field is empty: null, as in tables where a row lacks a field, or an empty value."""
    return value is None or (isinstance(value, str | Sequence | Mapping) and not value)


def _weight(message: Mapping[str, Any], number: int) -> int | None:
    """Return 1 or 0 if a message tells whether it is trained on, else None."""
    marks = {}
    for name, learned in _LEARNED.items():
        value = message.get(name)
        if value is None:
            continue
        if isinstance(value, str) or value not in (0, 1):
            raise UserError(f"the {name} of message {number} is {value!r}; it must be 0 (false) or 1 (true)")
        marks[name] = int(value == learned)
    if len(set(marks.values())) > 1:
        raise UserError(f"message {number} is marked both to be learned and not to be learned ({', '.join(marks)})")
    return next(iter(marks.values()), None)


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
                raise UserError(f"message {number} has a part of type {kind!r}; only text is supported")
            if not isinstance(part.get("text"), str):
                raise UserError(f"message {number} has a part of type 'text' without text")
            unknown = [name for name, value in part.items() if name not in ("type", "text") and not is_empty(value)]
            if unknown:
                raise UserError(
                    f"a part of message {number} has the fields {', '.join(map(repr, unknown))}, which nothing here "
                    "reads; a part has type and text"
                )
            texts.append(part["text"])
        return "".join(texts)
    raise UserError(f"the content of message {number} is a {type(content).__name__}, not text")


def _call(call: object, number: int) -> ToolCall:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise UserError(f"message {number} has a tool call without a function's name")
    known = ("name", "arguments", *(_CALL_FIELDS if function is call else ()))
    unknown = [name for name, value in function.items() if name not in known and not is_empty(value)]
    if function is not call:
        unknown += [name for name, value in call.items() if name not in _CALL_FIELDS and not is_empty(value)]
    if unknown:
        raise UserError(
            f"message {number}: the call of {function['name']} has the fields {', '.join(map(repr, unknown))}, which "
            "nothing here reads; a call has id, type and function: {name, arguments}"
        )
    if call.get("type") not in (None, "function"):
        raise UserError(f"message {number} has a tool call of type {call['type']!r}; only functions can be called")
    arguments = function.get("arguments", {})
    value = arguments
    if isinstance(arguments, str):
        try:
            value = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            raise UserError(f"message {number}: the arguments of {function['name']} are not JSON ({error})") from error
    if not isinstance(value, Mapping):
        raise UserError(f"message {number}: the arguments of {function['name']} are not a JSON object")
    kept = arguments if isinstance(arguments, str) else dict(value)
    result = ToolCall(type="function", function=FunctionCall(name=function["name"], arguments=kept))
    if isinstance(call.get("id"), str):
        result["id"] = call["id"]
    return result
