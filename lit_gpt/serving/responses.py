"""Convert a sequence's events to a response (text, tool calls, log-probabilities), complete or as server-sent events.

`Answer` accumulates the events of one sequence; `GuardedAnswers` lets the guards inspect additions before the client
sees them; `while_connected` and `StreamResponse` send the response, and end with the client.
"""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import anyio
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from lit_gpt.generation.request import TokenEvent
from lit_gpt.serving.admission import Limits
from lit_gpt.serving.errors import ApiError
from lit_gpt.serving.guards.chain import CONTENT_FILTER, GuardChain, OutputGuard
from lit_gpt.serving.middleware import CLIENT_CLOSED, note
from lit_gpt.serving.model import TokenLogprob, TokenText
from lit_gpt.serving.service import ActiveRequest
from lit_gpt.serving.tools import ToolCall, ToolReader

Result = TypeVar("Result")
MIN_LOGPROB = -9999.0
"""Replaces the logarithm of 0, as in OpenAI's API: JSON has no infinity."""
PING_SECONDS = 15


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
    """Return the token usage as OpenAI's API counts it: a prompt once, regardless of the number of its answers."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


# ------------------------------------------------------------------ one sequence


@dataclass
class Delta:
    """Addition to an answer by some events."""

    text: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    tokens: list[TokenEvent] = field(default_factory=list)
    """Events whose text is shown, if log-probabilities are requested."""
    finish_reason: str | None = None

    def __bool__(self) -> bool:
        return bool(self.text or self.calls or self.tokens or self.finish_reason)


class Answer:
    """The answer of one sequence, which grows with its events.

    Args:
        tokens: Bytes of tokens; None: no log-probabilities are requested.
        reader: Separates tool calls from text; None: there are no tools.
        streamed: Whether returned text need not be stored.
        healed: Text at the beginning that belongs to the prompt (see token healing in `lit_gpt.generation.text`).
    """

    def __init__(
        self,
        tokens: TokenText | None = None,
        reader: ToolReader | None = None,
        streamed: bool = False,
        healed: str = "",
    ) -> None:
        self._shown = None if tokens is None else ShownTokens(tokens)
        self._reader = reader
        self.streamed = streamed
        self._healed = healed
        self.whole = Delta()
        self.num_tokens = 0

    def feed(self, events: Sequence[TokenEvent]) -> Delta:
        """Process the next events.

        Returns:
            The addition; `whole` accumulates everything, unless it is streamed.
        """
        delta = Delta()
        for event in events:
            self.num_tokens += event.token_id is not None
            if self._shown is not None:
                delta.tokens += self._shown.feed(event)
            text = event.text
            if self._healed and text:
                common = min(len(self._healed), len(text))
                self._healed, text = self._healed[common:], text[common:]
            if self._reader is None:
                delta.text += text
            else:
                self._read(delta, self._reader.feed(text) if text else [])
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
    """Holds tokens back until their text is shown, so that those of a stop string are never reported.

    Args:
        tokens: Bytes of tokens.
    """

    def __init__(self, tokens: TokenText) -> None:
        self._tokens = tokens
        self._held: list[tuple[int, int, TokenEvent]] = []  # first byte, byte after the last, token
        self._written = self._shown = 0

    def feed(self, event: TokenEvent) -> list[TokenEvent]:
        """Process an event and return the tokens whose text is now shown."""
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


# ------------------------------------------------------------------ log-probabilities


def chat_logprobs(events: Sequence[TokenEvent], tokens: TokenText) -> dict[str, Any]:
    """Return log-probabilities in the format of chat completions."""

    def entry(index: int, logprob: float | None) -> dict[str, Any]:
        return {"token": tokens.text(index), "logprob": _finite(logprob), "bytes": list(tokens.bytes(index))}

    content = []
    for event in events:
        assert event.token_id is not None
        top = [entry(index, logprob) for index, logprob in event.top_logprobs]
        content.append({**entry(event.token_id, event.logprob), "top_logprobs": top})
    return {"content": content, "refusal": None}


class CompletionLogprobs:
    """Log-probabilities in the format of completions, for consecutive parts of one text.

    Args:
        tokens: Bytes of tokens.
    """

    def __init__(self, tokens: TokenText) -> None:
        self._tokens = tokens
        self._characters = 0
        """Number of characters that have started, counted by first bytes, as a token may be a part of one."""

    def add(self, events: Sequence[TokenEvent]) -> dict[str, Any]:
        """Return the log-probabilities of generated tokens."""
        return self._shape(
            [(event.token_id, event.logprob, event.top_logprobs) for event in events if event.token_id is not None]
        )

    def add_prompt(self, prompt: Sequence[TokenLogprob], events: Sequence[TokenEvent] = ()) -> dict[str, Any]:
        """Return the log-probabilities of a prompt's tokens (None for the first) and of generated tokens after them."""
        return _joined(self._shape(prompt, with_none=True), self.add(events))

    def _shape(self, rows: Sequence[tuple[int, float | None, Any]], with_none: bool = False) -> dict[str, Any]:
        result: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for index, logprob, top in rows:
            content = self._tokens.bytes(index)
            begun = sum(byte & 0xC0 != 0x80 for byte in content)  # bytes 10xxxxxx continue a character
            continues = bool(content) and content[0] & 0xC0 == 0x80
            missing = with_none and logprob is None
            result["tokens"].append(self._tokens.text(index))
            result["token_logprobs"].append(None if missing else _finite(logprob))
            shown = {self._tokens.text(other): _finite(value) for other, value in reversed(top)}
            result["top_logprobs"].append(None if missing else shown)
            result["text_offset"].append(max(0, self._characters - continues))
            self._characters += begun
        return result


def _joined(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    return {name: first[name] + second[name] for name in first}


def _finite(logprob: float | None) -> float:
    return MIN_LOGPROB if logprob is None or not math.isfinite(logprob) else max(logprob, MIN_LOGPROB)


# ------------------------------------------------------------------ guards


class GuardedAnswers:
    """The growing sequences of a request, filtered by the guards.

    Args:
        chain: The guards.
        active: The request; a sequence whose answer is blocked releases its slot.
        answers: Answers of its sequences.
    """

    def __init__(self, chain: GuardChain, active: ActiveRequest, answers: Sequence[Answer]) -> None:
        self._chain = chain
        self._active = active
        self._answers = answers
        self._checks = chain.checks("output")
        self._guards = [OutputGuard(chain) for _ in answers] if self._checks else []
        self._wholes = [Delta() for _ in answers]

    async def deltas(self) -> AsyncIterator[tuple[int, Delta]]:
        """Yield the index of a sequence and its addition, until all have ended."""
        async for batch in self._active.batches():
            for index in dict.fromkeys(index for index, _ in batch):
                yield index, await self._feed(index, [event for owner, event in batch if owner == index])

    async def _feed(self, index: int, events: Sequence[TokenEvent]) -> Delta:
        """Process the next events of a sequence and return what may be shown."""
        answer = self._answers[index]
        if not self._checks:
            return answer.feed(events)
        if self._guards[index].blocked:
            return Delta()
        added = answer.feed(events)
        if not added:
            return added
        # In a thread, because a detector or classifier may be slow.
        added = await anyio.to_thread.run_sync(self._checked, index, added)
        if self._guards[index].blocked:
            self._active.stop(index)
        if not answer.streamed:
            whole = self._wholes[index]
            whole.text += added.text
            whole.calls += added.calls
            whole.finish_reason = added.finish_reason
        return added

    async def wholes(self) -> list[Delta]:
        """Return everything that may be shown of each sequence when all have ended, if they are not streamed."""
        async for _ in self.deltas():
            pass
        return self._wholes if self._checks else [answer.whole for answer in self._answers]

    def _checked(self, index: int, added: Delta) -> Delta:
        guard = self._guards[index]
        # A call ends the text before it, so no match can extend into the call.
        text = guard.feed(added.text, last=added.finish_reason is not None or bool(added.calls))
        calls = []
        for call in added.calls:
            inside = OutputGuard(self._chain)
            arguments = inside.feed(call.arguments, last=True)
            guard.blocked = guard.blocked or inside.blocked
            if guard.blocked:
                break
            calls.append(replace(call, arguments=arguments))
        return Delta(text, calls, [], CONTENT_FILTER if guard.blocked else added.finish_reason)


def refuse_logprobs(chain: GuardChain, requested: bool) -> None:
    """Reject log-probabilities if they would reveal tokens that guards remove.

    Raises:
        ApiError: 400 if they are requested and guards check answers.
    """
    if requested and chain.checks("output"):
        message = "this server's guards check answers, so it returns no logprobs"
        raise ApiError(400, message, "logprobs_not_available", "logprobs")


# ------------------------------------------------------------------ sending


async def prepared(active: ActiveRequest, prepare: Callable[[], Result], builder: Executor | None = None) -> Result:
    """Run CPU work (templates, tokenization, grammars) in a thread.

    Args:
        active: Request, which is closed if the work fails.
        prepare: Function that submits the request's sequences.
        builder: Executor for slow work, which could exhaust the default thread pool.

    Raises:
        ApiError: 504 if the request's time is up before the builder has finished.
    """
    try:
        if builder is None:
            return await anyio.to_thread.run_sync(prepare)
        try:
            async with asyncio.timeout(active.seconds):
                return await asyncio.get_running_loop().run_in_executor(builder, prepare)
        except TimeoutError:
            raise active.overdue from None
    except BaseException:
        active.close()
        raise


async def while_connected(request: Request, work: Awaitable[Result]) -> Result:
    """Await some work as long as the client is connected.

    Args:
        request: A request whose body has been read.
        work: Work to await; it is canceled when the client disconnects.

    Raises:
        ApiError: 499, which nobody receives, if it disconnected.
    """
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ApiError(CLIENT_CLOSED, "the client has disconnected", "client_left")
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class StreamResponse(EventSourceResponse):
    """Server-sent events of one request.

    Args:
        active: The request, which is closed however the response ends, even before its first event.
        chunks: JSON values; an `ApiError` is sent as the last event.
        limits: Limits of the server.
        named: Whether each event carries its `type` as a name too, and nothing is sent after the last.
    """

    def __init__(
        self, active: ActiveRequest, chunks: AsyncIterator[dict[str, Any]], limits: Limits, named: bool = False
    ) -> None:
        super().__init__(
            self._events(chunks),
            ping=PING_SECONDS,
            ping_message_factory=lambda: ServerSentEvent(comment="still here", sep="\n"),
            sep="\n",
            send_timeout=limits.stalled_seconds,
            # A stream continues while the server drains; the service ends the remaining ones (`Service.end_all`).
            shutdown_event=anyio.Event(),
            shutdown_grace_period=limits.drain_seconds + 5,
        )
        self._active = active
        self._named = named

    async def _events(self, chunks: AsyncIterator[dict[str, Any]]) -> AsyncIterator[ServerSentEvent]:
        try:
            async for chunk in chunks:
                yield _event(json.dumps(chunk, separators=(",", ":")), chunk["type"] if self._named else None)
        except ApiError as error:
            yield _event(json.dumps(error.body(), separators=(",", ":")))
        else:
            if not self._named:
                yield _event("[DONE]")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream, then release the request's resources."""
        try:
            await super().__call__(scope, receive, send)
        except TimeoutError:  # the client has not read for too long and is treated as disconnected
            note(scope, stalled=1)
        finally:
            self._active.close()
            note(scope, tokens=self._active.num_tokens)


def _event(data: str, name: str | None = None) -> ServerSentEvent:
    return ServerSentEvent(data=data, event=name, sep="\n")
