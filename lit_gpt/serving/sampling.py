"""From OpenAI's fields to the engine's: how long an answer may be, and how its tokens are drawn."""

import json
from dataclasses import replace
from typing import Any

from lit_gpt.generation.params import MAX_SEED, Constraint, SamplingParams
from lit_gpt.serving.errors import ApiError
from lit_gpt.serving.limits import Limits
from lit_gpt.serving.protocol import ChatRequest, CompletionRequest, ResponseFormat

COMPLETION_TOKENS = 16
"""OpenAI's default for completions; an answer in a chat may fill the context."""


def answer_tokens(asked: int | None, default: int | None, prompt_tokens: int, max_length: int, limits: Limits) -> int:
    """How many tokens an answer may have.

    Args:
        asked: By the request; None: nothing said.
        default: Then; None: what the context has room for.
        prompt_tokens: Of the prompt.
        max_length: Of prompt and answer together.
        limits: The server's.

    Raises:
        ApiError: 400, if the prompt is too long, or more is asked for than there can be.
    """
    if limits.prompt_tokens is not None and prompt_tokens > limits.prompt_tokens:
        message = f"the prompt has {prompt_tokens} tokens, more than the server's limit of {limits.prompt_tokens}"
        raise ApiError(400, message, "prompt_too_long")
    room = max_length - prompt_tokens
    if room < 1:
        message = f"the prompt has {prompt_tokens} tokens; the context of {max_length} must hold it and an answer"
        raise ApiError(400, message, "context_length_exceeded")
    most = room if limits.new_tokens is None else min(room, limits.new_tokens)
    if asked is None:
        return most if default is None else min(most, default)
    if limits.new_tokens is not None and asked > limits.new_tokens:
        message = f"max_tokens is {asked}, more than the server's limit of {limits.new_tokens}"
        raise ApiError(400, message, "max_tokens_too_large", "max_tokens")
    if asked > room:
        message = (
            f"max_tokens is {asked} and the prompt has {prompt_tokens} tokens, together more than the context of "
            f"{max_length}; ask for at most {room}"
        )
        raise ApiError(400, message, "context_length_exceeded", "max_tokens")
    return asked


def sampling_params(
    request: ChatRequest | CompletionRequest,
    max_new_tokens: int,
    stop_token_ids: tuple[int, ...] = (),
    constraint: Constraint | None = None,
) -> SamplingParams:
    """How the tokens of a request are drawn, by OpenAI's defaults.

    Raises:
        UserError: If a value is out of the engine's bounds.
    """
    if isinstance(request, ChatRequest):
        logprobs = (request.top_logprobs or 0) if request.logprobs else None
    else:
        logprobs = request.logprobs
    return SamplingParams(
        max_new_tokens=max_new_tokens,
        temperature=1.0 if request.temperature is None else request.temperature,
        top_k=request.top_k or None,
        top_p=request.top_p,
        min_p=request.min_p,
        repetition_penalty=1.0 if request.repetition_penalty is None else request.repetition_penalty,
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        logit_bias={int(token): bias for token, bias in (request.logit_bias or {}).items()},
        stop=request.stops,
        stop_token_ids=stop_token_ids,
        seed=request.seed if request.seed is None else request.seed % MAX_SEED,
        logprobs=logprobs,
        ignore_eos=request.ignore_eos,
        constraint=constraint,
    )


def for_choice(params: SamplingParams, choice: int) -> SamplingParams:
    """The same for the n-th of several answers: a seed of its own, if there is one."""
    return params if params.seed is None or choice == 0 else replace(params, seed=(params.seed + choice) % MAX_SEED)


def format_constraint(response_format: ResponseFormat | None) -> Constraint | None:
    """The constraint that a `response_format` stands for.

    Raises:
        UserError: If it is empty.
    """
    if response_format is None or response_format.type == "text":
        return None
    if response_format.type == "json_object":
        return Constraint("json_object")
    source: Any = response_format.regex or response_format.grammar
    if response_format.json_schema is not None:
        source = response_format.json_schema.schema_
    return Constraint(response_format.type, source)


def bounded(constraint: Constraint | None, limits: Limits) -> Constraint | None:
    """The same constraint, if it is not too large.

    Raises:
        ApiError: 400.
    """
    if constraint is not None:
        source = constraint.source if isinstance(constraint.source, str) else json.dumps(constraint.source)
        if len(source.encode()) > limits.constraint_bytes:
            message = f"the form asked for is larger than the server's {limits.constraint_bytes} bytes"
            raise ApiError(400, message, "form_too_large", "response_format")
    return constraint
