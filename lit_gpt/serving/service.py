"""State shared by all routes, and requests while they are processed.

`Service` holds the model, its limits and counters, and the requests in flight. `ActiveRequest` is one of them: its
sequences in the engine, and every way in which it can end: when all its sequences have ended, when its client
disconnects, when its time is up, or when the server shuts down. The engine is notified immediately, so that a slot is
free within one engine iteration, and the request's slots in the queue are released.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import InitVar, dataclass, field

from starlette.requests import Request

from lit_gpt.generation.constraints import DEAD_END
from lit_gpt.generation.loop import QueueFullError, RequestHandle
from lit_gpt.generation.request import Matcher, SamplingParams, TokenEvent
from lit_gpt.serving.admission import Admission, Limits, Ticket
from lit_gpt.serving.errors import ApiError, shown
from lit_gpt.serving.guards.base import Guard
from lit_gpt.serving.guards.chain import GuardChain
from lit_gpt.serving.metrics import Metrics
from lit_gpt.serving.model import ServedModel

CLOSE_SECONDS = 10
"""Time for the engine's thread to end."""
IndexedEvent = tuple[int, TokenEvent]
"""Index of the sequence in the request, and its event."""
_EVENTS_PER_TURN = 64


@dataclass
class Service:
    """A model and everything needed to serve it at one address.

    Attributes:
        served: The model.
        limits: Bounds for every client.
        admission: Admission control of sequences in the engine.
        direct_admission: Admission control of texts whose hidden states are read directly (embeddings, prompt
            log-probabilities), bypassing the engine.
        metrics: Metrics for Prometheus.
        guard_chain: Guards that inspect texts going in and out, in order.
        active: Requests in the engine.
        direct: One thread for requests that bypass the engine, so that they run one after another.
        builder: Two threads for requests with a constraint, so that compiling grammars does not delay others.
    """

    served: ServedModel
    limits: Limits
    guards: InitVar[Sequence[Guard]] = ()
    guard_chain: GuardChain = field(init=False)
    admission: Admission = field(init=False)
    direct_admission: Admission = field(init=False)
    metrics: Metrics = field(init=False)
    active: set["ActiveRequest"] = field(init=False, default_factory=set)
    direct: ThreadPoolExecutor = field(init=False)
    builder: ThreadPoolExecutor = field(init=False)

    def __post_init__(self, guards: Sequence[Guard]) -> None:
        self.admission = Admission(self.served.max_batch_size, self.limits.queued)
        self.direct_admission = Admission(self.limits.prompts, self.limits.queued)
        self.metrics = Metrics(self.served.stats, self.admission)
        self.guard_chain = GuardChain(guards, self.metrics)
        self.direct = ThreadPoolExecutor(max_workers=1, thread_name_prefix="direct")
        self.builder = ThreadPoolExecutor(max_workers=2, thread_name_prefix="build")

    @classmethod
    def of(cls, request: Request) -> "Service":
        """Return the service that answers a request."""
        service = request.app.state.service
        assert isinstance(service, Service)
        return service

    def check_model(self, name: str) -> None:
        """Reject a request for another model.

        Raises:
            ApiError: 404 if the name is not that of the served model.
        """
        if name != self.served.name:
            message = f"the model {shown(name)} does not exist; this server has {self.served.name!r}"
            raise ApiError(404, message, "model_not_found", "model")

    def start(self, sequences: int) -> "ActiveRequest":
        """Reserve slots for a request.

        Raises:
            ApiError: If there are not enough.
        """
        try:
            ticket = self.admission.enter(sequences)
        except ApiError as error:
            self.metrics.rejected.labels(error.code or "too_many_sequences").inc()
            raise
        return ActiveRequest(self.served, self.metrics, ticket, self.limits.request_seconds, self.active)

    def stop_accepting(self) -> None:
        """Reject new requests; accepted ones continue."""
        self.admission.draining = self.direct_admission.draining = True

    def end_all(self) -> None:
        """End all requests in flight."""
        for request in list(self.active):
            request.end(ApiError(503, "the server is shutting down", "shutting_down"))

    def close(self) -> None:
        """End the engine's thread, after the last request."""
        self.end_all()
        for threads in (self.direct, self.builder):
            threads.shutdown(wait=False, cancel_futures=True)
        # The engine's thread is a daemon: an iteration that never ends cannot keep the process alive.
        closing = threading.Thread(target=self.served.loop.close, kwargs={"drain": False}, daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)


class ActiveRequest:
    """A request in the engine; created in the event loop, before anything is submitted.

    Args:
        served: The model whose engine runs it.
        metrics: Metrics for tokens and times.
        ticket: Slots reserved by the request.
        seconds: Time until the request is ended.
        registry: Set of active requests, to which it belongs while it lives, so that shutdown can end it.
    """

    def __init__(
        self, served: ServedModel, metrics: Metrics, ticket: Ticket, seconds: float, registry: "set[ActiveRequest]"
    ) -> None:
        self._served = served
        self._metrics = metrics
        self._ticket = ticket
        self._registry = registry
        self._handles: list[RequestHandle] = []
        self._pumps: list[asyncio.Task[None]] = []
        self._arrived: asyncio.Queue[IndexedEvent | ApiError] = asyncio.Queue()
        self._accepted = time.monotonic()
        self._first: dict[int, float] = {}
        self._tokens: dict[int, int] = {}
        self._unfinished: set[int] = set()
        self._stopped: set[int] = set()
        self._closed = False
        message = f"the answer was not complete within the server's limit of {seconds:g} seconds"
        self.seconds, self.overdue = seconds, ApiError(504, message, "request_timeout")
        self._timer = asyncio.get_running_loop().call_later(seconds, self.end, self.overdue)
        registry.add(self)

    def submit(self, prompt_ids: Sequence[int], params: SamplingParams, matcher: Matcher | None = None) -> None:
        """Add a sequence, from any thread, before `batches`; a sequence added to a closed request ends immediately.

        Args:
            prompt_ids: Token ids of the prompt.
            params: Sampling parameters.
            matcher: Restricts its tokens, if it has no constraint.

        Raises:
            UserError: If the sequence can never run.
            ApiError: If the engine accepts no more sequences.
        """
        try:
            handle = self._served.loop.submit(prompt_ids, params, matcher=matcher)
        except QueueFullError:
            raise ApiError(429, "the server is busy; try again", "server_busy", headers={"Retry-After": "1"}) from None
        except RuntimeError:
            raise ApiError(503, "the engine accepts no more requests", "engine_stopped") from None
        self._handles.append(handle)
        if self._closed:
            handle.cancel()

    async def batches(self) -> AsyncIterator[list[IndexedEvent]]:
        """Yield the events that have arrived since the last time, until every sequence has ended.

        Events are yielded several at a time, so that a stream that has fallen behind can catch up.

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
            if taken % _EVENTS_PER_TURN == 0:  # where events arrive faster than they are read, let other tasks run
                await asyncio.sleep(0)

    def _count(self, index: int, event: TokenEvent) -> None:
        now = time.monotonic()
        if event.token_id is not None:
            self._metrics.record_generated_token()
            self._tokens[index] = self._tokens.get(index, 0) + 1
            if index not in self._first:
                self._first[index] = now
                self._metrics.first_token.observe(now - self._accepted)
        if event.finish_reason is not None:
            self._unfinished.discard(index)
            self._metrics.ended.labels(event.finish_reason).inc()
            if self._tokens.get(index, 0) > 1:
                self._metrics.between_tokens.observe((now - self._first[index]) / (self._tokens[index] - 1))
        if event.finish_reason == "error" and DEAD_END in (event.error or ""):
            message = "no complete answer can satisfy the schema, expression or grammar from here on; change it"
            raise ApiError(400, message, "constraint_dead_end", "response_format")
        if event.finish_reason == "error":
            raise ApiError(500, "the request failed in the model; other requests continue", "generation_failed")
        if event.finish_reason == "cancelled":
            raise ApiError(503, "the request was ended by the server", "cancelled")

    @property
    def num_tokens(self) -> int:
        """Number of tokens generated so far, in all sequences."""
        return sum(self._tokens.values())

    def stop(self, index: int) -> None:
        """End one sequence, whose further events are dropped; the others continue."""
        self._stopped.add(index)
        self._handles[index].cancel()
        if index in self._unfinished:
            self._unfinished.discard(index)
            self._metrics.ended.labels("content_filter").inc()

    def end(self, reason: ApiError) -> None:
        """End the request from outside; the reader of `batches` gets the reason immediately."""
        for handle in self._handles:
            handle.cancel()
        self._arrived.put_nowait(reason)

    def close(self) -> None:
        """Release everything; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        self._timer.cancel()
        for handle in self._handles:
            handle.cancel()  # does nothing for a sequence that has ended
        for pump in self._pumps:
            pump.cancel()
        self._metrics.ended.labels("cancelled").inc(len(self._unfinished))
        self._registry.discard(self)
        self._ticket.release()
