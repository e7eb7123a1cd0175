"""A request while it is worked on: its sequences in the engine, and every way in which it may end.

It ends when all its sequences have; when its client leaves; when its time is up; or when the server goes down. In each
case the engine is told at once, so that a slot is free within a step, and its places in the queue are given back.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence

from lit_gpt.generation.loop import QueueFullError, RequestHandle
from lit_gpt.generation.params import SamplingParams, TokenEvent
from lit_gpt.serving.admission import Ticket
from lit_gpt.serving.errors import ApiError
from lit_gpt.serving.metrics import Metrics
from lit_gpt.serving.model import ServedModel

Indexed = tuple[int, TokenEvent]
"""Which sequence of the request, and its event."""
TURN_EVENTS = 64


class ActiveRequest:
    """Made in the event loop, before anything is submitted.

    Args:
        served: Whose engine does the work.
        metrics: Where tokens and times are counted.
        ticket: The request's places.
        seconds: Until it is ended.
        everyone: Where it stands as long as it lives, so that a server that goes down can end it.
    """

    def __init__(
        self, served: ServedModel, metrics: Metrics, ticket: Ticket, seconds: float, everyone: "set[ActiveRequest]"
    ) -> None:
        self._served = served
        self._metrics = metrics
        self._ticket = ticket
        self._everyone = everyone
        self._handles: list[RequestHandle] = []
        self._pumps: list[asyncio.Task[None]] = []
        self._arrived: asyncio.Queue[Indexed | ApiError] = asyncio.Queue()
        self._accepted = time.monotonic()
        self._first: dict[int, float] = {}
        self._tokens: dict[int, int] = {}
        self._unfinished: set[int] = set()
        self._stopped: set[int] = set()
        self._closed = False
        message = f"the answer was not complete within the server's limit of {seconds:g} seconds"
        self.seconds, self.overdue = seconds, ApiError(504, message, "request_timeout")
        self._timer = asyncio.get_running_loop().call_later(seconds, self.end, self.overdue)
        everyone.add(self)

    def submit(self, prompt_ids: Sequence[int], params: SamplingParams) -> None:
        """Add a sequence. From any thread, before `batches`; what is submitted once the request is closed ends at once.

        Raises:
            UserError: If it can never run.
            ApiError: If the engine takes no more.
        """
        try:
            handle = self._served.loop.submit(prompt_ids, params)
        except QueueFullError:
            raise ApiError(429, "the server is busy; try again", "server_busy", headers={"Retry-After": "1"}) from None
        except RuntimeError:
            raise ApiError(503, "the engine takes no more requests", "engine_stopped") from None
        self._handles.append(handle)
        if self._closed:
            handle.cancel()

    async def batches(self) -> AsyncIterator[list[Indexed]]:
        """Yield the events that have come since the last time, until every sequence has ended.

        Several at a time: a stream that falls behind catches up in one piece.

        Raises:
            ApiError: If the request was ended, or failed in the engine.
        """
        self._unfinished = set(range(len(self._handles)))
        self._pumps = [asyncio.create_task(self._pump(index, handle)) for index, handle in enumerate(self._handles)]
        while self._unfinished:
            items = [await self._arrived.get()]
            while not self._arrived.empty():
                items.append(self._arrived.get_nowait())
            batch = []
            for item in items:
                if isinstance(item, ApiError):
                    raise item
                if item[0] in self._stopped:
                    continue
                batch.append(item)
                self._count(*item)
            if batch:
                yield batch

    async def _pump(self, index: int, handle: RequestHandle) -> None:
        taken = 0
        async for event in handle:
            self._arrived.put_nowait((index, event))
            taken += 1
            if taken % TURN_EVENTS == 0:  # where events come faster than they are read, others still have their turn
                await asyncio.sleep(0)

    def _count(self, index: int, event: TokenEvent) -> None:
        now = time.monotonic()
        if event.token_id is not None:
            self._metrics.token()
            self._tokens[index] = self._tokens.get(index, 0) + 1
            if index not in self._first:
                self._first[index] = now
                self._metrics.first_token.observe(now - self._accepted)
        if event.finish_reason is not None:
            self._unfinished.discard(index)
            self._metrics.ended.labels(event.finish_reason).inc()
            if self._tokens.get(index, 0) > 1:
                self._metrics.between_tokens.observe((now - self._first[index]) / (self._tokens[index] - 1))
        if event.finish_reason == "error":
            raise ApiError(500, "the request failed in the model; the others go on", "generation_failed")
        if event.finish_reason == "cancelled":
            raise ApiError(503, "the request was ended by the server", "cancelled")

    @property
    def num_tokens(self) -> int:
        """Written so far, in all sequences."""
        return sum(self._tokens.values())

    def stop(self, index: int) -> None:
        """End one sequence, of which nothing more is to be told; the others go on."""
        self._stopped.add(index)
        self._handles[index].cancel()
        if index in self._unfinished:
            self._unfinished.discard(index)
            self._metrics.ended.labels("content_filter").inc()

    def end(self, reason: ApiError) -> None:
        """End the request from outside; whoever reads `batches` gets the reason at once."""
        for handle in self._handles:
            handle.cancel()
        self._arrived.put_nowait(reason)

    def close(self) -> None:
        """Give everything back; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        self._timer.cancel()
        for handle in self._handles:
            handle.cancel()  # of an ended sequence: nothing
        for pump in self._pumps:
            pump.cancel()
        self._metrics.ended.labels("cancelled").inc(len(self._unfinished))
        self._everyone.discard(self)
        self._ticket.leave()
