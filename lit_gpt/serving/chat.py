"""`POST /v1/chat/completions`."""

import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from lit_gpt.data.chat import Message, normalise_messages
from lit_gpt.errors import UserError
from lit_gpt.generation.request import Constraint
from lit_gpt.serving.errors import ApiError
from lit_gpt.serving.middleware import note
from lit_gpt.serving.openapi import ChatCompletion, answered_with
from lit_gpt.serving.protocol import (
    ChatRequest,
    NamedTool,
    answer_tokens,
    bounded,
    for_choice,
    format_constraint,
    sampling_params,
)
from lit_gpt.serving.responses import (
    Answer,
    Delta,
    GuardedAnswers,
    StreamResponse,
    chat_logprobs,
    prepared,
    refuse_logprobs,
    usage,
    while_connected,
)
from lit_gpt.serving.service import ActiveRequest, Service
from lit_gpt.serving.tools import ToolReader, call_constraint

router = APIRouter()
_SEPARATOR = "\n\n"
"""Separator between the contents of merged messages."""


# ------------------------------------------------------------------ the conversation


def conversation(messages: Sequence[Any]) -> list[Message]:
    """Return the messages of a request in an order that chat templates can render.

    Agents send histories that no model was trained on, and OpenAI's API accepts them: several system messages, several
    messages of the user in a row, an assistant that speaks first, a user after a tool's result. Messages that can be
    merged without changing the meaning are merged (system messages into the first one, adjacent messages of one role);
    anything else is left to the template, which may reject it with a reason.

    Args:
        messages: Messages as in OpenAI's API, including its old `function_call`.

    Raises:
        UserError: If an item is not a message, or the last message is the assistant's.
    """
    turns = normalise_messages([_modern(message) for message in messages], remedy="")
    system = [turn["content"] for turn in turns if turn["role"] == "system"]
    merged: list[Message] = [Message(role="system", content=_SEPARATOR.join(system))] if system else []
    for number, turn in enumerate(turns, start=1):
        role = turn["role"]
        if turn.get("tool_calls") and role != "assistant":
            raise UserError(f"message {number} is from {role!r} and has tool_calls; only the assistant calls tools")
        if role == "user" and not turn["content"].strip():
            raise UserError(f"message {number} (user) is empty")
        if role == "system":
            continue
        before = merged[-1] if merged else None
        if before is not None and before["role"] == role and role in ("user", "assistant"):
            merged[-1] = _merged(before, turn)
        else:
            merged.append(turn)
    if merged[-1]["role"] == "system":
        raise UserError("the conversation has only system messages; end with the user's or a tool's")
    if merged[-1]["role"] == "assistant":
        raise UserError("the last message is the assistant's; end with the user's or a tool's")
    return merged


def _modern(message: Any) -> Any:
    """Convert the old `function_call` to `tool_calls`, and missing or null texts to empty ones."""
    if not isinstance(message, Mapping):
        return message
    result = dict(message)
    content = result.get("content")
    for part in content if isinstance(content, list) else ():
        if isinstance(part, Mapping) and part.get("type") not in ("text", None):
            raise UserError(f"a message has a part of type {part['type']!r}; this server's model only reads text")
    call = result.pop("function_call", None)
    if call is not None:
        result["tool_calls"] = [*(result.get("tool_calls") or ()), {"type": "function", "function": call}]
    if isinstance(result.get("tool_calls"), list):
        result["tool_calls"] = [_with_arguments(one) for one in result["tool_calls"]]
    if content is None and result.get("role") in ("tool", "function"):
        result["content"] = ""
    return result


def _with_arguments(call: Any) -> Any:
    """Return a call whose arguments are an object, also if they are an empty string or null."""
    if isinstance(call, Mapping) and isinstance(call.get("function"), Mapping):
        arguments = call["function"].get("arguments")
        if arguments is None or (isinstance(arguments, str) and not arguments.strip()):
            return {**call, "function": {**call["function"], "arguments": {}}}
    return call


def _merged(first: Message, second: Message) -> Message:
    contents = [one["content"] for one in (first, second) if one["content"]]
    calls = [*first.get("tool_calls", ()), *second.get("tool_calls", ())]
    result = cast(Message, {**first, **second, "content": _SEPARATOR.join(contents)})
    if calls:
        result["tool_calls"] = calls
    return result


# ------------------------------------------------------------------ the route


@dataclass(frozen=True)
class _ToolUse:
    """Tools and tool choice of a request."""

    described: list[dict[str, Any]]
    """Tools for the template."""
    callable: list[dict[str, Any]]
    """Functions that may be called."""
    forced: bool

    @classmethod
    def of(cls, body: ChatRequest) -> "_ToolUse":
        described = [tool.model_dump(exclude_none=True) for tool in body.tools or ()]
        functions = [tool["function"] for tool in described]
        choice = body.tool_choice
        if isinstance(choice, NamedTool):
            return cls(described, [f for f in functions if f["name"] == choice.function.name], True)
        if choice == "none":
            return cls([], [], False)
        return cls(described, functions, choice == "required")


@router.post("/v1/chat/completions", response_model=None, responses=answered_with(ChatCompletion, streams=True))
async def chat_completions(body: ChatRequest, request: Request) -> Response:
    """Answer a conversation."""
    exchange = await begin(request, body)
    return await exchange.respond(request, exchange.whole, exchange.chunks)


async def begin(request: Request, body: ChatRequest, length_field: str = "") -> "Exchange":
    """Start the answers to a conversation.

    Args:
        request: The HTTP request.
        body: The conversation.
        length_field: Field that bounds the answer's length, where the request has its own name for it.

    Raises:
        ApiError: If it cannot be answered, or not now.
        UserError: If the conversation or a constraint is refused.
    """
    service = Service.of(request)
    service.check_model(body.model)
    choices = body.n or 1
    if choices > service.limits.choices:
        message = f"n is {choices}, more than the server's limit of {service.limits.choices}"
        raise ApiError(400, message, "n_too_large", "n")
    refuse_logprobs(service.guard_chain, bool(body.logprobs))
    tools = _ToolUse.of(body)
    active = service.start(choices)
    builder = service.builder if tools.forced or body.is_constrained else None
    prompt_tokens = await prepared(active, lambda: _submit(service, active, body, tools, length_field), builder)
    note(request.scope, prompt_tokens=prompt_tokens, choices=choices)
    return Exchange(service, active, body, [_answer(service, body, tools) for _ in range(choices)], prompt_tokens)


def _submit(service: Service, active: ActiveRequest, body: ChatRequest, tools: _ToolUse, length_field: str) -> int:
    """Render the prompt, check its length and submit it to the engine; return the number of prompt tokens."""
    served = service.served
    if tools.described and served.renderer is not None and served.tool_form is None:
        raise ApiError(400, "the model's chat template has no format for tools", "tools_not_supported", "tools")
    served.check_size(body.messages, tools.described)
    messages = service.guard_chain.messages(conversation(body.messages))
    ids = served.chat_ids(messages, service.guard_chain.tools(tools.described))
    asked = body.max_completion_tokens or body.max_tokens
    name = length_field or ("max_completion_tokens" if body.max_completion_tokens else "max_tokens")
    most = answer_tokens(asked, None, len(ids), served.max_length, service.limits, name)
    assert served.renderer is not None
    params = sampling_params(body, most, served.renderer.stop_ids, _constraint(service, body, tools))
    service.metrics.prompt_tokens.inc(len(ids))
    for choice in range(body.n or 1):
        active.submit(ids, for_choice(params, choice))
    return len(ids)


def _constraint(service: Service, body: ChatRequest, tools: _ToolUse) -> Constraint | None:
    form = service.served.tool_form
    if tools.forced and form is not None:
        return bounded(call_constraint(form, tools.callable), service.limits)
    return bounded(format_constraint(body.response_format), service.limits)


def _answer(service: Service, body: ChatRequest, tools: _ToolUse) -> Answer:
    form, reader = service.served.tool_form, None
    if tools.callable and form is not None:
        functions = {function["name"]: function.get("parameters") for function in tools.callable}
        reader = ToolReader(form, functions, tools.forced, only_one=body.parallel_tool_calls is False)
    return Answer(service.served.token_text if body.logprobs else None, reader, bool(body.stream))


@dataclass
class Exchange:
    """One request and its answers.

    Attributes:
        service: Service that answers the request.
        active: The request's running sequences in the engine.
        body: Body of the request.
        answers: One answer per sequence (`n` of the request).
        prompt_tokens: Number of tokens of the rendered conversation.
    """

    service: Service
    active: ActiveRequest
    body: ChatRequest
    answers: list[Answer]
    prompt_tokens: int

    def __post_init__(self) -> None:
        self._id = f"chatcmpl-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self.guarded = GuardedAnswers(self.service.guard_chain, self.active, self.answers)

    def _envelope(self, kind: str) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self.service.served.name,
            "system_fingerprint": None,
        }

    def _usage(self) -> dict[str, Any]:
        return usage(self.prompt_tokens, self.active.num_tokens)

    async def respond(
        self,
        request: Request,
        whole: Callable[[], Awaitable[dict[str, Any]]],
        events: Callable[[], AsyncIterator[dict[str, Any]]],
        named: bool = False,
    ) -> Response:
        """Answer in one piece, as long as the client is connected, or as a stream, as the request asks.

        Args:
            request: The HTTP request.
            whole: Returns the complete answer.
            events: Yields the answer as it grows.
            named: Whether each event of the stream carries its `type` as a name (see `StreamResponse`).
        """
        if self.body.stream:
            return StreamResponse(self.active, events(), self.service.limits, named)
        try:
            return JSONResponse(await while_connected(request, whole()))
        finally:
            self.active.close()
            note(request.scope, tokens=self.active.num_tokens)

    async def whole(self) -> dict[str, Any]:
        """Return all answers when the last one is complete."""
        choices = [self._choice(index, whole) for index, whole in enumerate(await self.guarded.wholes())]
        return {**self._envelope("chat.completion"), "choices": choices, "usage": self._usage()}

    def _choice(self, index: int, whole: Delta) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": whole.text, "refusal": None}
        if whole.calls:
            message["content"] = whole.text or None
            message["tool_calls"] = [call.to_dict() for call in whole.calls]
        logprobs = chat_logprobs(whole.tokens, self.service.served.token_text) if self.body.logprobs else None
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": whole.finish_reason}

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """Yield the answers as they grow."""
        with_usage = self.body.stream_options is not None and self.body.stream_options.include_usage
        envelope = self._envelope("chat.completion.chunk") | ({"usage": None} if with_usage else {})

        def chunk(index: int, delta: dict[str, Any], logprobs: Any = None, finish: str | None = None) -> dict[str, Any]:
            choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
            return envelope | {"choices": [choice]}

        num_calls = [0] * len(self.answers)
        for index in range(len(self.answers)):
            yield chunk(index, {"role": "assistant", "content": "", "refusal": None})
        async for index, added in self.guarded.deltas():
            delta: dict[str, Any] = {"content": added.text} if added.text else {}
            if added.calls:
                delta["tool_calls"] = [call.to_dict(num_calls[index] + k) for k, call in enumerate(added.calls)]
                num_calls[index] += len(added.calls)
            logprobs = chat_logprobs(added.tokens, self.service.served.token_text) if added.tokens else None
            if delta or logprobs:
                yield chunk(index, delta, logprobs)
            if added.finish_reason is not None:
                yield chunk(index, {}, None, added.finish_reason)
        if with_usage:
            yield envelope | {"choices": [], "usage": self._usage()}
