"""One request inside the engine: its tokens, its place in the cache, its text so far."""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lit_gpt.data.tokenizers import Tokenizer
from lit_gpt.generation.cache import CacheEntry
from lit_gpt.generation.detokenizer import Detokenizer, StopStrings
from lit_gpt.generation.draws import random_seed
from lit_gpt.generation.params import FinishReason, SamplingParams, TokenEvent


class Matcher(Protocol):
    """Says which tokens may come next."""

    def mask(self, logits: Tensor) -> Tensor:
        """(V,) logits with -inf where a token is not allowed."""
        ...

    def accept(self, token: int) -> bool:
        """Take in a drawn token; returns True when nothing may follow it."""
        ...


@dataclass(frozen=True)
class Drawn:
    """A token and what is reported of it."""

    token: int
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()


class Request(CacheEntry):
    """The state of one request.

    Args:
        request_id: Its name.
        prompt_ids: At least one token.
        params: How to draw and where to end.
        tokenizer: For its text; None = it has none.
        matcher: Which tokens are allowed, or None for all.
        num_re_prefill: Tokens to start a fresh context from when the context is full; None = the request ends there.
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
        self.seed = random_seed() if params.seed is None else params.seed
        self.num_prompt, self.num_re_prefill = len(prompt_ids), num_re_prefill
        self.num_new = 0
        self.fault: Exception | None = None
        """What went wrong while its next token was drawn."""
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
        """Whether its row is among those that decode: one token in each engine iteration."""
        return self.block is not None and self.row < self.block.num_decoding

    @property
    def in_prefill(self) -> bool:
        """Whether more than the last token is not cached yet."""
        return len(self.ids) - self.num_cached > 1

    def accept(self, drawn: Drawn, max_length: int) -> TokenEvent:
        """Take in a token: its text, and whether it is the last."""
        token = drawn.token
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
        return TokenEvent(self.request_id, token, text, drawn.logprob, drawn.top_logprobs, reason)

    def end(self, reason: FinishReason, error: str | None = None) -> TokenEvent:
        """End without a further token."""
        self.finished = True
        text = "" if reason == "error" else self._flush()
        return TokenEvent(self.request_id, None, text, finish_reason=reason, error=error)

    def _flush(self) -> str:
        text, stopped = self._stops.add(self._detokenizer.flush() if self._detokenizer else "")
        return text if stopped else text + self._stops.flush()

    def _is_full(self, max_length: int) -> bool:
        """Return whether the token just drawn does not fit the context; start a fresh one where that is asked."""
        if len(self.ids) <= max_length:
            return False
        if self.num_re_prefill is None:
            return True
        self.ids = self.ids[-self.num_re_prefill :]
        self.restart()
        return False

    def penalized(self, logits: Tensor) -> Tensor:
        """The logits (V,) after penalties and biases."""
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
    """A `Matcher` for the first token alone.

    Args:
        allowed: (V,) bool.
    """

    def __init__(self, allowed: Tensor) -> None:
        self._allowed: Tensor | None = allowed

    def mask(self, logits: Tensor) -> Tensor:
        """(V,) logits with -inf where a token is not allowed."""
        return logits if self._allowed is None else logits.masked_fill(~self._allowed, -math.inf)

    def accept(self, token: int) -> bool:
        """From now on all tokens are allowed."""
        self._allowed = None
        return False
