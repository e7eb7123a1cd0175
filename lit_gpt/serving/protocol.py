"""Request formats, field by field as in OpenAI's API, and their translation to engine parameters.

A known field that has no effect here is accepted; a field that would change the answer but is not supported, or that is
unknown, is rejected: an answer that silently ignores half of a request is worse than none.
"""

import json
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from lit_gpt.generation.request import MAX_SEED, MAX_STOP_CHARACTERS, MAX_STOPS, Constraint, SamplingParams
from lit_gpt.serving.admission import Limits
from lit_gpt.serving.errors import ApiError

MAX_MESSAGES = 4096
MAX_TOOLS = 128
MAX_BIASES = 1024
MAX_FIELDS = 64
MAX_METADATA = 16
MAX_TOP_LOGPROBS = 20
COMPLETION_TOKENS = 16
"""OpenAI's default for completions; a chat answer may fill the context."""
SMALLEST_TOP_P = 1e-9
"""Replaces `top_p: 0`, which OpenAI's API allows: only the most likely token remains."""
_INT64 = 1 << 63
Finite = Annotated[float, Field(allow_inf_nan=False, strict=True)]
Stop = Annotated[StrictStr, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
TokenIds = Annotated[list[Annotated[StrictInt, Field(ge=0, lt=1 << 31)]], Field(min_length=1, fail_fast=True)]
ToolName = Annotated[StrictStr, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
Texts = Annotated[list[StrictStr], Field(min_length=1, fail_fast=True)]
Prompts = StrictStr | TokenIds | Texts | Annotated[list[TokenIds], Field(min_length=1, fail_fast=True)]
"""One or several texts, as characters or token ids. Without `fail_fast`, two megabytes of invalid items cause half a
million errors: gigabytes of memory, and half a minute in which the server does nothing else."""
SchemaName = Annotated[StrictStr, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
_BRANCHES = {"str", "int", "NamedTool", "ChosenFunction"}
"""Components that pydantic adds to an error's location for the branches of a union; these are not field names."""


_MESSAGE = {
    "type": "object",
    "properties": {
        "role": {"enum": ["system", "developer", "user", "assistant", "tool", "function"]},
        "content": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}, {"type": "null"}]},
        "tool_calls": {"type": "array", "items": {"type": "object"}},
        "tool_call_id": {"type": "string"},
    },
    "required": ["role"],
    "examples": [{"role": "user", "content": "Hello"}],
}
"""Description of a message, which `lit_gpt.data.chat` reads."""
ChatMessage = Annotated[dict[str, Any], WithJsonSchema(_MESSAGE)]


def _few(most: int) -> BeforeValidator:
    """Reject an object with more fields than that, before each of them is validated."""
    return BeforeValidator(partial(_refuse_many, most))


def _only_false(reason: str, value: Any) -> Any:
    if value is not None and value is not False:  # 0 equals False, and would pass for it
        raise ValueError(f"this server {reason}; leave it out or set it to false")
    return value


def false_because(reason: str) -> BeforeValidator:
    """Accept null and false; reject anything else with the reason."""
    return BeforeValidator(partial(_only_false, reason))


Store = Annotated[Literal[False] | None, false_because("stores no conversations")]


def _refuse_many(most: int, value: Any) -> Any:
    if isinstance(value, dict) and len(value) > most:
        raise ValueError(f"it has {len(value)} fields, at most {most} are allowed")
    return value


Metadata = Annotated[dict[str, str], _few(MAX_METADATA)]


class Known(BaseModel):
    """Base class of models that reject unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, value: Any) -> Any:
        return _refuse_many(MAX_FIELDS, value)


class StreamOptions(Known):
    """Options of a stream."""

    include_usage: StrictBool = False
    include_obfuscation: StrictBool = False
    """Random padding against observers who measure sizes; never added here."""


class JsonSchema(Known):
    """A named schema."""

    name: SchemaName
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    description: str | None = None
    strict: StrictBool | None = None
    """No effect: the answer always follows the schema."""


class ResponseFormat(Known):
    """A constraint on the answer; `regex` and `grammar` (Lark's notation) are extensions of OpenAI's API."""

    type: Literal["text", "json_object", "json_schema", "regex", "grammar"] = "text"
    json_schema: JsonSchema | None = None
    regex: Annotated[str, Field(min_length=1, max_length=10_000)] | None = None
    grammar: Annotated[str, Field(min_length=1, max_length=100_000)] | None = None

    @model_validator(mode="after")
    def _complete(self) -> "ResponseFormat":
        for name in ("json_schema", "regex", "grammar"):
            if (self.type == name) != (getattr(self, name) is not None):
                raise ValueError(f"`{name}` and type {name!r} require each other")
        return self


class FunctionSpec(Known):
    """A function that the model may call."""

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: StrictBool | None = None


class ToolSpec(Known):
    """A tool; functions are the only kind."""

    type: Literal["function"] = "function"
    function: FunctionSpec


class NamedFunction(Known):
    """A function's name."""

    name: ToolName


class NamedTool(Known):
    """The tool that must be called."""

    type: Literal["function"] = "function"
    function: NamedFunction


class _Sampled(Known):
    """Fields that chat and completions have in common."""

    model: StrictStr
    temperature: Annotated[Finite, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Finite, Field(ge=0, le=1)] | None = None
    n: Annotated[StrictInt, Field(ge=1)] | None = None
    seed: Annotated[StrictInt, Field(ge=-_INT64, lt=_INT64)] | None = None
    presence_penalty: Annotated[Finite, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[Finite, Field(ge=-2, le=2)] | None = None
    logit_bias: Annotated[dict[str, Annotated[Finite, Field(ge=-100, le=100)]], _few(MAX_BIASES)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS, fail_fast=True)] | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    user: str | None = None
    # Extensions, named as in vLLM: through `extra_body` of the openai client.
    top_k: Annotated[StrictInt, Field(ge=0)] | None = None
    """0 means all tokens."""
    min_p: Annotated[Finite, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[Finite, Field(gt=0, le=10)] | None = None
    ignore_eos: StrictBool = False

    @field_validator("logit_bias")
    @classmethod
    def _token_ids(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        if value is not None and not all(key.isascii() and key.isdigit() and len(key) < 10 for key in value):
            raise ValueError("its keys must be token ids")
        return value

    @model_validator(mode="after")
    def _stream_options_with_stream(self) -> "_Sampled":
        if self.stream_options is not None and not self.stream:
            raise ValueError("`stream_options` requires `stream: true`")
        return self

    @property
    def is_constrained(self) -> bool:
        """Whether the answer has to follow a schema, an expression or a grammar."""
        return self.response_format is not None and self.response_format.type != "text"

    @property
    def stops(self) -> tuple[str, ...]:
        """`stop` as a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class ChatRequest(_Sampled):
    """`POST /v1/chat/completions`."""

    max_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    max_completion_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    logprobs: StrictBool | None = None
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    tools: Annotated[list[ToolSpec], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: StrictBool | None = None
    modalities: list[Literal["text"]] | None = None
    # Accepted without effect on the answer.
    metadata: Annotated[dict[str, str], _few(MAX_METADATA)] | None = None
    store: Store = None
    service_tier: Literal["auto", "default"] | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None

    @classmethod
    def of(cls, body: dict[str, Any]) -> "ChatRequest":
        """Return the request of a body.

        Raises:
            ApiError: 400 if it is none.
        """
        try:
            return cls.model_validate(body)
        except ValidationError as error:
            raise refusal(list(error.errors())) from None

    @model_validator(mode="after")
    def _belong_together(self) -> "ChatRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("`top_logprobs` requires `logprobs: true`")
        names = [tool.function.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            raise ValueError("two tools have the same name")
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise ValueError("`tool_choice` names a function that `tools` does not have")
        if self.tool_choice == "required" and not names:
            raise ValueError("`tool_choice` is 'required' without `tools`")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("`max_tokens` is the old name of `max_completion_tokens`; set only one of them")
        return self


class CompletionRequest(_Sampled):
    """`POST /v1/completions`."""

    prompt: Prompts = ""
    max_tokens: Annotated[StrictInt, Field(ge=0)] | None = None
    """0: no answer; with `echo` and `logprobs`, only the log-probabilities of the prompt."""
    logprobs: Annotated[StrictInt, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    echo: StrictBool | None = None
    best_of: StrictInt | None = None
    suffix: None = None

    @model_validator(mode="after")
    def _supported(self) -> "CompletionRequest":
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError("`best_of` is not supported; ask for `n` answers and choose among them")
        return self


class EmbeddingRequest(Known):
    """`POST /v1/embeddings`."""

    model: StrictStr
    input: Prompts
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: StrictInt | None = None
    user: str | None = None


def refusal(errors: list[Any]) -> ApiError:
    """Return the first validation error of a request in OpenAI's format, without quoting the request.

    Args:
        errors: Output of pydantic's `ValidationError.errors()`.
    """
    field = errors[0]["loc"][:2]
    same = [error for error in errors if error["loc"][:2] == field]
    # A union reports an error for each branch. The most informative branch is one whose type matches but whose bound is
    # violated, or the one that has read furthest into the value.
    first = max(same, key=lambda error: (_deepest(error["loc"]), not error["type"].endswith("_type")))
    place = [str(part) for part in first["loc"] if part != "body"]
    param = _param(place)
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"unknown field: {param[:80]!r}", "unknown_parameter", param[:80])
    if first["type"] == "missing":
        return ApiError(400, f"the field {param!r} is missing", "missing_required_parameter", param)
    message = str(first["msg"]).removeprefix("Value error, ")
    if first["type"].endswith("_type"):  # no branch's type matches: name them all
        at_same_place = [error for error in same if _param([str(p) for p in error["loc"] if p != "body"]) == param]
        wanted = dict.fromkeys(str(error["msg"]).removeprefix("Input should be ") for error in at_same_place)
        message = f"it must be {' or '.join(wanted)}"
    return ApiError(400, f"{param}: {message}" if param else message, "invalid_value", param or None)


def _deepest(location: tuple[str | int, ...]) -> tuple[int, ...]:
    """Return how far a validator came into lists: the indices in a location, or its length if there are none."""
    indices = tuple(part for part in location if isinstance(part, int))
    return (len(indices), *indices) if indices else (0, len([p for p in location if _is_field(str(p))]))


def _is_field(part: str) -> bool:
    return part.isidentifier() and part not in _BRANCHES


def _param(place: list[str]) -> str:
    """Return `stop` or `messages[2].content`: a path without the names of a union's branches."""
    path = ""
    for part in place:
        if part.isdigit():
            path += f"[{part}]"
        elif _is_field(part):
            path += f".{part}" if path else part
    return path


# ------------------------------------------------------------------ from OpenAI's fields to the engine's


def answer_tokens(
    asked: int | None,
    default: int | None,
    prompt_tokens: int,
    max_length: int,
    limits: Limits,
    name: str = "max_tokens",
) -> int:
    """Return the maximum number of tokens of an answer.

    Args:
        asked: Number requested; None: not specified.
        default: Number if not specified; None: as many as fit into the context.
        prompt_tokens: Number of prompt tokens.
        max_length: Maximum number of tokens of prompt and answer together.
        limits: Limits of the server.
        name: Field of the request that has `asked`.

    Raises:
        ApiError: 400 if the prompt is too long, or more tokens are requested than possible.
    """
    if limits.prompt_tokens is not None and prompt_tokens > limits.prompt_tokens:
        message = f"the prompt has {prompt_tokens} tokens, more than the server's limit of {limits.prompt_tokens}"
        raise ApiError(400, message, "prompt_too_long")
    if asked == 0 and prompt_tokens <= max_length:
        return 0
    available = max_length - prompt_tokens
    if available < 1:
        message = f"the prompt has {prompt_tokens} tokens; the context of {max_length} must hold it and an answer"
        raise ApiError(400, message, "context_length_exceeded")
    most = available if limits.new_tokens is None else min(available, limits.new_tokens)
    if asked is None:
        return most if default is None else min(most, default)
    if limits.new_tokens is not None and asked > limits.new_tokens:
        message = f"{name} is {asked}, more than the server's limit of {limits.new_tokens}"
        raise ApiError(400, message, "max_tokens_too_large", name)
    if asked > available:
        message = (
            f"{name} is {asked} and the prompt has {prompt_tokens} tokens, together more than the context of "
            f"{max_length}; ask for at most {available}"
        )
        raise ApiError(400, message, "context_length_exceeded", name)
    return asked


def sampling_params(
    request: ChatRequest | CompletionRequest,
    max_new_tokens: int,
    stop_token_ids: tuple[int, ...] = (),
    constraint: Constraint | None = None,
) -> SamplingParams:
    """Return the sampling parameters of a request, with OpenAI's defaults.

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
        top_p=None if request.top_p is None else max(request.top_p, SMALLEST_TOP_P),
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
    """Return the parameters of the n-th of several answers, with a different seed if there is one."""
    return params if params.seed is None or choice == 0 else replace(params, seed=(params.seed + choice) % MAX_SEED)


def format_constraint(response_format: ResponseFormat | None) -> Constraint | None:
    """Return the constraint of a `response_format`.

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
    """Return the constraint unchanged if it is not too large.

    Raises:
        ApiError: 400 if it is too large.
    """
    if constraint is not None:
        source = constraint.source if isinstance(constraint.source, str) else json.dumps(constraint.source)
        if len(source.encode()) > limits.constraint_bytes:
            message = f"the constraint is larger than the server's {limits.constraint_bytes} bytes"
            raise ApiError(400, message, "constraint_too_large", "response_format")
    return constraint


def listed_prompts(prompt: str | list[int] | list[str] | list[list[int]]) -> list[str | list[int]]:
    """Return one or several prompts, texts or ids, as a list."""
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt[0], int):
        return [[index for index in prompt if isinstance(index, int)]]
    return [one for one in prompt if not isinstance(one, int)]
