"""How answers go out: whole, or as server-sent events; both end with their client."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, TypeVar

import anyio
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from lit_gpt.serving.active import ActiveRequest
from lit_gpt.serving.edge import CLIENT_CLOSED, note
from lit_gpt.serving.errors import ApiError
from lit_gpt.serving.limits import Limits

Result = TypeVar("Result")
PING_SECONDS = 15


async def while_connected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Do something as long as the client is there.

    Args:
        request: Whose body has been read.
        work: Is cancelled when the client leaves.

    Raises:
        ApiError: 499, which nobody reads, if it left.
    """
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ApiError(CLIENT_CLOSED, "the client has left", "client_left")
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class StreamResponse(EventSourceResponse):
    """Server-sent events of one request.

    Args:
        active: Is closed however the response ends, even before its first event.
        chunks: JSON values; an `ApiError` among them is sent as the last event.
        limits: The server's.
    """

    def __init__(self, active: ActiveRequest, chunks: AsyncIterator[dict[str, Any]], limits: Limits) -> None:
        super().__init__(
            self._events(chunks),
            ping=PING_SECONDS,
            ping_message_factory=lambda: ServerSentEvent(comment="still here", sep="\n"),
            sep="\n",
            send_timeout=limits.stalled_seconds,
            # A stream goes on while the server drains; the service ends what is left (`Service.end_all`).
            shutdown_event=anyio.Event(),
            shutdown_grace_period=limits.drain_seconds + 5,
        )
        self._active = active

    async def _events(self, chunks: AsyncIterator[dict[str, Any]]) -> AsyncIterator[ServerSentEvent]:
        try:
            async for chunk in chunks:
                yield _event(json.dumps(chunk, separators=(",", ":")))
        except ApiError as error:
            yield _event(json.dumps(error.body(), separators=(",", ":")))
        else:
            yield _event("[DONE]")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream, then give back what the request held."""
        try:
            await super().__call__(scope, receive, send)
        except TimeoutError:  # the client has not read for too long: like one that left
            note(scope, stalled=1)
        finally:
            self._active.close()
            note(scope, tokens=self._active.num_tokens)


def _event(data: str) -> ServerSentEvent:
    return ServerSentEvent(data=data, sep="\n")


async def prepared(active: ActiveRequest, prepare: Callable[[], Result], builder: Executor | None = None) -> Result:
    """Run what takes the processor (templates, tokens, grammars) beside the event loop.

    Args:
        active: Is closed if it fails.
        prepare: Submits the request's sequences.
        builder: Where it runs instead of in a thread of the common ones, of which it could take them all.

    Raises:
        ApiError: 504, if the request's time is up before the builder has come to it.
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
