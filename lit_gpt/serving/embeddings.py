"""`POST /v1/embeddings`: the mean of a text's final hidden states."""

import asyncio
import base64
import struct
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from lit_gpt.serving.errors import ApiError
from lit_gpt.serving.middleware import note
from lit_gpt.serving.openapi import Embeddings, answered_with
from lit_gpt.serving.protocol import EmbeddingRequest, listed_prompts
from lit_gpt.serving.responses import while_connected
from lit_gpt.serving.service import Service

router = APIRouter()


@router.post("/v1/embeddings", response_model=None, responses=answered_with(Embeddings))
async def embeddings(body: EmbeddingRequest, request: Request) -> Response:
    """Embed texts: each vector is the mean over the text's tokens of the hidden states after the final norm.

    Texts are treated as starts of documents, so the separator is included; token ids are used unchanged. The vectors
    are not normalized to length 1.
    """
    service = Service.of(request)
    service.check_model(body.model)
    width = service.served.network.config.n_embd
    if body.dimensions not in (None, width):
        message = f"dimensions is {body.dimensions}; this model's embeddings have {width}"
        raise ApiError(400, message, "invalid_value", "dimensions")
    inputs = listed_prompts(body.input)
    if len(inputs) > service.limits.prompts:
        message = f"input has {len(inputs)} texts, more than the server's limit of {service.limits.prompts}"
        raise ApiError(400, message, "too_many", "input")
    with service.direct_admission.enter(len(inputs)):
        vectors, tokens = await while_connected(request, _embed(service, inputs))
    note(request.scope, prompt_tokens=tokens)
    spent = {"prompt_tokens": tokens, "total_tokens": tokens}
    data = [
        {"object": "embedding", "index": index, "embedding": _encoded(vector, body.encoding_format)}
        for index, vector in enumerate(vectors)
    ]
    return JSONResponse({"object": "list", "data": data, "model": service.served.name, "usage": spent})


async def _embed(service: Service, inputs: list[str | list[int]]) -> tuple[list[list[float]], int]:
    loop, served = asyncio.get_running_loop(), service.served
    vectors, tokens = [], 0
    seconds = service.limits.request_seconds
    deadline = loop.time() + seconds
    for text in inputs:  # one by one, so that a client that disconnects or times out does not delay others
        try:
            served.check_size(text, max_length=served.network.config.block_size)
            async with asyncio.timeout_at(deadline):
                if service.guard_chain.checks("input"):
                    check = partial(service.guard_chain.prompt, served, text, "input")
                    text = await loop.run_in_executor(service.direct, check)
                if isinstance(text, str):
                    ids = await loop.run_in_executor(service.direct, served.text_ids, text)
                else:
                    ids = text
                _check(service, ids)
                vectors.append(await loop.run_in_executor(service.direct, served.embed, ids))
        except TimeoutError:
            message = f"the answer was not complete within the server's limit of {seconds:g} seconds"
            raise ApiError(504, message, "request_timeout") from None
        tokens += len(ids)
    return vectors, tokens


def _check(service: Service, ids: list[int]) -> None:
    config = service.served.network.config
    most = min(config.block_size, service.limits.prompt_tokens or config.block_size)
    if len(ids) > most:
        message = f"a text of input has {len(ids)} tokens, more than the context of {most}"
        raise ApiError(400, message, "context_length_exceeded", "input")
    if max(ids) >= config.vocab_size:
        message = f"token {max(ids)} is outside the model's vocabulary of {config.vocab_size}"
        raise ApiError(400, message, "invalid_value", "input")


def _encoded(vector: list[float], encoding: str) -> Any:
    """Return the vector as a list of numbers, or as base64 of little-endian float32."""
    return vector if encoding == "float" else base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
