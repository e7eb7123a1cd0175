"""A request's input, its output, and its state inside the engine.

`SamplingParams` are given with a prompt; `TokenEvent`s are returned one by one, and `Completion` is all of them
combined: these are shared by the engine, the server and the commands. `Request` is the engine's state in between: its
tokens, its row in the cache (`CacheEntry`), its text so far.

V vocabulary.
"""

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from lit_gpt.checks import check_above, check_at_least, check_between, check_one_of
from lit_gpt.data.tokenizers import Tokenizer
from lit_gpt.errors import UserError
from lit_gpt.generation.cache import CacheEntry
from lit_gpt.generation.detokenizer import Detokenizer, StopStrings

FinishReason = Literal["stop", "length", "cancelled", "error"]
"""Why a request ended: a stop token or stop string; max_new_tokens or a full context; `cancel`; an error."""
MAX_LOGPROBS = 50
MAX_STOPS = 64
MAX_STOP_CHARACTERS = 1024
MAX_SEED = (1 << 63) - 1


@dataclass(frozen=True)
class Constraint:
    """A format that the output must follow (see `lit_gpt.generation.constraints`).

    Raises:
        UserError: If the kind is unknown or the source is empty.
    """

    kind: Literal["json_schema", "json_object", "regex", "grammar"]
    """A JSON schema, any JSON object, a regular expression, or a context-free grammar in Lark's notation."""
    source: str | Mapping[str, Any] = ""
    """The schema (a mapping or JSON text), expression or grammar; empty for `json_object`."""

    def __post_init__(self) -> None:
        check_one_of("constraint kind", self.kind, ("json_schema", "json_object", "regex", "grammar"))
        if self.source == "" and self.kind != "json_object":
            raise UserError(f"the {self.kind} constraint is empty; set its source")


@dataclass(frozen=True)
class SamplingParams:
    """Sampling settings of a request, and its stop conditions.

    Penalties and biases are applied to the logits first, then a constraint, then temperature, top-k, top-p and min-p,
    in that order.

    Raises:
        UserError: If a value is out of bounds; the message names the value, its bound and the remedy.
    """

    max_new_tokens: int = 256
    """Maximum number of new tokens; the end of the model's context may end a request sooner."""
    temperature: float = 1.0
    """Divides the logits; 0 = greedy decoding."""
    top_k: int | None = None
    """Sample only from this many most likely tokens; None = all."""
    top_p: float | None = None
    """Sample only from the most likely tokens up to this cumulative probability; None = all."""
    min_p: float | None = None
    """Minimum probability of a token, relative to the most likely one (arXiv:2407.01082); None = no minimum."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens in prompt or completion (arXiv:1909.05858)."""
    presence_penalty: float = 0.0
    """Subtracted from the logits of tokens that occur in the completion (not the prompt)."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit once per occurrence in the completion (not the prompt)."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Values added to the logits of these token ids."""
    stop: tuple[str, ...] = ()
    """Strings that end the completion; they are not part of its text."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end the completion, in addition to the tokenizer's separator; they are not part of its text."""
    seed: int | None = None
    """Seed of the sampling, which depends only on it and the position in the request. None = a random seed."""
    logprobs: int | None = None
    """Number of most likely tokens per position whose log-probabilities are reported, in addition to that of the
    sampled token (0 = only the latter). They are the model's own, before penalties, temperature and the rest. None = do
    not report any."""
    ignore_eos: bool = False
    """Continue after the tokenizer's separator."""
    constraint: Constraint | None = None
    """A format that the completion must follow."""

    def __post_init__(self) -> None:
        check_at_least("max_new_tokens", self.max_new_tokens, 1)
        check_at_least("temperature", self.temperature, 0, "0 is greedy decoding")
        check_at_least("top_k", self.top_k, 1, "set it to null for all tokens")
        check_between("top_p", self.top_p, 0, 1, "set it to null for all tokens", low_open=True)
        check_between("min_p", self.min_p, 0, 1, "set it to null for all tokens")
        check_above("repetition_penalty", self.repetition_penalty, 0, "1 is no penalty")
        for name in ("presence_penalty", "frequency_penalty"):
            if not math.isfinite(getattr(self, name)):
                raise UserError(f"{name} is {getattr(self, name)}, it must be a finite number (0: none)")
        for token, bias in self.logit_bias.items():
            if token < 0 or math.isnan(bias) or bias == math.inf:
                raise UserError(f"logit_bias {{{token}: {bias}}}: token ids are not negative and biases below infinity")
        if isinstance(self.stop, str):
            raise UserError(f"stop is the string {self.stop!r}; give a list of strings")
        object.__setattr__(self, "stop", tuple(self.stop))
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        _check_stops(self.stop)
        check_between("seed", self.seed, 0, MAX_SEED, "set it to null for a different one each time")
        check_between("logprobs", self.logprobs, 0, MAX_LOGPROBS, "set it to null for none")

    @property
    def has_penalties(self) -> bool:
        """Whether penalties or biases change the logits."""
        penalties = self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0
        return penalties or bool(self.logit_bias)


@dataclass(frozen=True)
class TokenEvent:
    """One token of a request, or the end of a request."""

    request_id: str
    token_id: int | None
    """None if a request ends without a further token (cancelled, failed)."""
    text: str = ""
    """Text that can be shown now: only complete characters, and nothing that may still become a stop string."""
    logprob: float | None = None
    """Natural logarithm of the token's probability; None unless requested."""
    top_logprobs: tuple[tuple[int, float], ...] = ()
    """The most likely tokens and their log-probabilities, in descending order."""
    finish_reason: FinishReason | None = None
    """Set in a request's last event."""
    error: str | None = None
    """Error message, if the finish reason is `error`."""


@dataclass(frozen=True)
class Completion:
    """The complete output of a request."""

    request_id: str
    prompt_ids: list[int]
    token_ids: list[int]
    """Token ids, including the stop token if one ended the request."""
    text: str
    """Text without stop tokens and stop strings."""
    finish_reason: FinishReason
    logprobs: list[float] | None = None
    """Log-probability of each token; None unless requested."""
    top_logprobs: list[tuple[tuple[int, float], ...]] | None = None
    error: str | None = None

    @classmethod
    def of(cls, prompt_ids: list[int], events: list[TokenEvent], with_logprobs: bool = False) -> "Completion":
        """Combine a request's events, the last of which has its finish reason."""
        last = events[-1]
        assert last.finish_reason is not None
        sampled = [event for event in events if event.token_id is not None]
        return cls(
            last.request_id,
            list(prompt_ids),
            [event.token_id for event in sampled if event.token_id is not None],
            "".join(event.text for event in events),
            last.finish_reason,
            [event.logprob for event in sampled if event.logprob is not None] if with_logprobs else None,
            [event.top_logprobs for event in sampled] if with_logprobs else None,
            last.error,
        )


def _check_stops(stops: tuple[str, ...]) -> None:
    if len(stops) > MAX_STOPS:
        raise UserError(f"stop has {len(stops)} strings, at most {MAX_STOPS} are allowed")
    for stop in stops:
        if not stop:
            raise UserError("stop has an empty string, which would end every completion immediately; remove it")
        if len(stop) > MAX_STOP_CHARACTERS:
            raise UserError(f"a string in stop has {len(stop)} characters, at most {MAX_STOP_CHARACTERS} are allowed")


class Matcher(Protocol):
    """Decides which tokens may come next."""

    def mask(self, logits: Tensor) -> Tensor:
        """Return the logits (V,) with -inf for tokens that are not allowed."""
        ...

    def accept(self, token: int) -> bool:
        """Accept a sampled token; return True if nothing may follow it."""
        ...


@dataclass(frozen=True)
class SampledToken:
    """A sampled token, with its log-probabilities if requested."""

    token: int
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()


class Request(CacheEntry):
    """The state of one request.

    Args:
        request_id: Name of the request.
        prompt_ids: Token ids of the prompt, at least one.
        params: Sampling settings and stop conditions.
        tokenizer: Tokenizer for the text of events; None = no text.
        matcher: Restricts the allowed tokens; None = all are allowed.
        num_re_prefill: Number of tokens from which a new context starts when it is full; None = the request ends.
    """

    def __init__(
        self,
        request_id: str,
        prompt_ids: list[int],
        params: SamplingParams,
        tokenizer: Tokenizer | None,
        matcher: Matcher | None = None,
        num_re_prefill: int | None = None,
    ) -> None:
        max_tokens = len(prompt_ids) + params.max_new_tokens if num_re_prefill is None else None
        super().__init__(prompt_ids, max_tokens)
        self.request_id, self.params, self.matcher = request_id, params, matcher
        self.seed = secrets.randbits(63) if params.seed is None else params.seed
        self.num_prompt, self.num_re_prefill = len(prompt_ids), num_re_prefill
        self.num_new = 0
        self.fault: Exception | None = None
        """Exception raised while its next token was sampled."""
        self._stop_ids = set(params.stop_token_ids)
        self._detokenizer: Detokenizer | None = None
        if tokenizer is not None:
            self._stop_ids |= set(() if params.ignore_eos else tokenizer.stop_ids)
            self._detokenizer = Detokenizer(tokenizer, prompt_ids)
        self._stops = StopStrings(params.stop)
        self._counts: Tensor | None = None
        self._in_prompt: Tensor | None = None

    @property
    def is_decoding(self) -> bool:
        """Whether its row is among the decoding ones: one token per engine iteration."""
        return self.block is not None and self.row < self.block.num_decoding

    @property
    def in_prefill(self) -> bool:
        """Whether more than the last token is not cached yet."""
        return len(self.ids) - self.num_cached > 1

    def accept(self, sampled: SampledToken, max_length: int) -> TokenEvent:
        """Accept a token; return its event, with the text that it adds and, for the last one, the finish reason."""
        token = sampled.token
        self.num_new += 1
        self.ids.append(token)
        if self._counts is not None:
            self._counts[token] += 1
        reason: FinishReason | None = None
        if token in self._stop_ids:
            text, reason = self._flush(), "stop"
        else:
            text, stopped = self._stops.add(self._detokenizer.add(token) if self._detokenizer else "")
            complete = self.matcher is not None and self.matcher.accept(token)
            if stopped:
                reason = "stop"
            elif complete:
                text, reason = text + self._flush(), "stop"
            elif self.num_new >= self.params.max_new_tokens or self._is_full(max_length):
                text, reason = text + self._flush(), "length"
        self.finished = reason is not None
        return TokenEvent(self.request_id, token, text, sampled.logprob, sampled.top_logprobs, reason)

    def end(self, reason: FinishReason, error: str | None = None) -> TokenEvent:
        """End the request without a further token."""
        self.finished = True
        text = "" if reason == "error" else self._flush()
        return TokenEvent(self.request_id, None, text, finish_reason=reason, error=error)

    def _flush(self) -> str:
        text, stopped = self._stops.add(self._detokenizer.flush() if self._detokenizer else "")
        return text if stopped else text + self._stops.flush()

    def _is_full(self, max_length: int) -> bool:
        """Return whether the sampled token does not fit in the context; start a new context if that is enabled."""
        if len(self.ids) <= max_length:
            return False
        if self.num_re_prefill is None:
            return True
        self.ids = self.ids[-self.num_re_prefill :]
        self.restart()
        return False

    def penalized(self, logits: Tensor) -> Tensor:
        """Return the logits (V,) after penalties and biases."""
        params = self.params
        if self._counts is None:
            self._counts = torch.zeros_like(logits)
            for token in self.ids[self.num_prompt :]:
                self._counts[token] += 1
            self._in_prompt = torch.zeros_like(logits, dtype=torch.bool)
            self._in_prompt[self.ids[: self.num_prompt]] = True
        assert self._in_prompt is not None
        written = self._counts > 0
        if params.repetition_penalty != 1:
            penalty = params.repetition_penalty
            repeated = torch.where(logits > 0, logits / penalty, logits * penalty)
            logits = torch.where(self._in_prompt | written, repeated, logits)
        if params.presence_penalty or params.frequency_penalty:
            logits = logits - params.presence_penalty * written - params.frequency_penalty * self._counts
        if params.logit_bias:
            tokens = torch.tensor(list(params.logit_bias), device=logits.device)
            biases = torch.tensor(list(params.logit_bias.values()), device=logits.device, dtype=logits.dtype)
            logits = logits.index_add(0, tokens, biases)
        return logits


class AllowedFirst:
    """A `Matcher` that restricts only the first token.

    Args:
        allowed: Ids of the allowed first tokens.
    """

    def __init__(self, allowed: Sequence[int]) -> None:
        self._allowed: Sequence[int] | None = allowed

    def mask(self, logits: Tensor) -> Tensor:
        """Return the logits (V,) with -inf for tokens that are not allowed."""
        if self._allowed is None:
            return logits
        seen = torch.zeros_like(logits, dtype=torch.bool)
        seen[torch.tensor(self._allowed, device=logits.device)] = True
        return logits.masked_fill(~seen, -math.inf)

    def accept(self, token: int) -> bool:
        """Allow all tokens from now on."""
        self._allowed = None
        return False
