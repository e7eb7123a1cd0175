"""`POST /v1/completions`: texts that are gone on with."""

import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from lit_gpt.serving.active import ActiveRequest
from lit_gpt.serving.answers import Answer, completion_logprobs
from lit_gpt.serving.edge import note
from lit_gpt.serving.errors import ApiError
from lit_gpt.serving.guards.answers import GuardedAnswers, refuse_logprobs
from lit_gpt.serving.guards.request import guarded_prompt
from lit_gpt.serving.protocol import CompletionRequest
from lit_gpt.serving.responses import StreamResponse, prepared, while_connected
from lit_gpt.serving.sampling import (
    COMPLETION_TOKENS,
    answer_tokens,
    bounded,
    for_choice,
    format_constraint,
    sampling_params,
)
from lit_gpt.serving.service import Service
from lit_gpt.serving.usage import usage

router = APIRouter()


@router.post("/v1/completions", response_model=None)
async def completions(body: CompletionRequest, request: Request) -> Response:
    """Go on with one text or several; a text stands at the start of a document, as in training."""
    service = Service.of(request)
    service.check_model(body.model)
    refuse_logprobs(service.guard_chain, body.logprobs is not None)
    prompts = listed_prompts(body.prompt)
    choices = body.n or 1
    for name, value, most in (
        ("n", choices, service.limits.choices),
        ("prompt", len(prompts), service.limits.prompts),
    ):
        if value > most:
            raise ApiError(400, f"{name} asks for {value}, more than the server's limit of {most}", "too_many", name)
    active = service.start(choices * len(prompts))
    builder = service.builder if body.has_form else None
    ids = await prepared(active, lambda: _submit(service, active, body, prompts, choices), builder)
    prompt_tokens = sum(map(len, ids))
    note(request.scope, prompt_tokens=prompt_tokens, choices=choices * len(prompts))
    echoes = [_echo(service, body, one) for one in ids for _ in range(choices)]
    exchange = _Exchange(service, active, body, echoes, prompt_tokens)
    if body.stream:
        return StreamResponse(active, exchange.chunks(), service.limits)
    try:
        return JSONResponse(await while_connected(request, exchange.whole()))
    finally:
        active.close()
        note(request.scope, tokens=active.num_tokens)


def listed_prompts(prompt: str | list[int] | list[str] | list[list[int]]) -> list[str | list[int]]:
    """One prompt or several, texts or ids, as a list of them."""
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt[0], int):
        return [[index for index in prompt if isinstance(index, int)]]
    return [one for one in prompt if not isinstance(one, int)]


def _submit(
    service: Service, active: ActiveRequest, body: CompletionRequest, prompts: list[str | list[int]], choices: int
) -> list[list[int]]:
    served = service.served
    served.check_size(*prompts)
    guarded = [guarded_prompt(service.guard_chain, served, prompt, "prompt") for prompt in prompts]
    texts = [served.text_ids(prompt) if isinstance(prompt, str) else prompt for prompt in guarded]
    constraint = bounded(format_constraint(body.response_format), service.limits)
    jobs = []
    for ids in texts:
        most = answer_tokens(body.max_tokens, COMPLETION_TOKENS, len(ids), served.max_length, service.limits)
        jobs.append((ids, sampling_params(body, most, (), constraint)))
    service.metrics.prompt_tokens.inc(sum(map(len, texts)))
    for ids, params in jobs:
        for choice in range(choices):
            active.submit(ids, for_choice(params, choice))
    return texts


def _echo(service: Service, body: CompletionRequest, ids: list[int]) -> str:
    """The prompt's text, where the answer shall begin with it."""
    if not body.echo:
        return ""
    tokenizer = service.served.tokenizer
    opening = len(tokenizer.opening_ids)
    return tokenizer.decode(ids[opening:] if tuple(ids[:opening]) == tokenizer.opening_ids else ids)


@dataclass
class _Exchange:
    """One request and its answers, prompt by prompt."""

    service: Service
    active: ActiveRequest
    body: CompletionRequest
    echoes: list[str]
    prompt_tokens: int

    def __post_init__(self) -> None:
        self._envelope = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": self.service.served.name,
            "system_fingerprint": None,
        }
        tokens = None if self.body.logprobs is None else self.service.tokens
        answers = [Answer(tokens, streamed=bool(self.body.stream)) for _ in self.echoes]
        self._answers = GuardedAnswers(self.service.guard_chain, self.active, answers)

    def _choice(self, index: int, text: str, logprobs: Any, finish: str | None) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}

    def _usage(self) -> dict[str, Any]:
        return usage(self.prompt_tokens, self.active.num_tokens)

    async def whole(self) -> dict[str, Any]:
        """All texts, when the last is complete."""
        async for batch in self.active.batches():
            for index in dict.fromkeys(index for index, _ in batch):
                await self._answers.feed(index, [event for owner, event in batch if owner == index])
        choices = []
        for index, echo in enumerate(self.echoes):
            whole = self._answers.whole(index)
            logprobs = None if self.body.logprobs is None else completion_logprobs(whole.tokens, self.service.tokens, 0)
            choices.append(self._choice(index, echo + whole.text, logprobs, whole.finish_reason))
        return {**self._envelope, "choices": choices, "usage": self._usage()}

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """The texts as they grow."""
        with_usage = self.body.stream_options is not None and self.body.stream_options.include_usage
        envelope = self._envelope | ({"usage": None} if with_usage else {})
        for index, echo in enumerate(self.echoes):
            if echo:
                yield envelope | {"choices": [self._choice(index, echo, None, None)]}
        offsets = [0] * len(self.echoes)
        async for batch in self.active.batches():
            for index in dict.fromkeys(index for index, _ in batch):
                added = await self._answers.feed(index, [event for owner, event in batch if owner == index])
                if not added:
                    continue
                logprobs = None
                if added.tokens:
                    logprobs = completion_logprobs(added.tokens, self.service.tokens, offsets[index])
                    offsets[index] += sum(map(len, logprobs["tokens"]))
                yield envelope | {"choices": [self._choice(index, added.text, logprobs, added.finish_reason)]}
        if with_usage:
            yield envelope | {"choices": [], "usage": self._usage()}
