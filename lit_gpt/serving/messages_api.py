"""`POST /v1/messages`: Anthropic's form of a chat, for text and tools.

A request is rewritten as one of `/v1/chat/completions` and answered by the same code, as in `response_api`: contents
are lists of blocks (text, calls of tools, their results), and so is the answer. Errors have OpenAI's format, whose
`error.type` and `error.message` Anthropic's clients read too. The key may be sent as `x-api-key`.
"""

import contextlib
import json
import secrets
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field, StrictBool, StrictInt, StrictStr

from lit_gpt.errors import UserError
from lit_gpt.generation.request import MAX_STOPS
from lit_gpt.serving.chat import Exchange, begin
from lit_gpt.serving.errors import ApiError, error_type
from lit_gpt.serving.openapi import AnthropicMessage, answered_with
from lit_gpt.serving.protocol import (
    MAX_MESSAGES,
    MAX_TOOLS,
    ChatRequest,
    Finite,
    Known,
    Metadata,
    Stop,
    ToolName,
)
from lit_gpt.serving.responses import Delta
from lit_gpt.serving.tools import ToolCall

router = APIRouter()
_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
_BLOCK_FIELDS = {
    "text": {"type", "text", "citations"},
    "tool_use": {"type", "id", "name", "input"},
    "tool_result": {"type", "tool_use_id", "content", "is_error"},
}
"""Kinds of blocks and their fields; `cache_control`, which asks for a cheaper prefix, may be in each."""
_ERROR = "Error: "
"""Precedes the result of a call that failed (`is_error`), because chat templates have no other place for it."""


# ------------------------------------------------------------------ the request


class ToolDescription(Known):
    """A tool that the model may call."""

    name: ToolName
    input_schema: dict[str, Any]
    description: str | None = None
    type: Literal["custom"] | None = None
    cache_control: dict[str, Any] | None = None


class ToolChoice(Known):
    """Whether tools are called: as the model likes, any, one by its name, or none."""

    type: Literal["auto", "any", "tool", "none"]
    name: ToolName | None = None
    disable_parallel_tool_use: StrictBool | None = None


class Turn(Known):
    """One message."""

    role: Literal["user", "assistant"]
    content: Annotated[StrictStr | list[dict[str, Any]], Field(examples=["Hello"])]


class NoThinking(Known):
    """Reasoning as the model likes."""

    type: Literal["disabled"]


class MessagesRequest(Known):
    """`POST /v1/messages`."""

    model: StrictStr
    max_tokens: Annotated[StrictInt, Field(ge=1, examples=[64])]
    messages: Annotated[list[Turn], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    system: StrictStr | list[dict[str, Any]] | None = None
    temperature: Annotated[Finite, Field(ge=0, le=1)] | None = None
    top_p: Annotated[Finite, Field(ge=0, le=1)] | None = None
    top_k: Annotated[StrictInt, Field(ge=0)] | None = None
    stop_sequences: Annotated[list[Stop], Field(max_length=MAX_STOPS, fail_fast=True)] | None = None
    stream: StrictBool | None = None
    tools: Annotated[list[ToolDescription], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Annotated[ToolChoice | None, Field(examples=[{"type": "auto"}])] = None
    thinking: NoThinking | None = None
    # Accepted, and without effect on the answer here.
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None

    def as_chat(self) -> ChatRequest:
        """Return the same request to `/v1/chat/completions`.

        Raises:
            ApiError: 400, if it is none.
            UserError: If a block is unknown.
        """
        messages: list[dict[str, Any]] = []
        if self.system:
            blocks = _blocks(self.system, "system", ("text",))
            messages.append({"role": "system", "content": "\n\n".join(_text(block) for block in blocks)})
        for number, turn in enumerate(self.messages, start=1):
            messages += _turn(turn, f"message {number}")
        body = {
            "model": self.model,
            "messages": messages,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "stop": self.stop_sequences,
            "stream": self.stream,
            "tools": [_tool(tool) for tool in self.tools or ()] or None,
        }
        choice = self.tool_choice
        if choice is not None:
            if (choice.type == "tool") != (choice.name is not None):
                raise ApiError(400, "tool_choice: type 'tool' and `name` require each other", "invalid_value")
            named = {"type": "function", "function": {"name": choice.name}}
            body["tool_choice"] = {"any": "required", "tool": named}.get(choice.type, choice.type)
            if choice.disable_parallel_tool_use is not None:
                body["parallel_tool_calls"] = not choice.disable_parallel_tool_use
        return ChatRequest.of(body)


def _tool(tool: ToolDescription) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.input_schema}
    return {"type": "function", "function": function}


def _blocks(content: str | list[dict[str, Any]], where: str, kinds: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return a content as blocks of these kinds."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    for block in content:
        kind = block.get("type")
        if kind not in kinds:
            raise UserError(f"{where} has a block of type {kind!r}; this server reads {', '.join(kinds)} there")
        unknown = [repr(name) for name in block if name not in _BLOCK_FIELDS[kind] | {"cache_control"}]
        if unknown:
            raise UserError(f"a {kind} block of {where} has the fields {', '.join(unknown)}, which nothing here reads")
    return content


def _text(block: Mapping[str, Any]) -> str:
    if not isinstance(block.get("text"), str):
        raise UserError("a text block has no text")
    return str(block["text"])


def _turn(turn: Turn, where: str) -> list[dict[str, Any]]:
    """Return the messages of a chat for one of Anthropic's: results of calls are messages of their own there."""
    if turn.role == "assistant":
        blocks = _blocks(turn.content, where, ("text", "tool_use"))
        calls = [
            {
                "type": "function",
                "id": block.get("id"),
                "function": {"name": block.get("name"), "arguments": block.get("input")},
            }
            for block in blocks
            if block["type"] == "tool_use"
        ]
        text = "".join(_text(block) for block in blocks if block["type"] == "text")
        return [{"role": "assistant", "content": text} | ({"tool_calls": calls} if calls else {})]
    messages: list[dict[str, Any]] = []
    for block in _blocks(turn.content, where, ("text", "tool_result")):
        if block["type"] == "text":
            if messages and messages[-1]["role"] == "user":
                messages[-1]["content"] += _text(block)
            else:
                messages.append({"role": "user", "content": _text(block)})
            continue
        parts = _blocks(block.get("content") or "", f"a result in {where}", ("text",))
        result = (_ERROR if block.get("is_error") else "") + "".join(_text(part) for part in parts)
        messages.append({"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": result})
    return messages


# ------------------------------------------------------------------ the answer


@router.post("/v1/messages", response_model=None, responses=answered_with(AnthropicMessage, streams=True))
async def create_message(body: MessagesRequest, request: Request) -> Response:
    """Answer a conversation in Anthropic's form. A stop sequence that ended the answer is not reported."""
    exchange = await begin(request, body.as_chat())
    output = _Blocks(exchange)
    return await exchange.respond(request, output.whole, output.events, named=True)


class _Blocks:
    """The blocks of one answer as they grow, and the events that say so.

    Args:
        exchange: The chat behind it.
    """

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._id = f"msg_{secrets.token_hex(12)}"
        self._content: list[dict[str, Any]] = []
        self._open = False
        """Whether the last block is a text that may grow."""

    def _message(self, stop_reason: str | None) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._exchange.service.served.name,
            "content": self._content,
            "stop_reason": stop_reason,
            "stop_sequence": None,
            "usage": {
                "input_tokens": self._exchange.prompt_tokens,
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": 0,
                "output_tokens": self._exchange.active.num_tokens,
            },
        }

    async def whole(self) -> dict[str, Any]:
        """Return the complete message."""
        (whole,) = await self._exchange.guarded.wholes()
        for _ in self._grown(whole):
            pass
        return self._message(_STOP_REASONS.get(whole.finish_reason or "stop", "end_turn"))

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """Yield the events of a stream."""
        yield {"type": "message_start", "message": self._message(None)}
        reason = "stop"
        try:
            async for _, added in self._exchange.guarded.deltas():
                for event in self._grown(added):
                    yield event
                reason = added.finish_reason or reason
        except ApiError as error:
            yield {"type": "error", "error": {"type": error_type(error.status), "message": error.message}}
            return
        usage = {"output_tokens": self._exchange.active.num_tokens}
        delta = {"stop_reason": _STOP_REASONS.get(reason, "end_turn"), "stop_sequence": None}
        yield {"type": "message_delta", "delta": delta, "usage": usage}
        yield {"type": "message_stop"}

    def _grown(self, added: Delta) -> list[dict[str, Any]]:
        """Add to the blocks; returns the events that say so."""
        events: list[dict[str, Any]] = []
        if added.text:
            if not self._open:
                events.append(self._begin({"type": "text", "text": ""}))
                self._open = True
            self._content[-1]["text"] += added.text
            events.append(self._delta({"type": "text_delta", "text": added.text}))
        for call in added.calls:
            events += [*self._end_text(), *self._add_call(call)]
        if added.finish_reason is not None:
            events += self._end_text()
        return events

    def _begin(self, block: dict[str, Any]) -> dict[str, Any]:
        self._content.append(block)
        return {"type": "content_block_start", "index": len(self._content) - 1, "content_block": dict(block)}

    def _delta(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": len(self._content) - 1, "delta": delta}

    def _end_text(self) -> list[dict[str, Any]]:
        if not self._open:
            return []
        self._open = False
        return [{"type": "content_block_stop", "index": len(self._content) - 1}]

    def _add_call(self, call: ToolCall) -> list[dict[str, Any]]:
        block = {"type": "tool_use", "id": f"toolu_{secrets.token_hex(12)}", "name": call.name, "input": {}}
        begun = self._begin(block)
        with contextlib.suppress(ValueError):  # a forced call that max_tokens cut off: a stream has what was written
            self._content[-1]["input"] = json.loads(call.arguments)
        stop = {"type": "content_block_stop", "index": len(self._content) - 1}
        return [begun, self._delta({"type": "input_json_delta", "partial_json": call.arguments}), stop]
