"""Convert a row in any of the usual formats to a conversation.

| form | fields |
|---|---|
| OpenAI | `messages` (role, content, tool_calls) |
| ShareGPT | `conversations` (from, value) |
| prompt/completion | `prompt`, and `completion`, `response` or `answer`: texts, or lists of messages |
| question/answer | `question`, `answer` (or another name of an answer) |
| Alpaca, Dolly | `instruction`, `input` or `context` (may be empty), `output` or `response`, `history` |

All may have `system` (or `system_prompt`) and `tools`. Other names are mapped to these by `columns`.

A row's fields are read through `RowFields`, which records what was read. Any other field is an error, unless it is
empty, is metadata of the row (`id`, `source`, a score), repeats what was read, or is listed in `ignore_fields`: such
fields are ignored and reported by name.
"""

import json
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from lit_gpt.data.chat.messages import MESSAGE_FIELDS, Message, Tool, check_messages, is_empty, normalise_messages
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
_MEANINGFUL = frozenset({
    "messages", "conversations", "prompt", "question", "instruction", "input", "context", "history", *_ANSWERS,
    "system", "system_prompt", "tools", "chosen", "rejected", "text", "label", "from", "value", *MESSAGE_FIELDS,
})  # fmt: skip
_MEDIA = ("image", "images", "video", "videos", "audio", "audios")
METADATA = frozenset({
    "id", "_id", "idx", "index", "uuid", "uid", "hash", "row_id", "prompt_id", "conversation_id", "question_id",
    "message_id", "task_id", "source", "sources", "dataset", "dataset_name", "data_source", "origin", "category",
    "categories", "topic", "tags", "task", "task_type", "difficulty", "language", "lang", "model", "model_name",
    "generator", "quality", "score", "scores", "rating", "ratings", "score_chosen", "score_rejected", "chosen_score",
    "rejected_score", "chosen_rating", "rejected_rating", "chosen-rating", "rejected-rating", "chosen_model",
    "rejected_model", "chosen-model", "rejected-model", "timestamp", "date", "created_at", "url", "license", "split",
    "subset", "meta", "metadata", "num_turns", "num_tokens", "token_count", "length", "title",
})  # fmt: skip
"""Metadata fields of a row, which are ignored and reported."""


class Conversation(NamedTuple):
    """Validated messages, the tools that the assistant may call, and the ignored fields of the row."""

    messages: list[Message]
    tools: list[Tool]
    left_out: tuple[str, ...] = ()

    @property
    def prompt(self) -> list[Message]:
        """All messages before the first answer."""
        first = next(i for i, message in enumerate(self.messages) if message["role"] == "assistant")
        return self.messages[:first]


class RowFields:
    """Fields of a row under their expected names; it records which were read.

    Args:
        row: Fields of the row.
        columns: Mapping from the expected field name to the name in the row.
        ignore_fields: Fields of the row and of its turns to ignore; `*` matches any characters.

    Attributes:
        left_out: Names of fields that are not read, in order.

    Raises:
        UserError: if a column named in `columns` is missing, or the row also has a field of the expected name.
    """

    def __init__(
        self, row: Mapping[str, Any], columns: Mapping[str, str] | None = None, ignore_fields: Sequence[str] = ()
    ) -> None:
        self.names_answer = any(field in _ANSWERS for field in columns or {})
        self.columns = dict(columns or {})
        self.left_out: list[str] = []
        self._ignore_fields = ignore_fields
        for field, column in self.columns.items():
            is_renamed = field in self.columns.values() or self._is_ignored(field)
            if not is_renamed and not is_empty(row.get(field)):
                raise UserError(
                    f"it has both {field!r} and {column!r} (columns.{field}); leave one out by ignore_fields"
                )
        self.values = renamed(row, columns)
        self._read: set[str] = set()
        for name in [name for name in self.values if self._is_ignored(name) and name not in self.columns]:
            if not is_empty(self.values.pop(name)):
                self.left_out.append(name)

    def get(self, name: str) -> Any:
        """Return a field, or None if the row lacks it."""
        self._read.add(name)
        return self.values.get(name)

    def turns(self, value: Any, role: str, field: str) -> list[Message]:
        """Return messages from a text, which becomes one turn of `role`, or from a list of OpenAI or ShareGPT messages.

        Raises:
            UserError: if it is neither.
        """
        turns = [value] if isinstance(value, Mapping) else value
        if self._ignore_fields and isinstance(turns, list):
            value = [self._without_ignored(turn) if isinstance(turn, Mapping) else turn for turn in turns]
        return turns_of(value, role, field)

    def finish(self, messages: Sequence[Message]) -> tuple[str, ...]:
        """Check that no content of the row is lost, and return the names of the ignored fields.

        Args:
            messages: Messages made of the fields that were read.

        Raises:
            UserError: if a field was not read and is not known to be irrelevant for training.
        """
        contents = {message["content"].strip() for message in messages}
        texts = [value for name, value in self.values.items() if name in self._read and isinstance(value, str)]
        unknown = []
        for name, value in self.values.items():
            if name in self._read or is_empty(value):
                continue
            if name in METADATA or _repeats(value, contents, texts):
                self.left_out.append(name)
            else:
                unknown.append(name)
        self.refuse_media()
        if unknown:
            read = [name for name in self.values if name in self._read]
            raise UserError(
                f"nothing reads its fields {', '.join(map(repr, unknown))} next to {', '.join(map(repr, read))}; set "
                f"ignore_fields: [{', '.join(unknown)}] to leave them out, or columns to read them"
            )
        return tuple(self.left_out)

    def refuse_media(self) -> None:
        """Reject a row with images, audio or video.

        Raises:
            UserError: if it has any.
        """
        media = [name for name in _MEDIA if not is_empty(self.values.get(name)) and name not in self._read]
        if media:
            raise UserError(f"its field {media[0]!r} is not text; only text is supported")

    def _is_ignored(self, name: str) -> bool:
        """Return whether a field is ignored; a pattern never ignores one that has a meaning."""
        if name in self._ignore_fields:
            return True
        return name not in _MEANINGFUL and any(fnmatchcase(name, pattern) for pattern in self._ignore_fields)

    def _without_ignored(self, turn: Mapping[str, Any]) -> dict[str, Any]:
        kept = {}
        for name, value in turn.items():
            if not self._is_ignored(name):
                kept[name] = value
            elif not is_empty(value) and name not in self.left_out:
                self.left_out.append(name)
        return kept


def conversation_of(
    row: Mapping[str, Any],
    columns: Mapping[str, str] | None = None,
    system_prompt: str | None = None,
    ignore_fields: Sequence[str] = (),
) -> Conversation:
    """Convert a row to a conversation.

    The answers in `messages`, `conversations` and `history` are trained on; those within a `prompt` are context.

    Args:
        row: Fields of the row.
        columns: Mapping from the expected field name to the name in the row.
        system_prompt: System prompt for rows that have none.
        ignore_fields: Fields to ignore (see `RowFields`).

    Raises:
        UserError: if the row has no supported format, a field is missing, empty or unknown, or the roles are out of
            order.
    """
    fields = RowFields(row, columns, ignore_fields)
    messages = chat_of(fields)
    if messages is None:
        question = question_of(fields)
        if question is None:
            raise UserError(
                f"its fields are {', '.join(map(repr, row)) or 'none'}; an instruction has messages, conversations, "
                "prompt and completion, question and answer, or instruction and output (set columns for other names)"
            )
        messages = [*question, *fields.turns(*_answer(fields))]
    messages = with_system(messages, fields, system_prompt)
    check_messages(messages, for_training=True)
    tools = tools_of(fields)
    return Conversation(messages, tools, fields.finish(messages))


def chat_of(fields: RowFields) -> list[Message] | None:
    """Return the messages of a row that is a whole conversation, or None if it is not.

    Raises:
        UserError: if its field does not contain messages.
    """
    for name in ("messages", "conversations"):
        if fields.values.get(name) is not None:
            value = parsed(fields.get(name), name)
            if not isinstance(value, list):
                raise UserError(f"the field {name!r} is {type(value).__name__}, not a list of messages")
            return fields.turns(value, "user", name)
    return None


def question_of(fields: RowFields) -> list[Message] | None:
    """Return the turns before the answer of a row that has separate fields for question and answer.

    Raises:
        UserError: if a field is of the wrong type.
    """
    name = next((name for name in ("prompt", "question", "instruction") if name in fields.values), None)
    if name is None:
        return None
    if name == "instruction":
        turns = fields.turns(_instruction_text(fields), "user", name)
    else:
        turns = [_context(turn) for turn in fields.turns(fields.get(name), "user", name)]
    return [*_history(fields), *turns]


def _context(message: Message) -> Message:
    """Return an answer within a prompt, which is not trained on unless it is marked so."""
    return Message(**{"weight": 0, **message}) if message["role"] == "assistant" else message


def _history(fields: RowFields) -> list[Message]:
    """Return Alpaca's earlier turns: a list of pairs of question and answer."""
    history = fields.get("history")
    history = parsed(history, "history") if history else []
    pairs = history if isinstance(history, list) else [history]
    turns = []
    for pair in pairs:
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise UserError(f"the field 'history' has {pair!r}; it must be a list of pairs of question and answer")
        turns += [Message(role="user", content=pair[0]), Message(role="assistant", content=pair[1])]
    return turns


def with_system(messages: list[Message], fields: RowFields, system_prompt: str | None) -> list[Message]:
    """Return messages that start with their own system prompt, the row's, or `system_prompt`.

    An empty system prompt counts as none.

    Raises:
        UserError: if `system` is not text, or a row has two different system prompts.
    """
    found = {}
    if len(messages) > 1 and messages[0]["role"] == "system":
        if messages[0]["content"].strip():
            found["messages"] = messages[0]["content"]
        else:
            messages = messages[1:]  # written by tools that always emit the field
    for name in ("system", "system_prompt"):
        system = fields.get(name)
        if system is not None and not isinstance(system, str):
            raise UserError(f"the field {name!r} is {type(system).__name__}, not text")
        if system is not None and system.strip():
            found[name] = system
    if len(set(found.values())) > 1:
        raise UserError(f"it has different system prompts in {' and '.join(map(repr, found))}; leave one out")
    system = next(iter(found.values()), system_prompt)
    if system is None or not messages or messages[0]["role"] == "system":
        return messages
    return [Message(role="system", content=system), *messages]


def tools_of(fields: RowFields) -> list[Tool]:
    """Return the tools that the assistant may call: the row's `tools`, a list or JSON text.

    Raises:
        UserError: if they are not a list of objects with names.
    """
    tools = fields.get("tools")
    tools = parsed(tools, "tools") if tools else []
    if tools is None:
        return []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise UserError("the field 'tools' is not a list of objects")
    for number, tool in enumerate(tools, start=1):
        function = tool.get("function", tool)
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise UserError(f"tool {number} has no name; a tool is {{type: function, function: {{name, parameters}}}}")
    return tools


def renamed(row: Mapping[str, Any], columns: Mapping[str, str] | None) -> dict[str, Any]:
    """Return the row with its fields renamed to the expected names.

    Raises:
        UserError: if a column named in `columns` is missing.
    """
    result = dict(row)
    for field, column in (columns or {}).items():
        if column not in row:
            raise UserError(f"no field {column!r} (columns.{field}); its fields are {', '.join(map(repr, row))}")
        result.pop(column, None)
        result[field] = row[column]
    return result


def turns_of(value: Any, role: str, field: str) -> list[Message]:
    """Return messages from a text, which becomes one turn of `role`, or from a list of OpenAI or ShareGPT messages.

    Raises:
        UserError: if it is neither.
    """
    if isinstance(value, str):
        return [Message(role=role, content=value)]  # type: ignore[typeddict-item]
    if isinstance(value, list | Mapping):
        return normalise_messages(_from_sharegpt([value] if isinstance(value, Mapping) else value, field))
    raise UserError(f"the field {field!r} is {type(value).__name__}, not text or messages")


def _answer(fields: RowFields) -> tuple[Any, str, str]:
    names = [name for name in _ANSWERS if name in fields.columns] if fields.names_answer else _ANSWERS
    found = [name for name in names if fields.values.get(name) is not None]
    if not found:
        raise UserError(
            f"it has a question but no answer ({', '.join(map(repr, _ANSWERS))}); its fields are "
            f"{', '.join(map(repr, fields.values))} (set columns)"
        )
    if len(found) > 1:
        raise UserError(f"both {found[0]!r} and {found[1]!r} could be the answer; set columns: {{completion: ...}}")
    return fields.get(found[0]), "assistant", found[0]


def _instruction_text(fields: RowFields) -> str:
    """Return Alpaca's or Dolly's instruction with its input."""
    parts = {name: fields.get(name) for name in ("instruction", "input", "context")}
    for field, value in parts.items():
        if value is not None and not isinstance(value, str):
            raise UserError(f"the field {field!r} is {type(value).__name__}, not text")
    if parts["instruction"] is None:
        raise UserError("the field 'instruction' is null")
    if parts["input"] and parts["context"]:
        raise UserError("both 'input' and 'context' could go with the instruction; set columns: {input: ...}")
    more = parts["input"] or parts["context"] or ""
    return f"{parts['instruction']}\n\n{more}" if more.strip() else parts["instruction"]


def _repeats(value: Any, contents: set[str], texts: Sequence[str]) -> bool:
    """Return whether a field repeats what was read, as UltraChat's `prompt` and Alpaca's `text` do."""
    if isinstance(value, str):
        return value.strip() in contents or all(text in value for text in texts or contents)
    if not isinstance(value, list) or not all(isinstance(turn, Mapping) for turn in value):
        return False
    return all(isinstance(t := turn.get("content", turn.get("value")), str) and t.strip() in contents for turn in value)


def _from_sharegpt(turns: list[Any], field: str) -> list[Any]:
    """Convert turns with ShareGPT's `from` and `value` to OpenAI's format; others are returned unchanged."""
    messages: list[Any] = []
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, Mapping) or "role" in turn or not ("from" in turn or field == "conversations"):
            messages.append(turn)
            continue
        if "from" not in turn or "value" not in turn:
            raise UserError(f"message {number} of {field!r} lacks 'from' or 'value'")
        sender = str(turn["from"])
        others = {name: value for name, value in turn.items() if name not in ("from", "value")}
        if sender == "function_call":
            calls = parsed(turn["value"], "value")
            calls = calls if isinstance(calls, list) else [calls]
            messages.append({**others, "role": "assistant", "content": None, "tool_calls": calls})
            continue
        if sender not in _SHAREGPT_ROLES:
            raise UserError(f"message {number} is from {sender!r}; it must be one of {', '.join(_SHAREGPT_ROLES)}")
        messages.append({**others, "role": _SHAREGPT_ROLES[sender], "content": turn["value"]})
    return messages


def parsed(value: Any, field: str) -> Any:
    """Parse a value that CSV files or datasets store as JSON text.

    Raises:
        UserError: if it is text that is not JSON.
    """
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise UserError(f"the field {field!r} is text that is not JSON ({error})") from error
