"""Tool calls: the formats in which models write them, how a call is forced, and how calls are parsed.

The format is detected by the marks that a template itself puts around earlier calls:

- Hermes and Qwen: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, any number, text before them
- Qwen3-Coder: `<tool_call><function=name><parameter=key>value</parameter></function></tool_call>`
- Mistral: `[TOOL_CALLS][{"name": ..., "arguments": {...}}, ...]` or `[TOOL_CALLS]name[ARGS]{...}`, to the end
- DeepSeek: `<｜tool▁calls▁begin｜>`; a call is `<｜tool▁call▁begin｜>function<｜tool▁sep｜>name` and JSON in a
  Markdown fence (V3, R1), or `<｜tool▁call▁begin｜>name<｜tool▁sep｜>{...}` (V3.1); `<｜tool▁calls▁end｜>`
- Granite 3: `<|tool_call|>[{"name": ..., "arguments": {...}}, ...]`, to the end
- Llama 3: `{"name": ..., "parameters": {...}}`, the whole answer; `<|python_tag|>` may precede it, and several
 calls are separated by `;`
"""

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lit_gpt.generation.request import Constraint


@dataclass(frozen=True)
class ToolForm:
    """Format of a tool call.

    Attributes:
        opening: Mark before the call; empty: an answer that starts with a brace is a call.
        closing: Mark after the call; empty: it extends to the end.
        arguments: Key of its arguments.
        is_xml: Whether it is written in Qwen3-Coder's tags instead of JSON.
        named: What precedes the arguments of a call whose name stands outside of the JSON; its group is the name.
        between: What may stand between two calls.
    """

    opening: str
    closing: str
    arguments: str
    is_xml: bool = False
    named: re.Pattern[str] | None = None
    between: re.Pattern[str] = re.compile(r"[\s;,]*")


_MISTRAL_NAME = re.compile(r"\s*(?:\[TOOL_CALLS\])?\s*([\w.-]{1,64})(?:\[CALL_ID\][\w-]*)?\s*(?:\[ARGS\])?\s*(?=\{)")
_DEEPSEEK_NAME = re.compile(
    r"<｜tool▁call▁begin｜>(?:function<｜tool▁sep｜>)?([\w.-]{1,64})(?:<｜tool▁sep｜>)?\s*(?:```json)?\s*(?=\{)"
)

HERMES = ToolForm("<tool_call>", "</tool_call>", "arguments")
QWEN_CODER = ToolForm("<tool_call>", "</tool_call>", "arguments", is_xml=True)
MISTRAL = ToolForm("[TOOL_CALLS]", "", "arguments", named=_MISTRAL_NAME)
DEEPSEEK = ToolForm(
    "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "arguments", named=_DEEPSEEK_NAME,
    between=re.compile(r"(?:\s|```|<｜tool▁call▁end｜>)*"),
)  # fmt: skip
GRANITE = ToolForm("<|tool_call|>", "", "arguments")
LLAMA = ToolForm("", "", "parameters")
PYTHON_TAG = "<|python_tag|>"
_XML_FUNCTION = re.compile(r"\s*<function=([^>\s]+)>(.*?)</function>\s*", re.DOTALL)
_XML_PARAMETER = re.compile(r"\s*<parameter=([^>]+)>\n?(.*?)\n?</parameter>\s*", re.DOTALL)
_XML_END = re.compile(r"</function>\s*(</tool_call>)")
_CUT_OFF = re.compile(r'\s*\{\s*"name"\s*:\s*"([^"\\]*)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(.*)', re.DOTALL)
_STRING = re.compile(r'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_SUBSCHEMA_MAPS = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
_DATA_KEYWORDS = frozenset({"const", "enum", "default", "examples", "example"})


@dataclass(frozen=True)
class ToolCall:
    """A call written by the model."""

    name: str
    arguments: str
    """A JSON object."""

    def to_dict(self, index: int | None = None) -> dict[str, Any]:
        """Return the call in the format of OpenAI's API, with an index in a stream."""
        place = {} if index is None else {"index": index}
        function = {"name": self.name, "arguments": self.arguments}
        return {**place, "id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}


def tool_form(template: str) -> ToolForm | None:
    """Return the call format of a chat template, detected by the marks in its source; None: it supports no tools.

    Some templates render earlier calls but never tell the model which tools there are (DeepSeek's own): None as well.
    """
    if not re.search(r"\btools\b", template):
        return None
    if "<function=" in template and QWEN_CODER.opening in template:
        return QWEN_CODER
    for form in (HERMES, MISTRAL, DEEPSEEK, GRANITE):
        if form.opening in template:
            return form
    return LLAMA if "tool_calls" in template and "ipython" in template else None  # Llama's name for the role `tool`


def call_constraint(form: ToolForm, functions: Sequence[dict[str, Any]]) -> Constraint:
    """Return a constraint that forces one call of one of these functions, and nothing else.

    Args:
        form: Call format of the model; the call is written as JSON, without marks around it.
        functions: Functions as `{"name": ..., "parameters": <JSON schema>}`.
    """
    calls = []
    for number, function in enumerate(functions):
        place = "#" if len(functions) == 1 else f"#/anyOf/{number}"
        parameters = function.get("parameters") or {"type": "object"}
        calls.append(
            {
                "type": "object",
                "properties": {
                    "name": {"const": function["name"]},
                    form.arguments: rebase_references(parameters, f"{place}/properties/{form.arguments}"),
                },
                "required": ["name", form.arguments],
                "additionalProperties": False,
            }
        )
    return Constraint("json_schema", calls[0] if len(calls) == 1 else {"anyOf": calls})


def rebase_references(schema: Any, place: str) -> Any:
    """Return a JSON schema whose local references remain valid inside another schema.

    Args:
        schema: Schema with references to its own root: `#`, `#/$defs/...`.
        place: JSON pointer to it in the other schema, starting with `#`.
    """
    if isinstance(schema, list):
        return [rebase_references(one, place) for one in schema]
    if not isinstance(schema, dict) or "$id" in schema:  # an $id starts a resource with its own references
        return schema
    result: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "$ref" and isinstance(value, str) and value.startswith("#") and not value[1:2].isalnum():
            result[key] = place + value[1:]
        elif key in _SUBSCHEMA_MAPS and isinstance(value, dict):  # its keys are names, not keywords
            result[key] = {name: rebase_references(one, place) for name, one in value.items()}
        elif key in _DATA_KEYWORDS:
            result[key] = value
        else:
            result[key] = rebase_references(value, place)
    return result


class ToolReader:
    """Separates tool calls from text in an answer as it grows.

    Text is passed on immediately, except for what may be the beginning of a call; a call is passed on when it is
    complete. If it turns out not to be a call, it is passed on as text.

    Args:
        form: Call format of the model.
        functions: Functions that may be called: name → JSON schema of the parameters.
        forced: Whether the whole answer is a call, as JSON without marks.
        only_one: Whether to drop all calls after the first.
    """

    def __init__(
        self, form: ToolForm, functions: Mapping[str, Any], forced: bool = False, only_one: bool = False
    ) -> None:
        self._form = form
        self._only_one = only_one
        self._functions = functions
        self._forced = forced
        self._pending = ""
        self._inside = forced or not form.opening
        """Whether a call has started."""
        self._bare = self._inside
        self._is_text = False
        """Whether a possible call without marks has turned out to be text."""
        self._closing = "" if forced else form.closing
        self.num_calls = 0

    def feed(self, text: str) -> list[str | ToolCall]:
        """Process more of the answer.

        Args:
            text: Text that was added.

        Returns:
            Texts and calls that are now certain, in order.
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
                # White space may turn out to precede a call, where it has no meaning.
                certain = self._pending[: len(self._pending) - kept].rstrip()
                if certain:
                    found.append(certain)
                    self._pending = self._pending[len(certain) :]
                return found
            if self._bare and not self._is_text:
                start = self._pending.lstrip()
                self._is_text = bool(start) and not (
                    start.startswith(("{", "[")) or start.startswith(PYTHON_TAG) or PYTHON_TAG.startswith(start)
                )
            if self._is_text:
                if self._pending:
                    found.append(self._pending)
                self._pending = ""
                return found
            end = self._closing_at()
            if end is None:
                return found
            inside, self._pending = self._pending[:end], self._pending[end + len(self._closing) :]
            found += self._calls(inside, self._form.opening + inside + self._closing)
            self._inside = False

    def finish(self) -> list[str | ToolCall]:
        """Return the remaining texts and calls when the answer has ended."""
        rest, self._pending = self._pending, ""
        if not rest.strip():
            return []
        if not self._inside:
            return [rest]
        return self._calls(rest, rest if self._bare else self._form.opening + rest, at_end=True)

    def _closing_at(self) -> int | None:
        """Return the index of the closing mark of the open call: the first one outside of JSON strings."""
        if not self._closing:
            return None
        if self._form.is_xml and self._pending.lstrip().startswith("<"):
            ended = _XML_END.search(self._pending)
            return None if ended is None else ended.start(1)
        if self._closing not in self._pending:
            return None
        hidden = _STRING.sub(lambda string: "_" * len(string[0]), self._pending)
        at = hidden.find(self._closing)
        if at < 0 or '"' in hidden[:at]:  # not found, or inside a string that has not ended yet
            return None
        return at

    def _calls(self, inside: str, written: str, at_end: bool = False) -> list[str | ToolCall]:
        calls = self._parsed(inside)
        if calls is None and at_end and self._forced:
            calls = self._truncated_call(inside)
        if not calls:
            return [written]
        if self._only_one:
            calls = calls[: max(0, 1 - self.num_calls)]
        self.num_calls += len(calls)
        return list(calls)

    def _parsed(self, inside: str) -> list[ToolCall] | None:
        """Return the calls in a text, or None if any of it is something else."""
        if self._form.is_xml and not self._forced and inside.lstrip().startswith("<"):
            return self._parsed_xml(inside)
        calls: list[ToolCall] = []
        decoder, at = json.JSONDecoder(), 0
        inside = inside.strip().removeprefix(PYTHON_TAG)
        while True:
            at = self._form.between.match(inside, at).end()  # type: ignore[union-attr]
            if at == len(inside):
                return calls
            named = None if self._form.named is None else self._form.named.match(inside, at)
            try:
                value, at = decoder.raw_decode(inside, at if named is None else named.end())
            except (ValueError, RecursionError):
                return None
            if named is not None:
                value = {"name": named[1], "arguments": value}
            for item in value if isinstance(value, list) else [value]:
                call = self._call(item)
                if call is None:
                    return None
                calls.append(call)

    def _call(self, item: Any) -> ToolCall | None:
        name = item.get("name") if isinstance(item, dict) else None
        if not isinstance(name, str) or name not in self._functions:
            return None
        arguments = item.get("arguments", item.get("parameters", {}))
        if isinstance(arguments, str):  # models also write JSON in a string, as in OpenAI's API
            try:
                arguments = json.loads(arguments) if arguments.strip() else {}
            except (ValueError, RecursionError):
                return None
        if arguments is None:
            arguments = {}
        return ToolCall(name, json.dumps(arguments, ensure_ascii=False)) if isinstance(arguments, dict) else None

    def _parsed_xml(self, inside: str) -> list[ToolCall] | None:
        """Return the calls in Qwen3-Coder's tags; values are JSON unless the function's schema says string."""
        calls, at = [], 0
        while at < len(inside):
            function = _XML_FUNCTION.match(inside, at)
            if function is None or function[1] not in self._functions:
                return None
            properties = (self._functions[function[1]] or {}).get("properties", {})
            arguments, begin = {}, 0
            while begin < len(function[2].rstrip()):
                parameter = _XML_PARAMETER.match(function[2], begin)
                if parameter is None:
                    return None
                arguments[parameter[1]] = _xml_value(parameter[2], properties.get(parameter[1]))
                begin = parameter.end()
            calls.append(ToolCall(function[1], json.dumps(arguments, ensure_ascii=False)))
            at = function.end()
        return calls

    def _truncated_call(self, inside: str) -> list[ToolCall] | None:
        """Return a forced call that max_tokens has truncated, with the arguments written so far, as in OpenAI's API."""
        found = _CUT_OFF.fullmatch(inside)
        return [ToolCall(found[1], found[2])] if found and found[1] in self._functions else None


def _xml_value(text: str, schema: Any) -> Any:
    kind = schema.get("type") if isinstance(schema, dict) else None
    if kind == "string" or (isinstance(kind, list) and "string" in kind and text != "null"):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _overlap(text: str, mark: str) -> int:
    """Return the number of characters at the end of a text that may be the beginning of a mark."""
    return next((size for size in range(min(len(text), len(mark) - 1), 0, -1) if text.endswith(mark[:size])), 0)
