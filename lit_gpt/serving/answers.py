"""What becomes of a sequence's events: text, tool calls and log-probabilities, in a stream or as a whole."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lit_gpt.generation.params import TokenEvent
from lit_gpt.serving.token_text import TokenText
from lit_gpt.serving.tools import ToolCall, ToolReader

LEAST_LOGPROB = -9999.0
"""Stands for the logarithm of 0, as in OpenAI's API: JSON has no infinity."""


@dataclass
class Delta:
    """What some events add to an answer."""

    text: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    tokens: list[TokenEvent] = field(default_factory=list)
    """Those whose text is shown, where log-probabilities are asked for."""
    finish_reason: str | None = None

    def __bool__(self) -> bool:
        return bool(self.text or self.calls or self.tokens or self.finish_reason)


class Answer:
    """One sequence as it grows.

    Args:
        tokens: Bytes of tokens; None: no log-probabilities are asked for.
        reader: Tells calls from text; None: there are no tools.
        streamed: Nothing is kept of what has been passed on.
    """

    def __init__(
        self, tokens: TokenText | None = None, reader: ToolReader | None = None, streamed: bool = False
    ) -> None:
        self._shown = None if tokens is None else ShownTokens(tokens)
        self._reader = reader
        self.streamed = streamed
        self.whole = Delta()
        self.num_tokens = 0

    def feed(self, events: Sequence[TokenEvent]) -> Delta:
        """Take the next events.

        Returns:
            What they add; `whole` has all of it, unless it is streamed.
        """
        delta = Delta()
        for event in events:
            self.num_tokens += event.token_id is not None
            if self._shown is not None:
                delta.tokens += self._shown.feed(event)
            if self._reader is None:
                delta.text += event.text
            else:
                self._read(delta, self._reader.feed(event.text) if event.text else [])
            if event.finish_reason is not None:
                if self._reader is not None:
                    self._read(delta, self._reader.finish())
                calls = self._reader is not None and self._reader.num_calls > 0
                delta.finish_reason = "tool_calls" if calls and event.finish_reason == "stop" else event.finish_reason
        if self.streamed:
            return delta
        self.whole.text += delta.text
        self.whole.calls += delta.calls
        self.whole.tokens += delta.tokens
        self.whole.finish_reason = delta.finish_reason
        return delta

    @staticmethod
    def _read(delta: Delta, found: list[str | ToolCall]) -> None:
        for part in found:
            if isinstance(part, str):
                delta.text += part
            else:
                delta.calls.append(part)


class ShownTokens:
    """Holds tokens back until their text is shown: a stop string's are never told of.

    Args:
        tokens: Bytes of tokens.
    """

    def __init__(self, tokens: TokenText) -> None:
        self._tokens = tokens
        self._held: list[tuple[int, int, TokenEvent]] = []  # first byte, byte after the last, token
        self._written = self._shown = 0

    def feed(self, event: TokenEvent) -> list[TokenEvent]:
        """Take an event and return the tokens whose text is shown now."""
        if event.token_id is not None:
            start = self._written
            self._written += len(self._tokens.bytes(event.token_id))
            self._held.append((start, self._written, event))
        self._shown += len(event.text.encode())
        if event.finish_reason == "length":
            out = len(self._held)
        elif event.finish_reason is not None:
            out = sum(start < self._shown for start, _, _ in self._held)
        else:
            out = sum(end <= self._shown for _, end, _ in self._held)
        released, self._held = self._held[:out], self._held[out:]
        return [token for _, _, token in released]


def chat_logprobs(events: Sequence[TokenEvent], tokens: TokenText) -> dict[str, Any]:
    """In the shape of chat completions."""

    def entry(index: int, logprob: float | None) -> dict[str, Any]:
        return {"token": tokens.text(index), "logprob": _finite(logprob), "bytes": list(tokens.bytes(index))}

    content = []
    for event in events:
        assert event.token_id is not None
        top = [entry(index, logprob) for index, logprob in event.top_logprobs]
        content.append({**entry(event.token_id, event.logprob), "top_logprobs": top})
    return {"content": content, "refusal": None}


def completion_logprobs(events: Sequence[TokenEvent], tokens: TokenText, offset: int) -> dict[str, Any]:
    """In the shape of completions.

    Args:
        events: Of the tokens.
        tokens: Their bytes.
        offset: Characters before them in the text.
    """
    result: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for event in events:
        assert event.token_id is not None
        text = tokens.text(event.token_id)
        result["tokens"].append(text)
        result["token_logprobs"].append(_finite(event.logprob))
        top = {tokens.text(index): _finite(logprob) for index, logprob in reversed(event.top_logprobs)}
        result["top_logprobs"].append(top)
        result["text_offset"].append(offset)
        offset += len(text)
    return result


def _finite(logprob: float | None) -> float:
    return LEAST_LOGPROB if logprob is None or not math.isfinite(logprob) else max(logprob, LEAST_LOGPROB)
