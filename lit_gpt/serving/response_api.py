"""`POST /v1/responses`: OpenAI's newer form of a chat, for text and functions; nothing is stored on the server.

A request is rewritten as one of `/v1/chat/completions` and answered by the same code; only the shapes differ: an input
is a list of items (messages, calls, results of calls), and so is the output.
"""

import secrets
import time
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field, StrictBool, StrictInt, StrictStr, model_validator

from lit_gpt.errors import UserError
from lit_gpt.serving.chat import Exchange, begin
from lit_gpt.serving.errors import ApiError
from lit_gpt.serving.openapi import ModelResponse, answered_with
from lit_gpt.serving.protocol import (
    MAX_MESSAGES,
    MAX_TOOLS,
    MAX_TOP_LOGPROBS,
    ChatRequest,
    Finite,
    FunctionSpec,
    Known,
    Metadata,
    SchemaName,
    Store,
    ToolName,
    false_because,
)
from lit_gpt.serving.responses import Delta, chat_logprobs
from lit_gpt.serving.tools import ToolCall

router = APIRouter()
_LOGPROBS = "message.output_text.logprobs"
_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
_NOT_REPEATED = {"model", "input", "stream", "stream_options", "include", "store", "background", "reasoning"}
_DEFAULTS = {
    "metadata": {},
    "parallel_tool_calls": True,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": 1.0,
    "truncation": "disabled",
}


# ------------------------------------------------------------------ the request


class TextFormat(Known):
    """Form of the text; a schema stands here with its name."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: SchemaName | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    description: str | None = None
    strict: StrictBool | None = None

    @model_validator(mode="after")
    def _complete(self) -> "TextFormat":
        if (self.type == "json_schema") != (self.name is not None and self.schema_ is not None):
            raise ValueError("`name` and `schema` go with type 'json_schema', and that type with them")
        return self


class TextSettings(Known):
    """Settings of the text."""

    format: TextFormat | None = None
    verbosity: None = None


class FunctionTool(FunctionSpec):
    """A function that the model may call; other kinds of tools would run on OpenAI's servers."""

    type: Literal["function"]


class ChosenFunction(Known):
    """The function that must be called."""

    type: Literal["function"]
    name: ToolName


class ResponseStreamOptions(Known):
    """Options of a stream."""

    include_obfuscation: StrictBool = False


class ResponseRequest(Known):
    """`POST /v1/responses`."""

    model: StrictStr
    input: Annotated[
        StrictStr | Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)],
        Field(examples=["Hello"]),
    ]
    instructions: StrictStr | None = None
    max_output_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    temperature: Annotated[Finite, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Finite, Field(ge=0, le=1)] | None = None
    stream: StrictBool | None = None
    stream_options: ResponseStreamOptions | None = None
    text: TextSettings | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ChosenFunction | None = None
    parallel_tool_calls: StrictBool | None = None
    include: list[Literal["message.output_text.logprobs"]] | None = None
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    store: Store = None
    background: Annotated[Literal[False] | None, false_because("answers at once")] = None
    previous_response_id: None = None
    truncation: Literal["disabled"] | None = None
    reasoning: None = None
    # Accepted, and without effect on the answer here.
    metadata: Metadata | None = None
    service_tier: Literal["auto", "default"] | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    user: str | None = None

    def as_chat(self) -> ChatRequest:
        """Return the same request to `/v1/chat/completions`.

        Raises:
            ApiError: 400, if it is none.
            UserError: If an item of the input is unknown.
        """
        messages = [{"role": "system", "content": self.instructions}] if self.instructions else []
        items = [{"role": "user", "content": self.input}] if isinstance(self.input, str) else self.input
        messages += [_message(item, number) for number, item in enumerate(items, start=1)]
        tools = [tool.model_dump(exclude_none=True) for tool in self.tools or ()]
        choice: Any = self.tool_choice
        if isinstance(choice, ChosenFunction):
            choice = {"type": "function", "function": {"name": choice.name}}
        with_logprobs = _LOGPROBS in (self.include or ()) or bool(self.top_logprobs)
        body = {
            "model": self.model,
            "messages": messages,
            "max_completion_tokens": self.max_output_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "stream": self.stream,
            "logprobs": with_logprobs,
            "top_logprobs": (self.top_logprobs or 0) if with_logprobs else None,
            "response_format": self._response_format(),
            "tools": [{"type": tool.pop("type"), "function": tool} for tool in tools] or None,
            "tool_choice": choice,
            "parallel_tool_calls": self.parallel_tool_calls,
        }
        return ChatRequest.of(body)

    def _response_format(self) -> dict[str, Any] | None:
        form = None if self.text is None else self.text.format
        if form is None or form.type != "json_schema":
            return None if form is None else {"type": form.type}
        schema = form.model_dump(exclude={"type"}, exclude_none=True, by_alias=True)
        return {"type": "json_schema", "json_schema": schema}

    def settings(self) -> dict[str, Any]:
        """Return what a response repeats of its request."""
        given = self.model_dump(exclude=_NOT_REPEATED, by_alias=True)
        return {name: _DEFAULTS.get(name) if value is None else value for name, value in given.items()}


_ITEM_FIELDS = {
    "message": {"type", "id", "status", "role", "content"},
    "function_call": {"type", "id", "status", "call_id", "name", "arguments"},
    "function_call_output": {"type", "id", "status", "call_id", "output"},
}
"""Kinds of items of an input, and their fields."""
_PART_FIELDS = {"input_text": {"type", "text"}, "output_text": {"type", "text", "annotations", "logprobs"}}
"""Kinds of parts that hold text, and their fields; an answer comes back with all of its own."""


def _message(item: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Return an item of an input as a message of a chat."""
    kind = item.get("type", "message")
    if not isinstance(kind, str) or kind not in _ITEM_FIELDS:
        known = " or ".join(_ITEM_FIELDS)
        raise UserError(f"item {number} of the input has the type {kind!r}; this server reads {known}")
    _refuse_unknown(item, _ITEM_FIELDS[kind], f"item {number} of the input")
    if kind == "message":
        return {"role": item.get("role"), "content": _content(item.get("content"), number)}
    if kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        call = {"type": "function", "id": item.get("call_id"), "function": function}
        return {"role": "assistant", "content": None, "tool_calls": [call]}
    return {"role": "tool", "tool_call_id": item.get("call_id"), "content": _content(item.get("output"), number)}


def _content(content: Any, number: int) -> Any:
    """Return a content whose parts have the names of a chat's."""
    if not isinstance(content, list):
        return content
    parts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if isinstance(kind, str) and kind in _PART_FIELDS:
            _refuse_unknown(part, _PART_FIELDS[kind], f"a part of item {number} of the input")
            part = {"type": "text", "text": part.get("text")}
        parts.append(part)
    return parts


def _refuse_unknown(value: Mapping[str, Any], known: set[str], what: str) -> None:
    unknown = [repr(name) for name in value if name not in known]
    if unknown:
        raise UserError(f"{what} has the fields {', '.join(unknown)}, which this server does not read")


# ------------------------------------------------------------------ the answer


@router.post("/v1/responses", response_model=None, responses=answered_with(ModelResponse, streams=True))
async def create_response(body: ResponseRequest, request: Request) -> Response:
    """Answer an input: a text, or a list of messages, calls and results of calls. Nothing is stored."""
    exchange = await begin(request, body.as_chat(), "max_output_tokens")
    output = _Output(exchange, body)
    return await exchange.respond(request, output.whole, output.events, named=True)


class _Output:
    """The items of one response as they grow, and the events that say so.

    Args:
        exchange: The chat behind it.
        body: The request.
    """

    def __init__(self, exchange: Exchange, body: ResponseRequest) -> None:
        self._exchange = exchange
        self._created = int(time.time())
        self._id = f"resp_{secrets.token_hex(16)}"
        self._settings = body.settings()
        self._with_logprobs = bool(exchange.body.logprobs)
        self._items: list[dict[str, Any]] = []
        self._number = 0
        self._open = False
        """Whether the last item is a message that may grow."""

    def _response(self, status: str, **values: Any) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "model": self._exchange.service.served.name,
            "output": self._items,
            "reasoning": None,
            "store": False,
            "usage": None,
            **self._settings,
            **values,
        }

    def _ended(self, finish_reason: str | None) -> dict[str, Any]:
        prompt, completion = self._exchange.prompt_tokens, self._exchange.active.num_tokens
        usage = {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": completion,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt + completion,
        }
        reason = _INCOMPLETE.get(finish_reason or "")
        if reason is None:
            return self._response("completed", usage=usage)
        return self._response("incomplete", incomplete_details={"reason": reason}, usage=usage)

    async def whole(self) -> dict[str, Any]:
        """Return the complete response."""
        (whole,) = await self._exchange.guarded.wholes()
        for _ in self._grown(whole):
            pass
        return self._ended(whole.finish_reason)

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """Yield the events of a stream."""
        yield self._event("response.created", response=self._response("in_progress"))
        yield self._event("response.in_progress", response=self._response("in_progress"))
        finish_reason = None
        try:
            async for _, added in self._exchange.guarded.deltas():
                for event in self._grown(added):
                    yield event
                finish_reason = added.finish_reason or finish_reason
        except ApiError as error:
            failure = {"code": error.code, "message": error.message}
            yield self._event("response.failed", response=self._response("failed", error=failure))
            return
        response = self._ended(finish_reason)
        yield self._event(f"response.{response['status']}", response=response)

    def _event(self, kind: str, **values: Any) -> dict[str, Any]:
        event = {"type": kind, "sequence_number": self._number, **values}
        self._number += 1
        return event

    def _grown(self, added: Delta) -> list[dict[str, Any]]:
        """Add to the items; returns the events that say so."""
        events = []
        if added.text or (added.tokens and self._open):  # tokens of a call are not reported
            if not self._open:
                events += self._begin_message()
            events.append(self._add_text(added))
        for call in added.calls:
            events += [*self._end_message("completed"), *self._add_call(call)]
        if added.finish_reason is not None:
            if not self._items:  # an empty answer is a message all the same
                events += self._begin_message()
            events += self._end_message("incomplete" if added.finish_reason in _INCOMPLETE else "completed")
        return events

    def _place(self) -> dict[str, Any]:
        """Of the last item."""
        return {"output_index": len(self._items) - 1, "item_id": self._items[-1]["id"]}

    def _begin_message(self) -> list[dict[str, Any]]:
        part: dict[str, Any] = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        item = {"type": "message", "id": f"msg_{secrets.token_hex(12)}", "role": "assistant", "status": "in_progress"}
        self._items.append({**item, "content": [part]})
        self._open = True
        index = len(self._items) - 1
        added = self._event("response.output_item.added", output_index=index, item={**item, "content": []})
        return [added, self._event("response.content_part.added", **self._place(), content_index=0, part=dict(part))]

    def _add_text(self, added: Delta) -> dict[str, Any]:
        part = self._items[-1]["content"][0]
        part["text"] += added.text
        logprobs = []
        if self._with_logprobs:
            logprobs = chat_logprobs(added.tokens, self._exchange.service.served.token_text)["content"]
            part["logprobs"] += logprobs
        values = {"content_index": 0, "delta": added.text, "logprobs": logprobs}
        return self._event("response.output_text.delta", **self._place(), **values)

    def _end_message(self, status: str) -> list[dict[str, Any]]:
        if not self._open:
            return []
        self._open = False
        item = self._items[-1]
        item["status"] = status
        part, place = item["content"][0], {**self._place(), "content_index": 0}
        return [
            self._event("response.output_text.done", **place, text=part["text"], logprobs=part["logprobs"]),
            self._event("response.content_part.done", **place, part=part),
            self._event("response.output_item.done", output_index=len(self._items) - 1, item=item),
        ]

    def _add_call(self, call: ToolCall) -> list[dict[str, Any]]:
        ids = {"id": f"fc_{secrets.token_hex(12)}", "call_id": f"call_{secrets.token_hex(12)}"}
        item = {"type": "function_call", **ids, "name": call.name, "arguments": call.arguments, "status": "completed"}
        self._items.append(item)
        index, arguments = len(self._items) - 1, call.arguments
        begun = {**item, "arguments": "", "status": "in_progress"}
        return [
            self._event("response.output_item.added", output_index=index, item=begun),
            self._event("response.function_call_arguments.delta", **self._place(), delta=arguments),
            self._event("response.function_call_arguments.done", **self._place(), name=call.name, arguments=arguments),
            self._event("response.output_item.done", output_index=index, item=item),
        ]
