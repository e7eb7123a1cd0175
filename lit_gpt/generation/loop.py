"""`EngineLoop`: a thread that runs the engine, and request handles for any thread or asyncio task.

Only the loop's thread uses the engine. Other threads put requests and cancellations into a queue, which the thread
empties between iterations; events are delivered through one queue per request. A slow or absent reader cannot block
the thread: a queue grows only by what its own request generates, which `max_new_tokens` bounds.
"""

import asyncio
import contextlib
import dataclasses
import itertools
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

from lit_gpt.generation.engine import Engine, EngineStats
from lit_gpt.generation.request import Completion, Matcher, SamplingParams, TokenEvent


class QueueFullError(RuntimeError):
    """The loop's waiting queue is full."""


class RequestHandle:
    """Delivers the events of one request to a single reader.

    Args:
        request_id: Name of the request.
        prompt_ids: Token ids of the prompt.
        params: Sampling settings.
        cancel: Function that asks the loop to end the request.
    """

    def __init__(
        self, request_id: str, prompt_ids: list[int], params: SamplingParams, cancel: Callable[[str], None]
    ) -> None:
        self.request_id, self.prompt_ids, self.params = request_id, prompt_ids, params
        self.matcher: Matcher | None = None
        """The matcher of its constraint, built by the submitting thread."""
        self.submitted_at = time.monotonic()
        self._cancel = cancel
        self._events: queue.SimpleQueue[TokenEvent] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._notify: Callable[[], None] | None = None

    def __iter__(self) -> Iterator[TokenEvent]:
        """Yield events as they arrive, in any thread; ends after the event with a finish reason."""
        while True:
            event = self._events.get()
            yield event
            if event.finish_reason is not None:
                return

    async def __aiter__(self) -> AsyncIterator[TokenEvent]:
        """Yield events in an asyncio task, without a separate thread."""
        loop, arrived = asyncio.get_running_loop(), asyncio.Event()

        def notify() -> None:
            with contextlib.suppress(RuntimeError):  # the reader's event loop is closed: nobody is waiting
                loop.call_soon_threadsafe(arrived.set)

        with self._lock:
            self._notify = notify
        while True:
            arrived.clear()
            while not self._events.empty():  # single reader: the queue cannot become empty in between
                event = self._events.get_nowait()
                yield event
                if event.finish_reason is not None:
                    return
            await arrived.wait()

    def cancel(self) -> None:
        """End the request within one iteration; safe from any thread, at any time."""
        self._cancel(self.request_id)

    def result(self, timeout_seconds: float | None = None) -> Completion:
        """Wait for the complete completion.

        Raises:
            TimeoutError: If it has not finished in time; the request keeps running.
        """
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        events: list[TokenEvent] = []
        while not events or events[-1].finish_reason is None:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                events.append(self._events.get(timeout=left))
            except queue.Empty:
                raise TimeoutError(f"request {self.request_id} has not finished in {timeout_seconds} seconds") from None
        return Completion.of(self.prompt_ids, events, self.params.logprobs is not None)

    def put(self, event: TokenEvent) -> None:
        """Deliver an event; called by the loop's thread."""
        self._events.put(event)
        with self._lock:
            notify = self._notify
        if notify is not None:
            notify()


class EngineLoop:
    """Runs `engine.step()` in a separate thread while there is work.

    Args:
        engine: Engine, which must not be used elsewhere from now on.
        max_waiting: Maximum number of requests waiting for admission; None = unlimited.
    """

    def __init__(self, engine: Engine, max_waiting: int | None = None) -> None:
        self._engine, self._max_waiting = engine, max_waiting
        self._names = itertools.count()
        self._condition = threading.Condition()
        self._arrived: list[RequestHandle] = []
        self._cancelled: list[str] = []
        self._handles: dict[str, RequestHandle] = {}
        self._closing = False
        self._failure: str | None = None
        self._stats = engine.stats()
        self._thread = threading.Thread(target=self._run, name="lit_gpt-engine", daemon=True)
        self._thread.start()

    def submit(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        request_id: str | None = None,
        matcher: Matcher | None = None,
    ) -> RequestHandle:
        """Queue a request.

        Args:
            prompt_ids: Token ids of the prompt, at least one.
            params: Sampling settings and stop conditions.
            request_id: Identifies the request in its events; None = a number.
            matcher: Restricts the tokens of a request without a constraint.

        Raises:
            UserError: If the request can never run.
            QueueFullError: If `max_waiting` requests are already waiting.
            RuntimeError: If the loop is closing, or the id is in use.
        """
        form = self._engine.check(prompt_ids, params)
        with self._condition:
            if self._closing or self._failure is not None:
                raise RuntimeError("the engine accepts no more requests: " + (self._failure or "it is closing"))
            if self._max_waiting is not None and self._num_waiting() >= self._max_waiting:
                raise QueueFullError(f"{self._num_waiting()} requests are waiting, at most {self._max_waiting} may")
            name = f"request-{next(self._names)}" if request_id is None else request_id
            if name in self._handles:
                raise RuntimeError(f"request id {name!r} is in use")
            handle = RequestHandle(name, list(prompt_ids), params, self._cancel)
            handle.matcher = matcher if form is None else form
            self._handles[name] = handle
            self._arrived.append(handle)
            self._condition.notify()
        return handle

    def stats(self) -> EngineStats:
        """Return the engine's load as of its last iteration; requests that it has not received yet count as waiting."""
        with self._condition:
            stats, unseen = self._stats, len(self._arrived)
        return stats if not unseen else dataclasses.replace(stats, num_waiting=stats.num_waiting + unseen)

    @property
    def failure(self) -> str | None:
        """Why the thread stopped with an error; None = it did not."""
        return self._failure

    def close(self, drain: bool = True, timeout_seconds: float | None = None) -> None:
        """Accept no more requests, finish those accepted, then end the thread.

        Args:
            drain: Whether to let accepted requests finish; False cancels them.
            timeout_seconds: Requests that still run after this time are cancelled.
        """
        with self._condition:
            self._closing = True
            if not drain:
                self._cancelled += list(self._handles)
            self._condition.notify()
        self._thread.join(timeout_seconds)
        if self._thread.is_alive():
            with self._condition:
                self._cancelled += list(self._handles)
                self._condition.notify()
            self._thread.join()

    def __enter__(self) -> "EngineLoop":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _num_waiting(self) -> int:
        """Return the number of requests beyond those that run or will be admitted next."""
        return max(0, len(self._handles) - self._engine.max_batch_size)

    def _cancel(self, request_id: str) -> None:
        with self._condition:
            if request_id in self._handles:
                self._cancelled.append(request_id)
                self._condition.notify()

    def _run(self) -> None:
        try:
            while self._receive():
                try:
                    events = self._engine.step()
                except Exception as error:
                    # An error in the forward itself (such as out of memory) cannot be attributed to a single request.
                    events = self._engine.fail_all(f"{type(error).__name__}: {error}")
                self._dispatch(events)
        except BaseException as error:
            self._failure = f"{type(error).__name__}: {error}"
            with self._condition:
                handles = list(self._handles.values())
                self._handles.clear()
            for handle in handles:
                handle.put(TokenEvent(handle.request_id, None, finish_reason="error", error=self._failure))
            raise

    def _receive(self) -> bool:
        """Wait for work and pass it to the engine; return False when all work is done and the loop is closing."""
        with self._condition:
            while not (self._arrived or self._cancelled or self._engine.has_work or self._closing):
                self._condition.wait()
            arrived, self._arrived = self._arrived, []
            cancelled, self._cancelled = self._cancelled, []
            if self._closing and not arrived and not self._engine.has_work:
                return False
        for handle in arrived:
            try:
                matcher, handle.matcher = handle.matcher, None  # ownership passes to the request
                form = () if matcher is None else (matcher,)
                self._engine.add(handle.prompt_ids, handle.params, handle.request_id, *form)
            except ValueError as error:
                self._dispatch([TokenEvent(handle.request_id, None, finish_reason="error", error=str(error))])
        for request_id in cancelled:
            self._engine.cancel(request_id)
        return True

    def _dispatch(self, events: list[TokenEvent]) -> None:
        with self._condition:
            self._stats = self._engine.stats()
            handles = [self._handles[event.request_id] for event in events]
            for event in events:
                if event.finish_reason is not None:
                    del self._handles[event.request_id]
        for handle, event in zip(handles, events, strict=True):
            handle.put(event)
