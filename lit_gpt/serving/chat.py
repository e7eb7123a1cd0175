"""`POST /v1/chat/completions`."""

import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from lit_gpt.generation.params import Constraint
from lit_gpt.serving.active import ActiveRequest
from lit_gpt.serving.answers import Answer, Delta, chat_logprobs
from lit_gpt.serving.edge import note
from lit_gpt.serving.errors import ApiError
from lit_gpt.serving.guards.answers import GuardedAnswers, refuse_logprobs
from lit_gpt.serving.guards.request import guarded_messages, guarded_tools
from lit_gpt.serving.protocol import ChatRequest, NamedTool
from lit_gpt.serving.responses import StreamResponse, prepared, while_connected
from lit_gpt.serving.sampling import answer_tokens, bounded, for_choice, format_constraint, sampling_params
from lit_gpt.serving.service import Service
from lit_gpt.serving.tools import ToolReader, call_constraint
from lit_gpt.serving.usage import usage

router = APIRouter()


@dataclass(frozen=True)
class _ToolUse:
    """What a request says of tools."""

    described: list[dict[str, Any]]
    """For the template."""
    callable: list[dict[str, Any]]
    """Functions that may be called."""
    demanded: bool

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


@router.post("/v1/chat/completions", response_model=None)
async def chat_completions(body: ChatRequest, request: Request) -> Response:
    """Answer a conversation."""
    service = Service.of(request)
    service.check_model(body.model)
    choices = body.n or 1
    if choices > service.limits.choices:
        message = f"n is {choices}, more than the server's limit of {service.limits.choices}"
        raise ApiError(400, message, "n_too_large", "n")
    refuse_logprobs(service.guard_chain, bool(body.logprobs))
    tools = _ToolUse.of(body)
    active = service.start(choices)
    builder = service.builder if tools.demanded or body.has_form else None
    prompt_tokens = await prepared(active, lambda: _submit(service, active, body, tools, choices), builder)
    note(request.scope, prompt_tokens=prompt_tokens, choices=choices)
    answers = [_answer(service, body, tools) for _ in range(choices)]
    exchange = _Exchange(service, active, body, answers, prompt_tokens)
    if body.stream:
        return StreamResponse(active, exchange.chunks(), service.limits)
    try:
        return JSONResponse(await while_connected(request, exchange.whole()))
    finally:
        active.close()
        note(request.scope, tokens=active.num_tokens)


def _submit(service: Service, active: ActiveRequest, body: ChatRequest, tools: _ToolUse, choices: int) -> int:
    """Render, count and hand over to the engine; returns the prompt's tokens."""
    served = service.served
    if tools.described and served.renderer is not None and served.tool_form is None:
        raise ApiError(400, "the model's chat template has no form for tools", "tools_not_supported", "tools")
    served.check_size(body.messages, tools.described)
    messages = guarded_messages(service.guard_chain, body.messages)
    ids = served.chat_ids(messages, guarded_tools(service.guard_chain, tools.described))
    asked = body.max_completion_tokens or body.max_tokens
    most = answer_tokens(asked, None, len(ids), served.max_length, service.limits)
    assert served.renderer is not None
    params = sampling_params(body, most, served.renderer.stop_ids, _constraint(service, body, tools))
    service.metrics.prompt_tokens.inc(len(ids))
    for choice in range(choices):
        active.submit(ids, for_choice(params, choice))
    return len(ids)


def _constraint(service: Service, body: ChatRequest, tools: _ToolUse) -> Constraint | None:
    form = service.served.tool_form
    if tools.demanded and form is not None:
        return bounded(call_constraint(form, tools.callable), service.limits)
    return bounded(format_constraint(body.response_format), service.limits)


def _answer(service: Service, body: ChatRequest, tools: _ToolUse) -> Answer:
    form, reader = service.served.tool_form, None
    if tools.callable and form is not None:
        names = [function["name"] for function in tools.callable]
        one = body.parallel_tool_calls is False
        reader = ToolReader(form, names, tools.demanded, one)
    return Answer(service.tokens if body.logprobs else None, reader, bool(body.stream))


@dataclass
class _Exchange:
    """One request and its answers."""

    service: Service
    active: ActiveRequest
    body: ChatRequest
    answers: list[Answer]
    prompt_tokens: int

    def _envelope(self, kind: str) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self.service.served.name,
            "system_fingerprint": None,
        }

    def __post_init__(self) -> None:
        self._id = f"chatcmpl-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._seen = GuardedAnswers(self.service.guard_chain, self.active, self.answers)

    def _usage(self) -> dict[str, Any]:
        return usage(self.prompt_tokens, self.active.num_tokens)

    async def whole(self) -> dict[str, Any]:
        """All answers, when the last is complete."""
        async for batch in self.active.batches():
            for index in dict.fromkeys(index for index, _ in batch):
                await self._seen.feed(index, [event for owner, event in batch if owner == index])
        choices = [self._choice(index, self._seen.whole(index)) for index in range(len(self.answers))]
        return {**self._envelope("chat.completion"), "choices": choices, "usage": self._usage()}

    def _choice(self, index: int, whole: Delta) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": whole.text, "refusal": None}
        if whole.calls:
            message["content"] = whole.text or None
            message["tool_calls"] = [call.to_dict() for call in whole.calls]
        logprobs = chat_logprobs(whole.tokens, self.service.tokens) if self.body.logprobs else None
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": whole.finish_reason}

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """The answers as they grow."""
        with_usage = self.body.stream_options is not None and self.body.stream_options.include_usage
        envelope = self._envelope("chat.completion.chunk") | ({"usage": None} if with_usage else {})

        def chunk(index: int, delta: dict[str, Any], logprobs: Any = None, finish: str | None = None) -> dict[str, Any]:
            choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
            return envelope | {"choices": [choice]}

        num_calls = [0] * len(self.answers)
        for index in range(len(self.answers)):
            yield chunk(index, {"role": "assistant", "content": "", "refusal": None})
        async for batch in self.active.batches():
            for index in dict.fromkeys(index for index, _ in batch):
                added = await self._seen.feed(index, [event for owner, event in batch if owner == index])
                delta: dict[str, Any] = {"content": added.text} if added.text else {}
                if added.calls:
                    delta["tool_calls"] = [call.to_dict(num_calls[index] + k) for k, call in enumerate(added.calls)]
                    num_calls[index] += len(added.calls)
                logprobs = chat_logprobs(added.tokens, self.service.tokens) if added.tokens else None
                if delta or logprobs:
                    yield chunk(index, delta, logprobs)
                if added.finish_reason is not None:
                    yield chunk(index, {}, None, added.finish_reason)
        if with_usage:
            yield envelope | {"choices": [], "usage": self._usage()}
