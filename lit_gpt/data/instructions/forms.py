"""One row → a conversation, whichever of the usual forms it has.

| form | fields |
|---|---|
| OpenAI | `messages` (role, content, tool_calls), `tools` |
| ShareGPT | `conversations` (from, value), `system`, `tools` |
| prompt/completion | `prompt`, and `completion`, `response` or `answer`: texts, or lists of messages |
| question/answer | `question`, `answer` |
| Alpaca, Dolly | `instruction`, `input` or `context` (may be empty), `output` or `response`, `system` |

Other names are mapped to these by `columns`. A row must have exactly one form, so that no field is silently left out.
"""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from lit_gpt.data.chat.messages import Message, Tool, check_messages, normalise_messages
from lit_gpt.errors import UserError

_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
_ANSWERS = ("completion", "response", "answer", "output")


class Conversation(NamedTuple):
    """Checked messages, and what tools the assistant may call."""

    messages: list[Message]
    tools: list[Tool]

    @property
    def prompt(self) -> list[Message]:
        """Everything before the first answer."""
        first = next(i for i, message in enumerate(self.messages) if message["role"] == "assistant")
        return self.messages[:first]


def conversation_of(
    row: Mapping[str, Any], columns: Mapping[str, str] | None = None, system_prompt: str | None = None
) -> Conversation:
    """Read a row.

    Args:
        row: Its fields.
        columns: Our name of a field → the name that the row has for it.
        system_prompt: Given to rows that have none.

    Raises:
        UserError: if it has none of the forms, a field is missing or empty, or the roles are out of order.
    """
    row = renamed(row, columns)
    if row.get("messages") is not None:
        messages = normalise_messages(parsed(row["messages"], "messages"))
    elif row.get("conversations") is not None:
        messages = turns_of(parsed(row["conversations"], "conversations"), "user", "conversations")
    elif "prompt" in row:
        messages = [*turns_of(row["prompt"], "user", "prompt"), *turns_of(*_answer(row, "prompt"))]
    elif "question" in row:
        messages = [*turns_of(row["question"], "user", "question"), *turns_of(*_answer(row, "question"))]
    elif "instruction" in row:
        messages = [*turns_of(instruction_text(row), "user", "instruction"), *turns_of(*_answer(row, "instruction"))]
    else:
        raise UserError(
            f"its fields are {', '.join(map(repr, row)) or 'none'}; an instruction has messages, conversations, "
            "prompt and completion, question and answer, or instruction and output (set columns for other names)"
        )
    messages = with_system(messages, row, system_prompt)
    check_messages(messages, for_training=True)
    return Conversation(messages, tools_of(row))


def with_system(messages: list[Message], row: Mapping[str, Any], system_prompt: str | None) -> list[Message]:
    """Return messages that open with their own system prompt, the row's (`system`), or `system_prompt`.

    An empty one counts as none.

    Raises:
        UserError: if `system` is no text.
    """
    if messages and messages[0]["role"] == "system":
        if messages[0]["content"].strip():
            return messages
        messages = messages[1:]  # written by tools that always have the field
    system = row.get("system")
    if system is not None and not isinstance(system, str):
        raise UserError(f"the field 'system' holds {type(system).__name__}, not text")
    if system is None or not system.strip():
        system = system_prompt
    return messages if system is None or not messages else [Message(role="system", content=system), *messages]


def tools_of(row: Mapping[str, Any]) -> list[Tool]:
    """Return what the assistant may call: the row's `tools`, a list or JSON text.

    Raises:
        UserError: if they are no list of objects.
    """
    tools = parsed(row["tools"], "tools") if row.get("tools") else []
    if tools is None:
        return []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise UserError("the field 'tools' holds no list of objects")
    return tools


def renamed(row: Mapping[str, Any], columns: Mapping[str, str] | None) -> dict[str, Any]:
    """Return the row with our names for its fields.

    Raises:
        UserError: if a named column is not there.
    """
    result = dict(row)
    if any(field in _ANSWERS for field in columns or {}):  # the answer is named, so no other field is one
        result = {name: value for name, value in row.items() if name not in _ANSWERS}
    for field, column in (columns or {}).items():
        if column not in row:
            raise UserError(f"no field {column!r} (columns.{field}); its fields are {', '.join(map(repr, row))}")
        result.pop(column, None)
        result[field] = row[column]
    return result


def turns_of(value: Any, role: str, field: str) -> list[Message]:
    """Return messages from a text, which is one turn of `role`, or from a list of messages, OpenAI's or ShareGPT's.

    Raises:
        UserError: if it is neither.
    """
    if isinstance(value, str):
        return [Message(role=role, content=value)]  # type: ignore[typeddict-item]
    if isinstance(value, list | Mapping):
        return normalise_messages(_from_sharegpt([value] if isinstance(value, Mapping) else value, field))
    raise UserError(f"the field {field!r} holds {type(value).__name__}, not text or messages")


def _answer(row: Mapping[str, Any], question: str) -> tuple[Any, str, str]:
    found = [name for name in _ANSWERS if row.get(name) is not None]
    if not found:
        raise UserError(
            f"it has {question!r} but no answer ({', '.join(map(repr, _ANSWERS))}); its fields are "
            f"{', '.join(map(repr, row))} (set columns)"
        )
    if len(found) > 1:
        raise UserError(f"both {found[0]!r} and {found[1]!r} could be the answer; set columns: {{completion: ...}}")
    return row[found[0]], "assistant", found[0]


def instruction_text(row: Mapping[str, Any]) -> str:
    """Return Alpaca's or Dolly's instruction with its input.

    Raises:
        UserError: if one of them is no text.
    """
    for field in ("instruction", "input", "context"):
        if row.get(field) is not None and not isinstance(row[field], str):
            raise UserError(f"the field {field!r} holds {type(row[field]).__name__}, not text")
    if row["instruction"] is None:
        raise UserError("the field 'instruction' is null")
    if row.get("input") and row.get("context"):
        raise UserError("both 'input' and 'context' could go with the instruction; set columns: {input: ...}")
    more = row.get("input") or row.get("context") or ""
    return f"{row['instruction']}\n\n{more}" if more.strip() else row["instruction"]


def _from_sharegpt(turns: list[Any], field: str) -> list[Any]:
    """Return turns with ShareGPT's `from` and `value` as OpenAI's; all others as they are."""
    messages: list[Any] = []
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, Mapping) or "role" in turn or not ("from" in turn or field == "conversations"):
            messages.append(turn)
            continue
        if "from" not in turn or "value" not in turn:
            raise UserError(f"message {number} of {field!r} lacks 'from' or 'value'")
        sender = str(turn["from"])
        if sender == "function_call":
            messages.append({"role": "assistant", "content": None, "tool_calls": [parsed(turn["value"], "value")]})
            continue
        if sender not in _SHAREGPT_ROLES:
            raise UserError(f"message {number} is from {sender!r}; it must be one of {', '.join(_SHAREGPT_ROLES)}")
        messages.append({"role": _SHAREGPT_ROLES[sender], "content": turn["value"]})
    return messages


def parsed(value: Any, field: str) -> Any:
    """Read a value that a csv or a dataset keeps as JSON text.

    Raises:
        UserError: if it is other text.
    """
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise UserError(f"the field {field!r} holds text that is not JSON ({error})") from error
