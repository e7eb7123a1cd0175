"""What a client may send: OpenAI's requests, field by field.

A field that we know and that changes nothing here is accepted; one that would change the answer and that we do not
have, or that nobody knows, is refused: an answer that quietly ignores half of a request is worse than none.
"""

from functools import partial
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictInt,
    StrictStr,
    field_validator,
    model_validator,
)

from lit_gpt.serving.errors import ApiError

MAX_MESSAGES = 4096
MAX_TOOLS = 128
MAX_STOPS = 4
MAX_STOP_CHARACTERS = 256
MAX_BIASES = 1024
MAX_FIELDS = 64
MAX_METADATA = 16
MAX_TOP_LOGPROBS = 20
MAX_SEED = (1 << 62) - 1
Finite = Annotated[float, Field(allow_inf_nan=False)]
Stop = Annotated[StrictStr, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
_BRANCHES = {"str", "int", "NamedTool"}
"""What pydantic puts into an error's place for a union's branches, and is no field."""
TokenIds = Annotated[list[Annotated[StrictInt, Field(ge=0, lt=1 << 31)]], Field(min_length=1, fail_fast=True)]
ToolName = Annotated[StrictStr, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
Texts = Annotated[list[StrictStr], Field(min_length=1, fail_fast=True)]
Prompts = StrictStr | TokenIds | Texts | Annotated[list[TokenIds], Field(min_length=1, fail_fast=True)]
"""One text or several, as characters or as token ids. Without `fail_fast`, two megabytes of wrong items are half a
million errors: gigabytes, and half a minute in which the server does nothing else."""
SchemaName = Annotated[StrictStr, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


def _few(most: int) -> BeforeValidator:
    """Refuse an object of more fields than that, before each of them is looked at."""
    return BeforeValidator(partial(_refuse_many, most))


def _refuse_many(most: int, value: Any) -> Any:
    if isinstance(value, dict) and len(value) > most:
        raise ValueError(f"it has {len(value)} fields, at most {most} are allowed")
    return value


class _Known(BaseModel):
    """Unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, value: Any) -> Any:
        return _refuse_many(MAX_FIELDS, value)


class StreamOptions(_Known):
    """Of a stream."""

    include_usage: bool = False
    include_obfuscation: bool = False
    """Random padding against onlookers who measure sizes; never added here."""


class JsonSchema(_Known):
    """A named schema."""

    name: SchemaName
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    description: str | None = None
    strict: bool | None = None
    """The answer follows the schema in any case."""


class ResponseFormat(_Known):
    """A form that the answer must have; `regex` and `grammar` (Lark's notation) are ours."""

    type: Literal["text", "json_object", "json_schema", "regex", "grammar"] = "text"
    json_schema: JsonSchema | None = None
    regex: Annotated[str, Field(min_length=1, max_length=10_000)] | None = None
    grammar: Annotated[str, Field(min_length=1, max_length=100_000)] | None = None

    @model_validator(mode="after")
    def _complete(self) -> "ResponseFormat":
        for name in ("json_schema", "regex", "grammar"):
            if (self.type == name) != (getattr(self, name) is not None):
                raise ValueError(f"`{name}` goes with type {name!r}, and that type with it")
        return self


class FunctionSpec(_Known):
    """A function that the model may call."""

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolSpec(_Known):
    """A tool; functions are the one kind."""

    type: Literal["function"] = "function"
    function: FunctionSpec


class NamedFunction(_Known):
    """A function's name."""

    name: ToolName


class NamedTool(_Known):
    """The tool that must be called."""

    type: Literal["function"] = "function"
    function: NamedFunction


class _Sampled(_Known):
    """What requests for chat and for completions have in common."""

    model: StrictStr
    temperature: Annotated[Finite, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Finite, Field(gt=0, le=1)] | None = None
    n: Annotated[StrictInt, Field(ge=1)] | None = None
    seed: Annotated[StrictInt, Field(ge=-MAX_SEED, le=MAX_SEED)] | None = None
    max_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    presence_penalty: Annotated[Finite, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[Finite, Field(ge=-2, le=2)] | None = None
    logit_bias: Annotated[dict[str, Annotated[Finite, Field(ge=-100, le=100)]], _few(MAX_BIASES)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    user: str | None = None
    # Ours, and vLLM's: through `extra_body` of the openai client.
    top_k: Annotated[StrictInt, Field(ge=0)] | None = None
    """0: all tokens."""
    min_p: Annotated[Finite, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[Finite, Field(gt=0, le=10)] | None = None
    ignore_eos: bool = False

    @field_validator("logit_bias")
    @classmethod
    def _token_ids(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        if value is not None and not all(key.isascii() and key.isdigit() and len(key) < 10 for key in value):
            raise ValueError("its keys must be token ids")
        return value

    @model_validator(mode="after")
    def _stream_options_with_stream(self) -> "_Sampled":
        if self.stream_options is not None and not self.stream:
            raise ValueError("`stream_options` goes with `stream: true`")
        return self

    @property
    def has_form(self) -> bool:
        """Whether the answer has to follow a form."""
        return self.response_format is not None and self.response_format.type != "text"

    @property
    def stops(self) -> tuple[str, ...]:
        """`stop` as a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class ChatRequest(_Sampled):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    max_completion_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    tools: Annotated[list[ToolSpec], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    modalities: list[Literal["text"]] | None = None
    # Known, and without effect on what is answered here.
    metadata: Annotated[dict[str, str], _few(MAX_METADATA)] | None = None
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None

    @model_validator(mode="after")
    def _belong_together(self) -> "ChatRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("`top_logprobs` goes with `logprobs: true`")
        names = [tool.function.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            raise ValueError("two tools have the same name")
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise ValueError("`tool_choice` names a function that `tools` does not have")
        if self.tool_choice == "required" and not names:
            raise ValueError("`tool_choice` is 'required' without `tools`")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("`max_tokens` is the old name of `max_completion_tokens`; give one of them")
        return self


class CompletionRequest(_Sampled):
    """`POST /v1/completions`."""

    prompt: Prompts = ""
    logprobs: Annotated[StrictInt, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    echo: bool = False
    best_of: StrictInt | None = None
    suffix: None = None

    @model_validator(mode="after")
    def _supported(self) -> "CompletionRequest":
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError("`best_of` is not supported; ask for `n` answers and choose among them")
        if self.echo and self.logprobs is not None:
            raise ValueError("`echo` with `logprobs` is not supported: there are none of the prompt's tokens")
        return self


class EmbeddingRequest(_Known):
    """`POST /v1/embeddings`."""

    model: StrictStr
    input: Prompts
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: StrictInt | None = None
    user: str | None = None


def refusal(errors: list[Any]) -> ApiError:
    """The first thing that is wrong with a request, in OpenAI's shape and without quoting it.

    Args:
        errors: Of pydantic's `ValidationError.errors()`.
    """
    field = errors[0]["loc"][:2]
    # Of a union's branches, the one that came furthest into the value says most.
    first = max((error for error in errors if error["loc"][:2] == field), key=lambda error: len(error["loc"]))
    place = [str(part) for part in first["loc"] if part != "body"]
    param = _param(place)
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"unknown field: {param[:80]!r}", "unknown_parameter", param[:80])
    if first["type"] == "missing":
        return ApiError(400, f"the field {param!r} is missing", "missing_required_parameter", param)
    message = str(first["msg"]).removeprefix("Value error, ")
    return ApiError(400, f"{param}: {message}" if param else message, "invalid_value", param or None)


def _param(place: list[str]) -> str:
    """`stop`, `messages[2].content`: a path without the names of a union's branches."""
    path = ""
    for part in place:
        if part.isdigit():
            path += f"[{part}]"
        elif part.isidentifier() and part not in _BRANCHES:
            path += f".{part}" if path else part
    return path
