"""The OpenAPI document at `/openapi.json`: routes, requests and response formats.

Requests are described by the models that validate them (`protocol`), responses by the models here, which tests compare
with actual responses.
"""

from typing import Any, Literal

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, ConfigDict

from lit_gpt import __version__

ERRORS = {
    400: "The request is wrong; `param` names the field",
    401: "The API key is missing or wrong",
    403: "The Host header names another host",
    404: "There is no such model or path",
    408: "The body did not arrive in time",
    413: "The body is too large",
    415: "The body is not JSON",
    429: "The server is busy; Retry-After says when to try again",
    500: "The model failed on the request",
    503: "The server is shutting down",
    504: "The answer was not complete in time",
}
_OF_ANY = (401, 403)
_OF_BODIES = (400, 404, 408, 413, 415, 429, 500, 503, 504)


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ErrorDetail(_Shape):
    """Description of an error."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(_Shape):
    """A response that reports an error."""

    error: ErrorDetail


class Usage(_Shape):
    """Token usage of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CalledFunction(_Shape):
    """A function with its arguments, a JSON object as text."""

    name: str
    arguments: str


class Call(_Shape):
    """A call that the model makes."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class AnswerMessage(_Shape):
    """Message of the model."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[Call] = []


class Likely(_Shape):
    """A token and its log-probability."""

    token: str
    logprob: float
    bytes: list[int]


class ChosenToken(Likely):
    """A token of an answer, and the most likely ones at its position."""

    top_logprobs: list[Likely]


class ChatLogprobs(_Shape):
    """Log-probabilities of an answer."""

    content: list[ChosenToken]
    refusal: None


class ChatChoice(_Shape):
    """One of `n` answers."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls", "content_filter"]


class _Envelope(_Shape):
    id: str
    created: int
    model: str
    system_fingerprint: None
    usage: Usage


class ChatCompletion(_Envelope):
    """The answers to a conversation."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class TextLogprobs(_Shape):
    """Log-probabilities of a text."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(_Shape):
    """One of `n` texts."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length", "content_filter"]


class TextCompletion(_Envelope):
    """The continuations of texts."""

    object: Literal["text_completion"]
    choices: list[TextChoice]


class Vector(_Shape):
    """The embedding of a text: numbers, or base64 of little-endian float32."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(_Shape):
    """Tokens of the texts."""

    prompt_tokens: int
    total_tokens: int


class Embeddings(_Shape):
    """The embeddings of texts."""

    object: Literal["list"]
    data: list[Vector]
    model: str
    usage: EmbeddingUsage


class OutputText(_Shape):
    """Text of a message."""

    type: Literal["output_text"]
    text: str
    annotations: list[str]
    logprobs: list[ChosenToken]


class OutputMessage(_Shape):
    """The model's message."""

    type: Literal["message"]
    id: str
    status: Literal["completed", "incomplete"]
    role: Literal["assistant"]
    content: list[OutputText]


class OutputCall(_Shape):
    """A call that the model makes; the arguments are a JSON object as text."""

    type: Literal["function_call"]
    id: str
    call_id: str
    status: Literal["completed", "incomplete"]
    name: str
    arguments: str


class InputDetails(_Shape):
    """Of the tokens of an input."""

    cached_tokens: int


class OutputDetails(_Shape):
    """Of the tokens of an output."""

    reasoning_tokens: int


class ResponseUsage(_Shape):
    """Tokens of a response."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class Reason(_Shape):
    """Why a response is incomplete."""

    reason: Literal["max_output_tokens", "content_filter"]


class ModelResponse(BaseModel):
    """The answer to an input, followed by the request's own settings."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete"]
    error: None
    incomplete_details: Reason | None
    model: str
    output: list[OutputMessage | OutputCall]
    usage: ResponseUsage


class TextBlock(_Shape):
    """Text of a message."""

    type: Literal["text"]
    text: str


class ToolUseBlock(_Shape):
    """A call that the model makes."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class AnthropicUsage(_Shape):
    """Tokens of a message."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int


class AnthropicMessage(_Shape):
    """The answer to a conversation in Anthropic's form."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[TextBlock | ToolUseBlock]
    stop_reason: Literal["end_turn", "max_tokens", "tool_use", "refusal"]
    stop_sequence: None
    usage: AnthropicUsage


class ModelCard(_Shape):
    """The model, with what a chat page needs to know."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int
    chat: bool
    tools: bool
    version: str


class ModelList(_Shape):
    """The one model."""

    object: Literal["list"]
    data: list[ModelCard]


class Status(_Shape):
    """State of the server."""

    status: str


def answered_with(model: type[BaseModel], *more: int, streams: bool = False) -> dict[int | str, dict[str, Any]]:
    """Return the responses of a route, for FastAPI's `responses`.

    Args:
        model: Format of the response.
        more: Other statuses with this format.
        streams: Whether it may also come as server-sent events.
    """
    ok: dict[str, Any] = {"model": model, "description": "The answer"}
    if streams:
        ok["description"] = "The answer; with `stream: true` as server-sent events, as OpenAI's API has them"
        ok["content"] = {"text/event-stream": {}}
    return {200: ok, **{status: {"model": model, "description": "Not now"} for status in more}}


def answered_with_text(media_type: str) -> dict[int | str, dict[str, Any]]:
    """Return the responses of a route that returns a text."""
    return {200: {"description": "The text", "content": {media_type: {"schema": {"type": "string"}}}}}


def document(app: FastAPI, model: str, root_path: str, with_keys: bool) -> dict[str, Any]:
    """Return the OpenAPI document.

    Args:
        app: Application with all its routes.
        model: Name of the model that requests may name.
        root_path: Prefix of a reverse proxy.
        with_keys: Whether the API needs a key.
    """
    made = get_openapi(title="lit_gpt", version=__version__, routes=app.routes, servers=[{"url": root_path or "/"}])
    schemas: dict[str, Any] = made["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's error format, which is replaced by OpenAI's
        schemas.pop(name, None)
    for schema in schemas.values():
        if "Request" in schema["title"]:
            schema["properties"]["model"]["enum"] = [model]
    schemas["Error"] = Error.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= schemas["Error"].pop("$defs")
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    for path, operations in made["paths"].items():
        for operation in operations.values():
            listed: dict[str, Any] = operation["responses"]
            listed.pop("422", None)
            statuses = [*_OF_ANY, *(_OF_BODIES if "requestBody" in operation else ())]
            statuses += [404] if "{" in path else []
            for status in statuses:
                listed.setdefault(str(status), {"description": ERRORS[status], "content": error})
    if with_keys:
        made["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        made["security"] = [{"key": []}]
    return made
