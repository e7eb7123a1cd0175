"""`POST /v1/completions`: continuations of texts, and log-probabilities of prompts."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from lit_gpt.data.tokenizers import Tokenizer
from lit_gpt.generation.request import Matcher
from lit_gpt.generation.text import heal
from lit_gpt.serving.errors import ApiError
from lit_gpt.serving.middleware import note
from lit_gpt.serving.model import TokenLogprob
from lit_gpt.serving.openapi import TextCompletion, answered_with
from lit_gpt.serving.protocol import (
    COMPLETION_TOKENS,
    CompletionRequest,
    answer_tokens,
    bounded,
    for_choice,
    format_constraint,
    listed_prompts,
    sampling_params,
)
from lit_gpt.serving.responses import (
    Answer,
    CompletionLogprobs,
    Delta,
    GuardedAnswers,
    StreamResponse,
    prepared,
    refuse_logprobs,
    usage,
    while_connected,
)
from lit_gpt.serving.service import ActiveRequest, Service

router = APIRouter()


@dataclass(frozen=True)
class _Prompt:
    """A prompt in the form in which the model reads it.

    Attributes:
        ids: Token ids, including opening tokens.
        echoed: Token ids that an answer with `echo` repeats, i.e. without opening tokens.
        text: The text of `echoed`.
        heals: Whether a trailing space is removed and left to the answer's first token, as in `generate`.
    """

    ids: list[int]
    echoed: list[int]
    text: str
    heals: bool

    def healed(self, tokenizer: Tokenizer) -> tuple[list[int], str, Matcher | None]:
        """Return the ids for the engine, the removed space, and the matcher that restores it."""
        ids, space, matcher = heal(tokenizer, self.ids) if self.heals else (self.ids, "", None)
        return ids or [tokenizer.separator_id], space, matcher


@router.post("/v1/completions", response_model=None, responses=answered_with(TextCompletion, streams=True))
async def completions(body: CompletionRequest, request: Request) -> Response:
    """Continue one or several texts; a text is treated as the start of a document, as in training.

    Special tokens spelled out in a text (`<|im_start|>`) are parsed, so that clients may render a chat template
    themselves. With `echo` and `logprobs` the log-probabilities of the prompt's tokens are returned as well.
    """
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
    builder = service.builder if body.is_constrained else None
    read = await prepared(active, lambda: _submit(service, active, body, prompts, choices), builder)
    prompt_tokens = sum(len(prompt.ids) for prompt in read)
    note(request.scope, prompt_tokens=prompt_tokens, choices=choices * len(prompts))
    exchange = _Exchange(service, active, body, [one for one in read for _ in range(choices)], prompt_tokens)
    if body.stream:
        return StreamResponse(active, exchange.chunks(), service.limits)
    try:
        return JSONResponse(await while_connected(request, exchange.whole()))
    finally:
        active.close()
        note(request.scope, tokens=active.num_tokens)


def _submit(
    service: Service, active: ActiveRequest, body: CompletionRequest, prompts: list[str | list[int]], choices: int
) -> list[_Prompt]:
    """Tokenize and submit to the engine, unless `max_tokens` is 0."""
    served = service.served
    served.check_size(*prompts)
    guarded = [service.guard_chain.prompt(served, prompt, "prompt") for prompt in prompts]
    constraint = bounded(format_constraint(body.response_format), service.limits)
    # Log-probabilities of a prompt are those of its own tokens, so no space is removed then.
    heals = constraint is None and not (body.echo and body.logprobs is not None)
    read = [_read(service, prompt, heals) for prompt in guarded]
    jobs = []
    for prompt in read:
        length = len(prompt.ids)
        most = answer_tokens(body.max_tokens, COMPLETION_TOKENS, length, served.max_length, service.limits)
        jobs.append((prompt, sampling_params(body, max(1, most), (), constraint)))
        if body.max_tokens == 0 and max(prompt.ids) >= served.tokenizer.vocab_size:  # otherwise the engine rejects it
            raise ApiError(400, f"token {max(prompt.ids)} is outside the model's vocabulary", "invalid_value", "prompt")
    service.metrics.prompt_tokens.inc(sum(len(prompt.ids) for prompt in read))
    for prompt, params in jobs if body.max_tokens != 0 else ():
        for choice in range(choices):
            ids, _, matcher = prompt.healed(served.tokenizer)
            active.submit(ids, for_choice(params, choice), matcher)
    return read


def _read(service: Service, prompt: str | list[int], heals: bool) -> _Prompt:
    tokenizer = service.served.tokenizer
    ids = service.served.prompt_ids(prompt) if isinstance(prompt, str) else prompt
    opening = len(tokenizer.opening_ids)
    written = ids[opening:] if tuple(ids[:opening]) == tokenizer.opening_ids else ids
    text = tokenizer.decode(written)
    if not isinstance(prompt, str):
        return _Prompt(ids, ids, text, heals=False)
    # A client that renders a chat template ends the prompt as the template does, possibly with a line break.
    return _Prompt(ids, written, text, heals and not service.served.spells_special_tokens(prompt))


@dataclass
class _Exchange:
    """One request and its answers, prompt by prompt."""

    service: Service
    active: ActiveRequest
    body: CompletionRequest
    prompts: list[_Prompt]
    """Sampling parameters of each answer."""
    prompt_tokens: int

    def __post_init__(self) -> None:
        self._envelope = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": self.service.served.name,
            "system_fingerprint": None,
        }
        tokens = None if self.body.logprobs is None else self.service.served.token_text
        spaces = [prompt.healed(self.service.served.tokenizer)[1] for prompt in self.prompts]
        answers = [Answer(tokens, streamed=bool(self.body.stream), healed=space) for space in spaces]
        self._answers = GuardedAnswers(self.service.guard_chain, self.active, answers)
        self._logprobs = [CompletionLogprobs(self.service.served.token_text) for _ in self.prompts]

    def _choice(self, index: int, text: str, logprobs: Any, finish: str | None) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}

    def _echo(self, index: int) -> str:
        return self.prompts[index].text if self.body.echo else ""

    async def _prompt_logprobs(self) -> list[list[TokenLogprob]]:
        """Return the prompt log-probabilities of each answer, [] if not requested; computed once per prompt.

        Raises:
            ApiError: 504 if the request's time is up.
        """
        if not (self.body.echo and self.body.logprobs is not None):
            return [[] for _ in self.prompts]
        loop, served = asyncio.get_running_loop(), self.service.served
        results: dict[int, list[TokenLogprob]] = {}
        try:
            async with asyncio.timeout(self.active.seconds):
                for prompt in self.prompts:
                    if id(prompt) not in results:
                        ids, num_top = prompt.ids, self.body.logprobs
                        rows = await loop.run_in_executor(self.service.direct, served.prompt_logprobs, ids, num_top)
                        results[id(prompt)] = rows[len(prompt.ids) - len(prompt.echoed) :]
        except TimeoutError:
            raise self.active.overdue from None
        return [results[id(prompt)] for prompt in self.prompts]

    def _usage(self) -> dict[str, Any]:
        return usage(self.prompt_tokens, self.active.num_tokens)

    async def whole(self) -> dict[str, Any]:
        """Return all texts when the last one is complete."""
        of_prompts = await self._prompt_logprobs()
        wholes = await self._answers.wholes()
        if self.body.max_tokens == 0:
            wholes = [Delta(finish_reason="length") for _ in wholes]
        choices = []
        for index, (rows, whole) in enumerate(zip(of_prompts, wholes, strict=True)):
            logprobs = None
            if self.body.logprobs is not None:
                logprobs = self._logprobs[index].add_prompt(rows, whole.tokens)
            choices.append(self._choice(index, self._echo(index) + whole.text, logprobs, whole.finish_reason))
        return {**self._envelope, "choices": choices, "usage": self._usage()}

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """Yield the texts as they grow."""
        with_usage = self.body.stream_options is not None and self.body.stream_options.include_usage
        envelope = self._envelope | ({"usage": None} if with_usage else {})
        nothing_follows = "length" if self.body.max_tokens == 0 else None
        for index, rows in enumerate(await self._prompt_logprobs()):
            if self._echo(index) or nothing_follows:
                logprobs = self._logprobs[index].add_prompt(rows) if rows else None
                yield envelope | {"choices": [self._choice(index, self._echo(index), logprobs, nothing_follows)]}
        async for index, added in self._answers.deltas():
            if not added:
                continue
            logprobs = self._logprobs[index].add(added.tokens) if added.tokens else None
            yield envelope | {"choices": [self._choice(index, added.text, logprobs, added.finish_reason)]}
        if with_usage:
            yield envelope | {"choices": [], "usage": self._usage()}
