"""Tools: how each kind of template has the model write a call, how a call is demanded, and how it is read.

Three forms are known, by the marks that a template itself puts around earlier calls:
- Hermes' and Qwen's: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, any number, text before them
- Mistral's: `[TOOL_CALLS][{"name": ..., "arguments": {...}}, ...]`, to the end
- Llama 3's: `{"name": ..., "parameters": {...}}`, the whole answer
"""

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lit_gpt.generation.params import Constraint


@dataclass(frozen=True)
class ToolForm:
    """How a call is written.

    Attributes:
        opening: Before it; empty: an answer that begins with a brace is a call.
        closing: After it; empty: it runs to the end.
        arguments: The key of its arguments.
    """

    opening: str
    closing: str
    arguments: str


HERMES = ToolForm("<tool_call>", "</tool_call>", "arguments")
MISTRAL = ToolForm("[TOOL_CALLS]", "", "arguments")
LLAMA = ToolForm("", "", "parameters")


@dataclass(frozen=True)
class ToolCall:
    """A call that the model has written."""

    name: str
    arguments: str
    """A JSON object."""

    def to_dict(self, index: int | None = None) -> dict[str, Any]:
        """As OpenAI's API has it; with an index in a stream."""
        place = {} if index is None else {"index": index}
        function = {"name": self.name, "arguments": self.arguments}
        return {**place, "id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}


def tool_form(template: str) -> ToolForm | None:
    """The form of a chat template, by the marks in its source; None: it has none for tools."""
    for form in (HERMES, MISTRAL):
        if form.opening in template:
            return form
    return LLAMA if "tool_calls" in template and "parameters" in template else None


def call_constraint(form: ToolForm, functions: Sequence[dict[str, Any]]) -> Constraint:
    """Demand one call of one of these functions, and nothing else.

    Args:
        form: Of the model; the marks around the call are the server's to write or leave out.
        functions: `{"name": ..., "parameters": <JSON schema>}` each.
    """
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": function["name"]},
                form.arguments: function.get("parameters") or {"type": "object"},
            },
            "required": ["name", form.arguments],
            "additionalProperties": False,
        }
        for function in functions
    ]
    return Constraint("json_schema", calls[0] if len(calls) == 1 else {"anyOf": calls})


class ToolReader:
    """Reads an answer as it grows, and tells text from calls.

    Text is passed on at once, but for what may be the beginning of a call; a call is passed on when it is complete.
    What looked like one and is none comes out as the text it is.

    Args:
        form: Of the model.
        names: Functions that may be called.
        demanded: The whole answer is a call, without marks.
        only_one: Leave out all calls but the first.
    """

    def __init__(self, form: ToolForm, names: Sequence[str], demanded: bool = False, only_one: bool = False) -> None:
        self._form = form
        self._only_one = only_one
        self._names = set(names)
        self._pending = ""
        self._inside = demanded or not form.opening
        """A call has been opened."""
        self._bare = self._inside
        self._ordinary = False
        """What might have been a call without marks is a text."""
        self._closing = "" if demanded else form.closing
        self.num_calls = 0

    def feed(self, text: str) -> list[str | ToolCall]:
        """Take more of the answer.

        Args:
            text: What has been added.

        Returns:
            Texts and calls that are certain now, in their order.
        """
        self._pending += text
        found: list[str | ToolCall] = []
        while True:
            if not self._inside:
                before, mark, after = self._pending.partition(self._form.opening)
                if mark:
                    if before.strip():
                        found.append(before.rstrip())
                    self._pending, self._inside = after, True
                    continue
                kept = _overlap(self._pending, self._form.opening)
                # White space may turn out to stand before a call, where it means nothing.
                certain = self._pending[: len(self._pending) - kept].rstrip()
                if certain:
                    found.append(certain)
                    self._pending = self._pending[len(certain) :]
                return found
            if self._bare and self._pending.strip() and not self._pending.lstrip().startswith(("{", "[")):
                self._ordinary = True
            if self._ordinary:
                if self._pending:
                    found.append(self._pending)
                self._pending = ""
                return found
            if not self._closing or self._closing not in self._pending:
                return found
            inside, _, self._pending = self._pending.partition(self._closing)
            found += self._calls(inside, self._form.opening + inside + self._closing)
            self._inside = False

    def finish(self) -> list[str | ToolCall]:
        """Return what is left when the answer has ended."""
        rest, self._pending = self._pending, ""
        if not rest.strip():
            return []
        if not self._inside:
            return [rest]
        return self._calls(rest, rest if self._bare else self._form.opening + rest)

    def _calls(self, inside: str, written: str) -> list[str | ToolCall]:
        try:
            value = json.loads(inside)
        except (ValueError, RecursionError):
            return [written]
        calls = [self._call(item) for item in (value if isinstance(value, list) else [value])]
        known = [call for call in calls if call is not None]
        if not known or len(known) < len(calls):
            return [written]
        if self._only_one:
            known = known[: max(0, 1 - self.num_calls)]
        self.num_calls += len(known)
        return list(known)

    def _call(self, item: Any) -> ToolCall | None:
        name = item.get("name") if isinstance(item, dict) else None
        if not isinstance(name, str) or name not in self._names:
            return None
        arguments = item.get("arguments", item.get("parameters", {}))
        return ToolCall(name, json.dumps(arguments, ensure_ascii=False)) if isinstance(arguments, dict) else None


def _overlap(text: str, mark: str) -> int:
    """How many characters at the end of a text may be the beginning of a mark."""
    return next((size for size in range(min(len(text), len(mark) - 1), 0, -1) if text.endswith(mark[:size])), 0)
